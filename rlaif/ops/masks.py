"""Masked reductions. One convention: `mask` is boolean, True = counts.

Masked entries never matter, not even NaN or infinity: they are replaced, not multiplied by zero.
Notation: B rows (sequences), T response tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

_VARIANCE_FLOOR = 1e-8


def zero_masked(x: Tensor, mask: Tensor) -> Tensor:
    """`x` with zeros where `mask` is False (same shape); gradients there are zero as well."""
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean (True = counts), got {mask.dtype}")
    if mask.shape != x.shape:
        raise ValueError(f"mask {tuple(mask.shape)} and values {tuple(x.shape)} must have one shape")
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of the counted entries, over everything or along `dim`."""
    kept = zero_masked(x, mask)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of the counted entries, over everything or along `dim`; NaN where nothing counts."""
    count = mask.sum() if dim is None else mask.sum(dim)
    return masked_sum(x, mask, dim) / count.to(x.dtype)


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Population variance of the counted entries, as in Ziegler et al.'s (2019) code; NaN where nothing counts."""
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask)


def whiten(x: Tensor, mask: Tensor, *, center: bool) -> Tensor:
    """Scale the counted entries to variance 1 (population variance + 1e-8); masked entries become 0.

    `center=True` moves the mean to 0 (advantages), `center=False` keeps it (rewards).
    Source: Huang et al. 2024 (arXiv:2403.17031); Ziegler et al. 2019.
    """
    mean, var = masked_mean(x, mask), masked_var(x, mask)
    white = (x - mean) * torch.rsqrt(var + _VARIANCE_FLOOR)
    return zero_masked(white if center else white + mean, mask)


def last_index(mask: Tensor) -> Tensor:
    """Index (B,) of the last True in each row of a (B, T) mask.

    Raises ValueError if a row counts nothing: it has no last token to read or to reward.
    """
    if mask.dtype != torch.bool or mask.dim() != 2:
        raise ValueError(f"expected a boolean (B, T) mask, got {mask.dtype} of shape {tuple(mask.shape)}")
    empty = ~mask.any(dim=1)
    if empty.any():
        raise ValueError(f"rows {empty.nonzero().flatten().tolist()} of the mask count no token")
    positions = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, positions, -1).amax(dim=1)
