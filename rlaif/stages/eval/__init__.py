"""stage=eval: two policies on held-out prompts, by a judge and by measures that no model makes."""
