"""Attention for preference pairs: the two responses of a pair see their prompt, but not each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from rlaif.models.attention import (
    USUAL,
    Apart,
    AttendRows,
    Rows,
    Scoring,
    _folded_bias,
    is_plain,
    masked_attention,
    near,
    plain_products,
)
from rlaif.models.kernels.choice import LONG, choose_kernel, say
from rlaif.models.kernels.flex import block_mask, flex

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
        self._bias: dict[tuple[torch.dtype, int | None], list[Tensor]] = {}

    def apart(self, device: torch.device) -> Apart:
        return apart(self._spans, device)

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
        window = scoring.window
        grouped = (query[0] * scoring.factor(query.shape[3])).unflatten(0, (key.shape[1], -1))
        if rows is not None and rows.shape[1] <= FEW * len(self._spans):
            seen = pair_mask(self._spans, rows[0], key.shape[2], window)
            return _attend(grouped, key[0], value[0], _folded_bias(seen[None], query, key), scoring)[None]
        lengths = [end - start for start, _, _, end in self._spans]
        counts = lengths if rows is None else self._counts(rows[0])
        if rows is None:
            biases = self._biases(query, key, window)
        else:
            biases = self._biases_at(rows[0], counts, query, key, window)
        # Split, not sliced: a slice's gradient is a tensor of the whole row.
        queries, keys, values = grouped.split(counts, 2), key[0].split(lengths, 1), value[0].split(lengths, 1)
        parts = [_attend(*each, scoring) for each in zip(queries, keys, values, biases, strict=True)]
        return torch.cat(parts, dim=1)[None]

    def _counts(self, rows: Tensor) -> list[int]:
        """How many of the positions `rows`, which come pair by pair, are in each pair."""
        ends = torch.tensor([end for *_, end in self._spans], device=rows.device)
        pairs = torch.searchsorted(ends, rows, right=True)
        return torch.bincount(pairs, minlength=len(ends)).tolist()

    def _biases(self, query: Tensor, key: Tensor, window: int | None) -> list[Tensor]:
        """Each pair's bias for all its positions, made once per batch and window."""
        known = (query.dtype, window)
        if known not in self._bias:
            seen = [_seen_in_pair(*span, window, query.device) for span in self._spans]
            self._bias[known] = [_folded_bias(each[None], query, key) for each in seen]
        return self._bias[known]

    def _biases_at(
        self, rows: Tensor, counts: list[int], query: Tensor, key: Tensor, window: int | None
    ) -> list[Tensor]:
        """Each pair's bias for its own positions of `rows`."""
        places = zip(self._spans, rows.split(counts), strict=True)
        seen = [_seen_in_pair(*span, window, query.device)[own - span[0]] for span, own in places]
        return [_folded_bias(each[None], query, key) for each in seen]


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scoring: Scoring) -> Tensor:
    """Attention (H, R, E) of scaled queries (K, H / K, R, E) on keys and values (K, T, E).

    `bias` (1, H / K * R, T) is added to the scores.
    """
    groups, share, length, size = query.shape
    flat = query.reshape(groups, share * length, size)
    return plain_products(flat, key, value, bias, scoring, groups).view(
        groups * share, length, value.shape[-1]
    )


def _seen_in_pair(start: int, a: int, b: int, end: int, window: int | None, device: torch.device) -> Tensor:
    """What each position of one pair sees within it: (T, T), True = seen."""
    seen = torch.ones(end - start, end - start, dtype=torch.bool, device=device).tril()
    seen[b - start :, a - start : b - start] = False
    if window is not None:
        places = torch.arange(end - start, device=device)
        positions = torch.where(places < b - start, places, places - (b - a))
        seen &= near(positions, positions, window)
    return seen


def pair_mask(spans: Spans, queries: Tensor, length: int, window: int | None = None) -> Tensor:
    """Which of `length` positions the `queries` (R,) see in a packed row of pairs: (R, length), True = seen.

    A `window` counts positions within a text: those of b go on where the prompt's end.
    """
    pair, part = pair_parts(spans, length, queries.device)
    keys = torch.arange(length, device=queries.device)
    own = pair[queries][:, None] == pair
    seen = own & (keys <= queries[:, None]) & ~((part[queries][:, None] == 2) & (part == 1))
    if window is None:
        return seen
    positions = pair_positions(spans, pair, part)
    return seen & near(positions[queries], positions, window)


def pair_positions(spans: Spans, pair: Tensor, part: Tensor) -> Tensor:
    """The position (length,) of each place of a packed row within its text, given `pair_parts`."""
    starts = torch.tensor(spans, device=pair.device)[pair]
    places = torch.arange(len(pair), device=pair.device) - starts[:, 0]
    return torch.where(part == 2, places - (starts[:, 2] - starts[:, 1]), places)


