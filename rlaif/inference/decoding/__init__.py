"""Sampling token by token: keyed noise, captured steps, fused kernels."""
