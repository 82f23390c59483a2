"""The `rlaif` command: its words, its help, and its exit code."""
