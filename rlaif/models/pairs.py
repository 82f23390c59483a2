"""Attention for preference pairs: the two responses of a pair see their prompt, but not each other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from rlaif.models.attention import AttendRows, Rows, _folded_bias, is_plain, masked_attention

FEW = 2  # queries per pair up to which one masked product for all pairs costs less than many small ones

Spans = Sequence[tuple[int, int, int, int]]
"""For each pair, where prompt, a and b start and where b ends. An empty b makes the pair a plain text."""


class PairCausal(AttendRows):
    """Pairs prompt | a | b packed into one row (B = 1): no pair sees another, and b does not see a.

    A packed row has no padding, so layers do no work on any. Attention runs pair by pair in plain matrix products,
    which on a CPU cost less than padding and the hidden blocks would (`experiments/benchmarks/README.md`).
    Positions in `rows` come pair by pair.
    """

    def __init__(self, spans: Spans) -> None:
        self._spans = spans
        self._bias: dict[torch.dtype, list[Tensor]] = {}

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rows: Rows = None) -> Tensor:
        grouped = (query[0] * query.shape[3] ** -0.5).unflatten(0, (key.shape[1], -1))
        if rows is not None and rows.shape[1] <= FEW * len(self._spans):
            seen = pair_mask(self._spans, rows[0], key.shape[2])
            return self._attend(grouped, key[0], value[0], _folded_bias(seen[None], query, key))[None]
        lengths = [end - start for start, _, _, end in self._spans]
        counts = lengths if rows is None else self._counts(rows[0])
        biases = self._biases(query, key) if rows is None else self._biases_at(rows[0], counts, query, key)
        # Split, not sliced: a slice's gradient is a tensor of the whole row.
        queries, keys, values = grouped.split(counts, 2), key[0].split(lengths, 1), value[0].split(lengths, 1)
        parts = [self._attend(*each) for each in zip(queries, keys, values, biases, strict=True)]
        return torch.cat(parts, dim=1)[None]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """Attention (H, R, E) of queries (K, H / K, R, E) on keys (K, T, E) under `bias` (1, H / K * R, T)."""
        groups, share, length, size = query.shape
        flat = query.reshape(groups, share * length, size)
        scores = torch.baddbmm(bias, flat, key.transpose(1, 2))
        return torch.bmm(scores.softmax(dim=-1), value).view(groups * share, length, size)

    def _counts(self, rows: Tensor) -> list[int]:
        """How many of the positions `rows`, which come pair by pair, are in each pair."""
        ends = torch.tensor([end for *_, end in self._spans], device=rows.device)
        pairs = torch.searchsorted(ends, rows, right=True)
        return torch.bincount(pairs, minlength=len(ends)).tolist()

    def _biases(self, query: Tensor, key: Tensor) -> list[Tensor]:
        """Each pair's bias for all its positions, made once per batch."""
        if query.dtype not in self._bias:
            seen = [self._seen(*span, query.device) for span in self._spans]
            self._bias[query.dtype] = [_folded_bias(each[None], query, key) for each in seen]
        return self._bias[query.dtype]

    def _biases_at(self, rows: Tensor, counts: list[int], query: Tensor, key: Tensor) -> list[Tensor]:
        """Each pair's bias for its own positions of `rows`."""
        places = zip(self._spans, rows.split(counts), strict=True)
        seen = [self._seen(*span, query.device)[own - span[0]] for span, own in places]
        return [_folded_bias(each[None], query, key) for each in seen]

    def _seen(self, start: int, a: int, b: int, end: int, device: torch.device) -> Tensor:
        seen = torch.ones(end - start, end - start, dtype=torch.bool, device=device).tril()
        seen[b - start :, a - start : b - start] = False
        return seen


