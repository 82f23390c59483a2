"""stage=sft: supervised fine-tuning on (prompt, reference)."""
