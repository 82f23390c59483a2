"""Sampling token by token: noise by key, steps that are captured, kernels that fuse."""
