"""Ragged token lists as right-padded batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def pad_right(
    rows: Sequence[Sequence[int]], pad: int, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor]:
    """(ids (B, T), lengths (B,)) of ragged rows."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), int(lengths.max())), pad, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.as_tensor(row, dtype=torch.long)
    return ids.to(device), lengths.to(device)


def length_buckets(lengths: Sequence[int], *, max_tokens: int, max_rows: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first.

    A batch holds at most `max_rows` rows and `max_tokens` padded tokens (but at least one row). The batches
    depend on the lengths alone.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batch: list[int] = []
    for index in order:
        widest = lengths[batch[0]] if batch else lengths[index]
        if batch and (len(batch) == max_rows or widest * (len(batch) + 1) > max_tokens):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
