"""Attention patterns: which positions see which, and by which kernel.

Notation: B rows, T positions, R query positions, H query heads, K key/value heads, E head size. Values may have another
head size than queries and keys. Patterns with a KV cache are in `inference/cache.py`; how a pattern gets into
transformers' layers is in `models/parts/interface.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from rlaif.models.kernels.choice import choose_kernel, say
from rlaif.models.kernels.flex import causal_mask, flex, tensor_mask


@dataclass(frozen=True)
class Scoring:
    """How a layer turns queries and keys into attention weights, beside which positions see which.

    Args:
        scale: factor of the products; None for 1 / sqrt(E).
        window: a position sees only those less than this many positions before it; None for all before it.
        softcap: scores s become softcap * tanh(s / softcap), before the mask.
        sinks: one logit per head (H,) that takes its share of the softmax and has no value (Xiao et al. 2024).
    """

    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def fused(self) -> bool:
        """Whether torch's `scaled_dot_product_attention` can compute it, given a mask."""
        return self.softcap is None and self.sinks is None

    def factor(self, size: int) -> float:
        """The factor of the products of heads of `size`."""
        return size**-0.5 if self.scale is None else self.scale


USUAL = Scoring()


class Attend(Protocol):
    """An attention pattern: queries (B, H, T, E), keys and values (B, K, T, E) -> (B, H, T, E)."""

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scoring: Scoring = USUAL
    ) -> Tensor: ...


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scoring: Scoring = USUAL
) -> Tensor:
    """Attention (B, H, R, E) where `seen` (B or 1, 1, R, T) is True.

    Fused kernels of accelerators that take a mask do not share key heads.
    """
    if not scoring.fused:
        return dense_attention(query, key, value, seen, scoring)
    if query.shape[1] == key.shape[1]:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scoring.scale)
    if query.device.type != "cpu":
        return folded_attention(query, key, value, seen, scoring)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, enable_gqa=True, scale=scoring.scale
    )


def folded_attention(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scoring: Scoring = USUAL
) -> Tensor:
    """`masked_attention`, exactly, with the query heads that share a key head folded into the query length."""
    count, heads, length, size = query.shape
    folded = query.reshape(count, key.shape[1], -1, size)
    mask = seen.repeat(1, 1, heads // key.shape[1], 1)
    mixed = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scoring.scale)
    return mixed.reshape(count, heads, length, value.shape[-1])


def dense_attention(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scoring: Scoring) -> Tensor:
    """`masked_attention` by plain products, for any scoring. `seen` (B or 1, 1, R, T)."""
    count, heads, length, size = query.shape
    groups = key.shape[1]
    bias = _folded_bias(seen.squeeze(1), query, key)
    folded = (query * scoring.factor(size)).reshape(count * groups, -1, size)
    mixed = plain_products(folded, key.flatten(0, 1), value.flatten(0, 1), bias, scoring, groups)
    return mixed.view(count, heads, length, value.shape[-1])


