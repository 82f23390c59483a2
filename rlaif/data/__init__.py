"""Tasks as records, and the datamodule layer that sft, rm and rl train on."""
