"""Ragged token lists as right-padded batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Padded tokens per forward pass without gradients: enough to keep two cores busy, few enough to stay in their caches;
# an accelerator needs `ACCELERATOR_SHARE` times as many.
FORWARD_TOKENS = 3072
ACCELERATOR_SHARE = 8


def pad_right(
    rows: Sequence[Sequence[int]], pad: int, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor]:
    """Ids (B, T) and lengths (B,) of ragged rows."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), int(lengths.max())), pad, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.as_tensor(row, dtype=torch.long)
    return ids.to(device), lengths.to(device)


def length_buckets(lengths: Sequence[int], *, max_tokens: int, max_rows: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first.

    A batch holds at most `max_rows` rows and `max_tokens` padded tokens (but at least one row). The batches
    depend only on the lengths.
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


def forward_batches(
    lengths: Sequence[int], device: str | torch.device, *, max_rows: int = 64
) -> Iterator[list[int]]:
    """`length_buckets` sized for forward passes on `device`; `max_rows` is the limit for a CPU."""
    share = 1 if torch.device(device).type == "cpu" else ACCELERATOR_SHARE
    return length_buckets(lengths, max_tokens=FORWARD_TOKENS * share, max_rows=max_rows * share)
