"""What a command would do and cost on this machine, before it does it."""
