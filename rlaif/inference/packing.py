"""Several texts after one prefix as a single sequence: what they share runs once.

A row is prefix | suffix 1 | suffix 2 | ...; the suffixes do not see each other and their positions start
again after the prefix, so that each gives what it would give alone (a parity test holds this).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlaif.inference.batches import pad_right
from rlaif.inference.cache import AfterPrefix, KVCache
from rlaif.models.decoder import Attend, Causal, MaskedCausal


@dataclass(frozen=True)
class SharedPrefix:
    """Token ids that several suffixes follow. Suffixes are not empty; the prefix has at least one token."""

    prefix: tuple[int, ...]
    suffixes: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.prefix) + sum(len(suffix) for suffix in self.suffixes)

    def spans(self) -> list[tuple[int, int]]:
        """(start, end) of each suffix in the packed row."""
        spans, start = [], len(self.prefix)
        for suffix in self.suffixes:
            spans.append((start, start + len(suffix)))
            start += len(suffix)
        return spans


@dataclass(frozen=True)
class Packed:
    """Right-padded packed rows: ids (B, T), positions (B, T) all below `max_position`, and their attention."""

    ids: Tensor
    positions: Tensor
    max_position: int
    attend: Attend


def pack(groups: Sequence[SharedPrefix], device: str | torch.device, before: KVCache | None = None) -> Packed:
    """Pack groups into rows; with one suffix each this is plain causal attention.

    `before` holds what stands in front of every group: its one row's keys and values.
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
    attend: Attend
    if before is not None:
        attend = AfterPrefix(before, width, blocked)
    else:
        attend = Causal() if blocked is None else MaskedCausal(blocked)
    return Packed(ids, positions.to(device), start + width, attend)
