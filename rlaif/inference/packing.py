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


def pack(groups: Sequence[SharedPrefix], device: str | torch.device) -> Packed:
    """Pack groups into rows; with one suffix each this is plain causal attention."""
    ids, _ = pad_right([[*g.prefix, *(t for s in g.suffixes for t in s)] for g in groups], 0, device)
    count, width = ids.shape
    positions = torch.arange(width).repeat(count, 1)
    if all(len(g.suffixes) <= 1 for g in groups):
        return Packed(ids, positions.to(device), width, Causal())
    blocked = torch.zeros(count, width, width, dtype=torch.bool)
    for row, group in enumerate(groups):
        prefix = len(group.prefix)
        for start, end in group.spans():
            positions[row, start:] = torch.arange(prefix, prefix + width - start)
            blocked[row, start:end, prefix:start] = True
    return Packed(ids, positions.to(device), width, MaskedCausal(blocked.to(device)))
