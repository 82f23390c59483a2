"""Several texts after one prefix as a single sequence: what they share runs once.

A row is prefix | suffix 1 | suffix 2 | ... The suffixes do not see each other and their positions restart
after the prefix, so each gives what it would give alone (a parity test checks this).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from rlaif.inference.batches import pad_right
from rlaif.inference.cache import AfterPrefix, Capture, KVCache
from rlaif.models.attention import Attend, Causal
from rlaif.models.split import Top

MIN_SHARED = 16  # a shared beginning shorter than this is not worth its bookkeeping


@dataclass(frozen=True)
class SharedPrefix:
    """Token ids that several suffixes follow. Suffixes are not empty; the prefix has at least one token."""

    prefix: tuple[int, ...]
    suffixes: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.prefix) + sum(len(suffix) for suffix in self.suffixes)

    def spans(self) -> list[tuple[int, int]]:
        """(start, end) of each suffix in the packed row."""
        return list(pairwise(accumulate(map(len, self.suffixes), initial=len(self.prefix))))


def portions(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of suffixes in order, cut into runs of at most `max_tokens` tokens (but at least one suffix).

    The cost of attention over a packed row is quadratic. With 0, each is a run of its own.
    """
    runs: list[list[int]] = []
    room = 0
    for index, length in enumerate(lengths):
        if not runs or length > room:
            runs.append([])
            room = max_tokens
        runs[-1].append(index)
        room -= length
    return runs


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all rows share."""
    low, high = min(map(list, rows)), max(map(list, rows))
    differing = (index for index, (a, b) in enumerate(zip(low, high, strict=False)) if a != b)
    return next(differing, min(len(low), len(high)))


def group_neighbours(rows: Sequence[Sequence[int]]) -> tuple[list[SharedPrefix], list[list[int]]]:
    """Neighbouring rows with a common beginning as groups, and the row indices of each group.

    For example, the two orders of a pair share its context. A group grows only while its prefix does not shrink.
    """
    runs: list[list[int]] = []
    reach = 0  # the open group's prefix length; for a single row, the least that is worth sharing
    for index, row in enumerate(rows):
        if runs:
            same = min(common_prefix([rows[runs[-1][0]], row]), len(row) - 1, len(rows[runs[-1][0]]) - 1)
            if same >= reach:
                reach = same if len(runs[-1]) == 1 else reach
                runs[-1].append(index)
                continue
        runs.append([index])
        reach = MIN_SHARED
    groups = []
    for run in runs:
        first = rows[run[0]]
        cut = min(common_prefix([rows[i] for i in run]), min(len(rows[i]) for i in run) - 1)
        groups.append(SharedPrefix(tuple(first[:cut]), tuple(tuple(rows[i][cut:]) for i in run)))
    return groups, runs


def alone(rows: Sequence[Sequence[int]]) -> tuple[list[SharedPrefix], list[list[int]]]:
    """Like `group_neighbours`, with each row as a group of its own, for a model that does not pack."""
    groups = [SharedPrefix(tuple(row[:-1]), (tuple(row[-1:]),)) for row in rows]
    return groups, [[index] for index in range(len(rows))]


def shared_tokens(top: Top, rows: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens shared by all rows and worth computing once; each row keeps at least one token."""
    if len(rows) < 2 or not top.trunk.packs:
        return 0
    shared = min(common_prefix(rows), min(map(len, rows)) - 1)
    return shared if shared >= MIN_SHARED else 0


def run_prefix(top: Top, prefix: Sequence[int]) -> tuple[KVCache, Tensor]:
    """The KV cache of one text (one row), and its features (1, S, D) or ids (1, S)."""
    trunk, device = top.trunk, top.device
    cache = KVCache(trunk.cache_shapes, 1, len(prefix), trunk.dtype, device)
    capture = Capture(cache)
    features = trunk(torch.tensor([list(prefix)], device=device), capture)
    top(features, capture)
    return cache, features


@dataclass(frozen=True)
class Packed:
    """Right-padded packed rows: ids (B, T), positions (B, T), all below `max_position`, and their attention."""

    ids: Tensor
    positions: Tensor
    max_position: int
    attend: Attend


def pack(groups: Sequence[SharedPrefix], device: str | torch.device, before: KVCache | None = None) -> Packed:
    """Pack groups into rows; with one suffix each this is plain causal attention.

    `before` (one row) holds the keys and values of a text that precedes every group.
    """
    ids, _ = pad_right([[*g.prefix, *(t for s in g.suffixes for t in s)] for g in groups], 0, device)
    count, width = ids.shape
    start = 0 if before is None else before.slots
    positions = torch.arange(start, start + width).repeat(count, 1)
    blocked = None
    if any(len(g.suffixes) > 1 for g in groups):
        blocked = torch.zeros(count, width, width, dtype=torch.bool)
        for row, group in enumerate(groups):
            prefix = len(group.prefix)
            for first, end in group.spans():
                positions[row, first:] = torch.arange(start + prefix, start + prefix + width - first)
                blocked[row, first:end, prefix:first] = True
        blocked = blocked.to(device)
    positions = positions.to(device)
    if before is None:
        return Packed(ids, positions, width, Causal(blocked, None if blocked is None else positions))
    return Packed(ids, positions, start + width, AfterPrefix(before, width, blocked, positions))


def text_places(groups: Sequence[SharedPrefix], device: str | torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Where each text (prefix + one suffix) is in the packed rows, text by text.

    Returns rows (N,), positions (N, T) and lengths (N,) of the N texts; positions after a text's end are 0.
    """
    rows, places = [], []
    for row, group in enumerate(groups):
        for start, end in group.spans():
            rows.append(row)
            places.append([*range(len(group.prefix)), *range(start, end)])
    positions, lengths = pad_right(places, 0, device)
    return torch.tensor(rows, device=device), positions, lengths
