"""stage=label: the labeler's preferences, and how far they agree with gold ones."""
