"""Attention patterns: which positions see which, and by which kernel.

Notation: B rows, T positions, H query heads, K key/value heads, E head size. Patterns with a KV cache are in
`inference/cache.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Attend(Protocol):
    """An attention pattern: queries (B, H, T, E), keys and values (B, K, T, E) -> (B, H, T, E)."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor: ...


def masked_attention(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """Attention (B, H, R, E) where `seen` (B or 1, 1, R, T) is True.

    Fused kernels of accelerators that take a mask do not share key heads.
    """
    if query.shape[1] == key.shape[1]:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    if query.device.type != "cpu":
        return folded_attention(query, key, value, seen)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=True)


def folded_attention(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """`masked_attention`, exactly, with the query heads that share a key head folded into the query length."""
    count, heads, length, size = query.shape
    folded = query.reshape(count, key.shape[1], -1, size)
    mask = seen.repeat(1, 1, heads // key.shape[1], 1)
    mixed = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask)
    return mixed.reshape(count, heads, length, size)


Rows = Tensor | None
"""Positions (B, R) of the queries (B, H, R, E); None for all positions."""


class AttendRows(ABC):
    """A pattern that can also attend from chosen positions only."""

    @abstractmethod
    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, rows: Rows = None
    ) -> Tensor: ...


class Causal(AttendRows):
    """Each position sees itself and those before it, by the fused kernels.

    Right padding needs no mask: a real token never sees a pad, and nothing reads the pads' outputs. `blocked`
    (B, T, T) hides further pairs of (query, key): True = hidden.
    """

    def __init__(self, blocked: Tensor | None = None) -> None:
        self._seen = None if blocked is None else (~blocked).tril()

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rows: Rows = None) -> Tensor:
        seen = self._seen
        if rows is not None:
            keys = torch.arange(key.shape[2], device=key.device)
            seen = keys <= rows[:, :, None] if seen is None else seen.take_along_dim(rows[:, :, None], 1)
        if seen is not None:
            return masked_attention(query, key, value, seen[:, None])
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=query.shape[2] > 1, enable_gqa=key.shape[1] != query.shape[1]
        )


class DenseCausal(AttendRows):
    """Causal attention by plain matrix products, for training.

    On a CPU the fused kernel's backward pass is about six times slower than this at a few hundred positions; the
    (T, T) scores that this materialises are small there.
    """

    def __init__(self) -> None:
        self._bias: dict[tuple, Tensor] = {}

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rows: Rows = None) -> Tensor:
        count, heads, length, size = query.shape
        groups = key.shape[1]
        bias = self._scores_bias(query, key, rows)
        grouped = (query * size**-0.5).reshape(count * groups, -1, size)
        scores = torch.baddbmm(bias, grouped, key.reshape(count * groups, -1, size).transpose(1, 2))
        mixed = torch.bmm(scores.softmax(dim=-1), value.reshape(count * groups, -1, size))
        return mixed.view(count, heads, length, size)

    def _scores_bias(self, query: Tensor, key: Tensor, rows: Rows) -> Tensor:
        """0 where a query sees a key, -inf elsewhere: (1 or B * K, H / K * R, T), made once per batch."""
        known = (None if rows is None else id(rows), query.shape, key.shape, query.dtype)
        if known not in self._bias:
            keys = torch.arange(key.shape[2], device=key.device)
            positions = keys[None, : query.shape[2]] if rows is None else rows
            self._bias[known] = _folded_bias(keys <= positions[:, :, None], query, key)
        return self._bias[known]


def _folded_bias(seen: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """0 where `seen` (1 or B, R, T), -inf elsewhere, for the heads folded as (1 or B * K, H / K * R, T)."""
    bias = torch.zeros(seen.shape, dtype=query.dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
    bias = bias.repeat(1, query.shape[1] // key.shape[1], 1)
    return bias if len(bias) == 1 else bias.repeat_interleave(key.shape[1], dim=0)


# Here attention and normalisation are plain products. torch's fused kernels are slow for a CPU's gradients. Those for
# Apple's GPUs have none: with gradients torch takes another path there, which rounds otherwise, and PPO's first ratio
# is 1 only if both round alike.
PLAIN = ("cpu", "mps")


def is_plain(device: torch.device) -> bool:
    """Whether models use plain products on `device`, with and without gradients."""
    return device.type in PLAIN


def causal_attention(device: torch.device) -> AttendRows:
    """Plain causal attention for training that suits `device`."""
    return DenseCausal() if is_plain(device) else Causal()
