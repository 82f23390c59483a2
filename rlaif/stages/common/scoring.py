"""Rewards that a reward model gives to sequences and pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlaif.data.datamodule import (
    EncodedRow,
    PreferenceBatch,
    PreferenceRow,
    collate_preferences,
    collate_sequences,
)
from rlaif.inference.batches import forward_batches
from rlaif.inference.features import MAX_ROWS
from rlaif.models.flat import hidden_at
from rlaif.models.pairs import pair_attention
from rlaif.models.split import ScalarHead, Top
from rlaif.stages.common.context import Context

ROWS = 64  # that are scored at once


def sequence_scores(top: Top, head: ScalarHead, features: Tensor, last: Tensor) -> Tensor:
    """Reward (B,) of each sequence, read at its last token `last` (B,) (EOS if the response has one)."""
    reads = torch.arange(features.shape[1], device=last.device) == last[:, None]
    return head(hidden_at(top, features, reads))


def pair_scores(top: Top, head: ScalarHead, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
    """Rewards (B,) of a and of b; the prompt that they share runs once."""
    attend = pair_attention(batch.spans, batch.features.device)
    hidden = top(batch.features, attend, batch.positions, rows=batch.last.view(1, -1))
    reward_a, reward_b = head(hidden).view(-1, 2).unbind(dim=1)
    return reward_a, reward_b


@torch.no_grad()
def score_rows(ctx: Context, top: Top, head: ScalarHead, rows: Sequence[EncodedRow]) -> list[float]:
    """The score of each row in order, in the model's compute dtype, as `score_pairs` and RL have it."""
    device = ctx.model().device
    frozen, head, scores = top.frozen_copy(), head.to(device), []
    for start in range(0, len(rows), ROWS):
        batch = collate_sequences(rows[start : start + ROWS]).to(device)
        scores += sequence_scores(frozen, head, batch.features, batch.last).tolist()
    return scores


@torch.no_grad()
def score_pairs(
    ctx: Context, members: Sequence[tuple[Top, ScalarHead]], rows: Sequence[PreferenceRow]
) -> list[list[tuple[float, float]]]:
    """Rewards (of a, of b) of each pair in order, per member, computed in the model's compute dtype."""
    device = ctx.model().device
    frozen = [(top.frozen_copy(), head.to(device)) for top, head in members]
    scores = [[(0.0, 0.0)] * len(rows) for _ in members]
    for indices in forward_batches([len(row) for row in rows], device, max_rows=MAX_ROWS):
        batch = collate_preferences([rows[i] for i in indices]).to(device)
        for own, (top, head) in zip(scores, frozen, strict=True):
            rewards = torch.stack(pair_scores(top, head, batch), dim=1).tolist()
            for index, (a, b) in zip(indices, rewards, strict=True):
                own[index] = (a, b)
    return scores