def pair_parts(spans: Spans, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The pair's index and the part (0 prompt, 1 a, 2 b), both (length,), of each position in a packed row."""
    starts = torch.tensor(spans, device=device)
    places = torch.arange(length, device=device)
    pair = torch.searchsorted(starts[:, 3].contiguous(), places, right=True).clamp_(max=len(starts) - 1)
    inside = starts[pair]
    return pair, (places >= inside[:, 1]).long() + (places >= inside[:, 2])


def apart(spans: Spans, device: torch.device) -> Apart:
    """Pairs as texts prompt | a and prompt | b, for models that take whole texts only."""
    texts: list[range | list[int]] = []
    homes: list[tuple[int, int]] = []  # of each place of the packed row: its text, and where it is in that
    for start, a, b, end in spans:
        homes += [(len(texts), place) for place in range(b - start)]
        texts.append(range(start, b))
        if end > b:
            homes += [(len(texts), a - start + place) for place in range(end - b)]
            texts.append([*range(start, a), *range(b, end)])
    width = max(map(len, texts))
    places = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts], device=device)
    return Apart(places, torch.tensor([text * width + place for text, place in homes], device=device))


class PaddedPairs(AttendRows):
    """`PairCausal` for accelerators: pairs are padded for attention only, or run by flex attention if they are long.

    Layers run on the packed row, without padding. No mask is larger than the pairs.
    """

    def __init__(self, spans: Spans, device: torch.device) -> None:
        self._spans, self._flex = spans, FlexPairs(spans)
        self._longest = max(stop - start for start, *_, stop in spans)
        starts = torch.tensor(spans, device=device)
        first, a, b, end = (starts[:, i, None] for i in range(4))
        places = torch.arange(self._longest, device=device)
        inside = places < end - first
        self._index = torch.where(inside, first + places, 0).flatten()
        self._back = inside.flatten().nonzero().squeeze(1)
        self._in_a, self._in_b = (places >= a - first) & (places < b - first), places >= b - first
        self._places, self._positions = places, torch.where(self._in_b, places - (b - a), places)
        self._masks: dict[int | None, Tensor] = {}

    def apart(self, device: torch.device) -> Apart:
        return apart(self._spans, device)

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
        if rows is not None:
            seen = pair_mask(self._spans, rows[0], key.shape[2], scoring.window)
            return masked_attention(query, key, value, seen[None, None], scoring)
        kernel = choose_kernel(
            key.device.type,
            keys=self._longest,
            queries=self._longest,
            head=query.shape[3],
            masked=True,
            fused=scoring.fused,
        )
        say(key.device.type, kernel, "packed pairs")
        if kernel == "flex":
            return self._flex(layer, query, key, value, scoring=scoring)
        seen = self._seen(scoring.window)
        mixed = masked_attention(
            self._beside(query), self._beside(key), self._beside(value), seen[:, None], scoring
        )
        return mixed.transpose(0, 1).flatten(1, 2).index_select(1, self._back)[None]

    def _seen(self, window: int | None) -> Tensor:
        """What each position of a pair sees within it: (pairs, T, T), made once per batch and window."""
        if window not in self._masks:
            later = self._places[:, None] < self._places
            seen = ~(later | (self._in_b[:, :, None] & self._in_a[:, None, :]))
            if window is not None:
                seen &= near(self._positions, self._positions, window)
            self._masks[window] = seen
        return self._masks[window]

    def _beside(self, flat: Tensor) -> Tensor:
        """(1, heads, N, E) -> (pairs, heads, T, E)."""
        return flat[0].index_select(1, self._index).unflatten(1, (len(self._spans), -1)).transpose(0, 1)


class FlexPairs(AttendRows):
    """`PairCausal` by flex attention, for long pairs on accelerators: blocks that no query sees are skipped."""

    def __init__(self, spans: Spans) -> None:
        self._spans = spans
        self._masks: dict[int | None, BlockMask] = {}

    def apart(self, device: torch.device) -> Apart:
        return apart(self._spans, device)

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
        if rows is not None:
            seen = pair_mask(self._spans, rows[0], key.shape[2], scoring.window)
            return masked_attention(query, key, value, seen[None, None], scoring)
        if scoring.window not in self._masks:
            self._masks[scoring.window] = self._block_mask(key.shape[2], key.device, scoring.window)
        return flex(query, key, value, self._masks[scoring.window], scoring)

    def _block_mask(self, length: int, device: torch.device, window: int | None) -> BlockMask:
        pair, part = pair_parts(self._spans, length, device)
        positions = pair_positions(self._spans, pair, part)

        def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            own = (pair[query] == pair[key]) & (key <= query)
            own = own & ~((part[query] == 2) & (part[key] == 1))
            return own if window is None else own & (positions[query] - positions[key] < window)

        return block_mask(seen, None, length, length, device)


# Tokens of the longest pair beyond which a mask of all its positions costs more than compiling a kernel does.
LONG_PAIR = LONG


def pair_attention(spans: Spans, device: torch.device) -> AttendRows:
    """The pattern for a packed row of pairs that suits `device`."""
    return PairCausal(spans) if is_plain(device) else PaddedPairs(spans, device)
