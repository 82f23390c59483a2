"""stage=sample: the response pairs that the labeler compares."""