def plain_products(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scoring: Scoring, groups: int
) -> Tensor:
    """Attention (B * K, H / K * R, E) of scaled queries, folded by key head, on keys and values (B * K, T, E).

    `bias` (1 or B * K, H / K * R, T) is added to the scores; `groups` is K.
    """
    if scoring.softcap is None:
        scores = torch.baddbmm(bias, query, key.transpose(1, 2))
    else:
        scores = capped(torch.bmm(query, key.transpose(1, 2)), scoring.softcap) + bias
    if scoring.sinks is None:
        return torch.bmm(scores.softmax(dim=-1), value)
    share = len(scoring.sinks) // groups
    sinks = (
        scoring.sinks.to(scores.dtype).view(groups, share, 1).repeat_interleave(query.shape[1] // share, 1)
    )
    column = sinks.repeat(len(scores) // groups, 1, 1)
    return torch.bmm(torch.cat((scores, column), dim=-1).softmax(dim=-1)[..., :-1], value)


def capped(scores: Tensor, softcap: float) -> Tensor:
    """Scores drawn into (-softcap, softcap), as in Gemma 2."""
    return torch.tanh(scores / softcap) * softcap


def near(queries: Tensor, keys: Tensor, window: int) -> Tensor:
    """Whether a query at position `queries` (..., R) is within `window` of a key at `keys` (..., T): (..., R, T)."""
    return queries[..., :, None] - keys[..., None, :] < window


Rows = Tensor | None
"""Positions (B, R) of the queries (B, H, R, E); None for all positions."""


@dataclass(frozen=True)
class Apart:
    """A packed row of L tokens as N texts in right-padded rows of their own.

    Args:
        places: the place (N, T) in the packed row of each token of each text; any for pads.
        back: for each place (L,) of the packed row, where it is in the N * T tokens of the texts.
    """

    places: Tensor
    back: Tensor


class AttendRows(ABC):
    """A pattern that can also attend from chosen positions only."""

    def apart(self, device: torch.device) -> Apart | None:
        """The texts of the one row that it is for; None if rows are texts already, or cannot be taken apart."""
        return None

    @abstractmethod
    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rows: Rows = None,
        *,
        scoring: Scoring = USUAL,
    ) -> Tensor: ...


class Causal(AttendRows):
    """Each position sees itself and those before it, by the fused kernels where there is one.

    Right padding needs no mask: a real token never sees a pad, and nothing reads the pads' outputs. `blocked`
    (B, T, T) hides further pairs of (query, key): True = hidden. `positions` (B, T) are those that windows count, by
    default 0..T-1.
    """

    def __init__(self, blocked: Tensor | None = None, positions: Tensor | None = None) -> None:
        self._blocked, self._positions = blocked, positions
        self._masks: dict[int | None, Tensor] = {}
        self._blocks: dict[int | None, BlockMask] = {}
        self._made_for: tuple[int, torch.device] | None = None

    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rows: Rows = None,
        *,
        scoring: Scoring = USUAL,
    ) -> Tensor:
        plain = self._blocked is None and scoring.window is None
        if rows is not None:
            seen = self._seen_at(rows, key, scoring.window)
            return masked_attention(query, key, value, seen[:, None], scoring)
        length, device = key.shape[2], key.device
        kernel = choose_kernel(
            device.type,
            keys=length,
            queries=query.shape[2],
            head=query.shape[3],
            masked=not plain,
            fused=scoring.fused,
        )
        say(device.type, kernel, "rows" if plain else "rows with a window or several texts")
        if kernel == "flash":
            return F.scaled_dot_product_attention(
                query,
                key,
                value,
                is_causal=query.shape[2] > 1,
                enable_gqa=key.shape[1] != query.shape[1],
                scale=scoring.scale,
            )
        if kernel == "flex":
            return flex(query, key, value, self._block_mask(length, device, scoring.window), scoring)
        seen = self._seen(length, device, scoring.window)
        return masked_attention(query, key, value, seen[:, None], scoring)

    def _seen_at(self, rows: Tensor, key: Tensor, window: int | None) -> Tensor:
        """What the queries at `rows` (B, R) see: (B, R, T)."""
        if self._blocked is None and window is None:
            return torch.arange(key.shape[2], device=key.device) <= rows[:, :, None]
        return _at(self._seen(key.shape[2], key.device, window), rows)

    def _block_mask(self, length: int, device: torch.device, window: int | None) -> BlockMask:
        """Made once per window and batch; without a mask of all positions where rows are whole texts."""
        self._forget_others(length, device)
        if window not in self._blocks:
            whole = self._blocked is None and self._positions is None
            self._blocks[window] = (
                causal_mask(length, window, device)
                if whole
                else tensor_mask(self._seen(length, device, window))
            )
        return self._blocks[window]

    def _forget_others(self, length: int, device: torch.device) -> None:
        if self._made_for != (length, device):
            self._masks, self._blocks, self._made_for = {}, {}, (length, device)

    def _seen(self, length: int, device: torch.device, window: int | None) -> Tensor:
        """(B or 1, T, T), made once per window and batch."""
        self._forget_others(length, device)
        if window not in self._masks:
            seen = torch.ones(1, length, length, dtype=torch.bool, device=device).tril()
            if self._blocked is not None:
                seen = seen & ~self._blocked
            if window is not None:
                own = self._positions
                own = torch.arange(length, device=device)[None] if own is None else own
                seen = seen & near(own, own, window)
            self._masks[window] = seen
        return self._masks[window]


CAUSAL = Causal()


def whole_rows(attend: Attend) -> bool:
    """Whether each row is one text from its first token on, as transformers' own attention takes it."""
    if isinstance(attend, Causal):
        return attend._blocked is None and attend._positions is None
    return isinstance(attend, DenseCausal)


def _at(seen: Tensor, rows: Tensor) -> Tensor:
    """The lines (B, R, T) of a mask (B or 1, T, T) that belong to the queries at `rows` (B, R)."""
    return seen.expand(len(rows), -1, -1).take_along_dim(rows[:, :, None], 1)


class DenseCausal(AttendRows):
    """Causal attention by plain matrix products, for training.

    On a CPU the fused kernel's backward pass is about six times slower than this at a few hundred positions; the
    (T, T) scores that this materialises are small there.
    """

    def __init__(self) -> None:
        self._bias: dict[tuple, Tensor] = {}

    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rows: Rows = None,
        *,
        scoring: Scoring = USUAL,
    ) -> Tensor:
        count, heads, length, size = query.shape
        groups = key.shape[1]
        bias = self._scores_bias(query, key, rows, scoring.window)
        grouped = (query * scoring.factor(size)).reshape(count * groups, -1, size)
        flat_keys, flat_values = key.reshape(count * groups, -1, size), value.flatten(0, 1)
        mixed = plain_products(grouped, flat_keys, flat_values, bias, scoring, groups)
        return mixed.view(count, heads, length, value.shape[-1])

    def _scores_bias(self, query: Tensor, key: Tensor, rows: Rows, window: int | None) -> Tensor:
        """0 where a query sees a key, -inf elsewhere: (1 or B * K, H / K * R, T), made once per batch."""
        known = (None if rows is None else id(rows), query.shape, key.shape, query.dtype, window)
        if known not in self._bias:
            keys = torch.arange(key.shape[2], device=key.device)
            positions = keys[None, : query.shape[2]] if rows is None else rows
            seen = keys <= positions[:, :, None]
            if window is not None:
                seen = seen & near(positions, keys[None], window)
            self._bias[known] = _folded_bias(seen, query, key)
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
