"""stage=rm: the reward model, from labels to its calibrated scores."""
