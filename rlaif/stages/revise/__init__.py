"""stage=revise: critiques and revisions of the base model's responses, which `sft=revisions` trains on."""
