"""Tasks as records, and the one datamodule layer that sft, rm and rl train on."""
