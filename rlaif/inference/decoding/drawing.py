"""Drawing tokens from logits with keyed noise.

The uniform that picks token t of a row depends only on the row's seed and t, so sorting, dropping finished
rows or splitting a batch over processes changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SEED_RANGE = 2**62


@dataclass(frozen=True)
class Decoding:
    """How tokens are drawn: `temperature` 0 is greedy; `top_k` 0 means no limit."""

    max_new_tokens: int
    temperature: float
    top_k: int = 0


def pick_tokens(logits: Tensor, uniforms: Tensor, *, temperature: float, top_k: int) -> Tensor:
    """Inverse-CDF sampling: logits (B, V) and one uniform per row (B,) -> ids (B,)."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    scaled = logits.float() / temperature
    if top_k:
        floor = scaled.topk(min(top_k, scaled.shape[-1]), dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < floor, float("-inf"))
    cumulative = scaled.softmax(dim=-1).cumsum(dim=-1)
    target = uniforms[:, None].to(cumulative) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp_(max=logits.shape[-1] - 1)


def row_uniforms(seeds: Sequence[int], length: int) -> Tensor:
    """(B, length) uniforms; row b depends only on seeds[b]."""
    rows = [torch.rand(length, generator=torch.Generator().manual_seed(seed % SEED_RANGE)) for seed in seeds]
    return torch.stack(rows)
