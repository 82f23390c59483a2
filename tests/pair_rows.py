"""Rows of pairs of which a test needs only a part: tensors without texts, or texts and labels without tensors."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rlaif.data.datamodule import PreferenceRow
from rlaif.records import Pair

PAIR = Pair("pair", "prompt", "say", "yes", "no", "dataset")


def tensor_row(
    prompt: Tensor, a: Tensor, b: Tensor, p_a: float = math.nan, weight: float | tuple[float, ...] = 1.0
) -> PreferenceRow:
    """A row of some pair."""
    return PreferenceRow(PAIR, prompt, a, b, p_a, weight)


def label_rows(
    pairs: Sequence[Pair], labels: Sequence[float | None], lengths: Sequence[tuple[int, int]] | None = None
) -> list[PreferenceRow]:
    """The pairs' rows with these labels (None: unlabelled) and with responses of these lengths in tokens."""
    return [
        PreferenceRow(pair, torch.zeros(1), torch.zeros(a), torch.zeros(b), math.nan if p is None else p)
        for pair, p, (a, b) in zip(pairs, labels, lengths or [(1, 1)] * len(pairs), strict=True)
    ]
