"""Which kernel computes attention on which device, and the one that is not torch's own SDPA."""
