"""One Lightning Trainer, one optimiser and one way to train in several processes, for sft, rm and rl."""
