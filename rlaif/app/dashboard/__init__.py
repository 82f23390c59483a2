"""stage=dashboard: the page, the W&B workspace and the W&B report of one layout."""
