"""Ragged rows packed without padding, if that costs less."""

from __future__ import annotations

import torch
from torch import Tensor

from rlaif.models.pairs import PairCausal
from rlaif.models.split import Top

# What a separate row costs in a layer's attention, in weights per token: its many small products take as long as 30 to
# 65 million multiplications in large ones (96 positions, both passes, two cores, bf16).
ROW_COST = 30e6


def hidden_at(top: Top, features: Tensor, reads: Tensor) -> Tensor:
    """Normalised hidden states (N, D) at the N positions that `reads` (B, T) marks, row by row.

    Every row must be read somewhere; what comes after its last read position does not matter. The last layer runs only
    where it is read. On a CPU, rows are packed if their padding would cost more than attention row by row; otherwise,
    on an accelerator, and for a model that takes whole texts only, they are padded.
    """
    lengths = _lengths(reads)
    padding = reads.numel() - int(lengths.sum())
    worth = padding * top.trunk.config.layer_weights > ROW_COST * len(reads)
    packed = worth and features.device.type == "cpu" and top.trunk.packs
    run = _flat if packed else _padded
    return run(top, features, reads)


def _lengths(reads: Tensor) -> Tensor:
    """The number of positions (B,) of each row up to the last that is read."""
    places = torch.arange(1, reads.shape[1] + 1, device=reads.device)
    return (places * reads).amax(dim=1)


def _flat(top: Top, features: Tensor, reads: Tensor) -> Tensor:
    places = torch.arange(reads.shape[1], device=reads.device).expand_as(reads)
    lengths = _lengths(reads)
    inside = places < lengths[:, None]
    ends = lengths.cumsum(0).tolist()
    spans = [(start, end, end, end) for start, end in zip([0, *ends], ends, strict=False)]
    hidden = top(
        features[inside][None],
        PairCausal(spans),
        places[inside][None],
        reads.shape[1],
        rows=reads[inside].nonzero().view(1, -1),
    )
    return hidden[0]


def _padded(top: Top, features: Tensor, reads: Tensor) -> Tensor:
    counts, length = reads.sum(dim=1), reads.shape[1]
    # A row's positions first, then others that make all rows equally long. Keys differ: not every device sorts stably.
    places = torch.arange(length, device=reads.device)
    rows = torch.where(reads, places, places + length).argsort(dim=1)[:, : int(counts.max())]
    read = torch.arange(rows.shape[1], device=rows.device) < counts[:, None]
    return top(features, rows=rows)[read]