def pair_mask(spans: Spans, queries: Tensor, length: int) -> Tensor:
    """Which of `length` positions the `queries` (R,) see in a packed row of pairs: (R, length), True = seen."""
    pair, part = pair_parts(spans, length, queries.device)
    keys = torch.arange(length, device=queries.device)
    own = pair[queries][:, None] == pair
    return own & (keys <= queries[:, None]) & ~((part[queries][:, None] == 2) & (part == 1))


def pair_parts(spans: Spans, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The pair's index and the part (0 prompt, 1 a, 2 b), both (length,), of each position in a packed row."""
    starts = torch.tensor(spans, device=device)
    places = torch.arange(length, device=device)
    pair = torch.searchsorted(starts[:, 3].contiguous(), places, right=True).clamp_(max=len(starts) - 1)
    inside = starts[pair]
    return pair, (places >= inside[:, 1]).long() + (places >= inside[:, 2])


class PaddedPairs(AttendRows):
    """`PairCausal` for accelerators: pairs are padded for attention only.

    Layers run on the packed row, without padding. Nothing is compiled, and no mask is larger than the pairs.
    """

    def __init__(self, spans: Spans, device: torch.device) -> None:
        self._spans = spans
        starts = torch.tensor(spans, device=device)
        first, a, b, end = (starts[:, i, None] for i in range(4))
        places = torch.arange(max(stop - start for start, *_, stop in spans), device=device)
        inside = places < end - first
        self._index = torch.where(inside, first + places, 0).flatten()
        self._back = inside.flatten().nonzero().squeeze(1)
        in_a, in_b = (places >= a - first) & (places < b - first), places >= b - first
        seen = (places[None, :, None] >= places[None, None, :]) & ~(in_b[:, :, None] & in_a[:, None, :])
        self._seen = seen[:, None]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rows: Rows = None) -> Tensor:
        if rows is not None:
            seen = pair_mask(self._spans, rows[0], key.shape[2])
            return masked_attention(query, key, value, seen[None, None])
        mixed = masked_attention(self._beside(query), self._beside(key), self._beside(value), self._seen)
        return mixed.transpose(0, 1).flatten(1, 2).index_select(1, self._back)[None]

    def _beside(self, flat: Tensor) -> Tensor:
        """(1, heads, N, E) -> (pairs, heads, T, E)."""
        return flat[0].index_select(1, self._index).unflatten(1, (len(self._spans), -1)).transpose(0, 1)


class FlexPairs(AttendRows):
    """`PairCausal` by flex attention, for long pairs on accelerators: blocks that no query sees are skipped."""

    def __init__(self, spans: Spans) -> None:
        self._spans = spans
        self._mask: BlockMask | None = None

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rows: Rows = None) -> Tensor:
        if rows is not None:
            seen = pair_mask(self._spans, rows[0], key.shape[2])
            return masked_attention(query, key, value, seen[None, None])
        if self._mask is None:
            self._mask = self._block_mask(key.shape[2], key.device)
        return _flex_kernel(key.device.type)(query, key, value, block_mask=self._mask, enable_gqa=True)

    def _block_mask(self, length: int, device: torch.device) -> BlockMask:
        pair, part = pair_parts(self._spans, length, device)

        def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            own = (pair[query] == pair[key]) & (key <= query)
            return own & ~((part[query] == 2) & (part[key] == 1))

        return create_block_mask(seen, None, None, length, length, device=device)


@cache
def _flex_kernel(device_type: str) -> Any:
    # Dynamic, since lengths differ from batch to batch.
    return torch.compile(flex_attention, dynamic=True) if device_type == "cuda" else flex_attention


# Tokens of the longest pair beyond which a mask of all its positions costs more than compiling a kernel does.
LONG_PAIR = 2048


def pair_attention(spans: Spans, device: torch.device) -> AttendRows:
    """The pattern for a packed row of pairs that suits `device`."""
    if is_plain(device):
        return PairCausal(spans)
    long = max(end - start for start, *_, end in spans) > LONG_PAIR
    return FlexPairs(spans) if long else PaddedPairs(spans, device)
