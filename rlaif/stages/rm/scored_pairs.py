"""Held-out pairs with the scores of an ensemble of reward models: the rows behind every measure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

import torch
from scipy.special import expit

from rlaif.data.datamodule import PreferenceRow
from rlaif.models.weights import Normalization
from rlaif.ops import empty_last
from rlaif.records import Pair, is_empty
from rlaif.stages.common.measures.joining import agreement

Scores = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class ScoredPair:
    """One pair. `p_a` (the label) and `gold` are probabilities that a is better, None if unknown.

    Rewards are normalised and averaged over the members, as RL maximises them (an empty response has less than every
    text, and as much as another empty one); `logit` is their difference on the scale of training, so that
    sigmoid(logit) is the model's own probability that a is better. `disagreement` is the standard deviation of that
    probability over the members (None for a single one).
    """

    id: str
    prompt_id: str
    p_a: float | None
    gold: float | None
    reward_a: float
    reward_b: float
    logit: float
    disagreement: float | None
    tokens_a: int
    tokens_b: int
    group: str | None = None

    @property
    def cluster(self) -> str:
        """The conversation or prompt that the pair is resampled with."""
        return self.prompt_id if self.group is None else self.group

    @property
    def right(self) -> float | None:
        """1 if the rewards prefer the label's side, 0 if not, 0.5 if equal; None if the label prefers none."""
        return _met(self.reward_a - self.reward_b, self.p_a)

    @property
    def gold_right(self) -> float | None:
        """`right` against gold."""
        return _met(self.reward_a - self.reward_b, self.gold)

    @property
    def longer_right(self) -> float | None:
        """`right` of a rule that prefers the longer response."""
        return _met(self.tokens_a - self.tokens_b, self.p_a)


def _met(difference: float, target: float | None) -> float | None:
    if target is None or target == 0.5:
        return None
    return agreement(0.5 if difference == 0 else float(difference > 0), target)


def scored_pairs(
    rows: Sequence[PreferenceRow], members: Sequence[Scores], normalization: Sequence[Normalization]
) -> list[ScoredPair]:
    """Labelled rows with the members' scores: `members[m][i]` are member m's, as trained, of row i's (a, b).

    Members contribute their normalised rewards; the logit divides by their mean scale, which for one member restores
    the scale of training. Raises ValueError for scores that do not match the rows, or repeated ids.
    """
    sizes = [len(rows), *(len(scores) for scores in members)]
    if len(set(sizes)) > 1 or not members or len(members) != len(normalization):
        raise ValueError(f"rows and members' scores do not match: {sizes}")
    if len({row.pair.id for row in rows}) != len(rows):
        raise ValueError("pair ids repeat")
    scale = fmean(n.scale for n in normalization)
    rewards = _rewards([row.pair for row in rows], members, normalization)
    return [
        ScoredPair(
            row.pair.id,
            row.pair.prompt_id,
            None if math.isnan(row.p_a) else row.p_a,
            row.pair.gold,
            a,
            b,
            (a - b) / scale,
            pstdev(float(expit(x - y)) for x, y in scores) if len(scores) > 1 else None,
            len(row.a),
            len(row.b),
            row.pair.group,
        )
        for row, (a, b), *scores in zip(rows, rewards, *members, strict=True)
    ]


def _rewards(
    pairs: Sequence[Pair], members: Sequence[Scores], normalization: Sequence[Normalization]
) -> list[tuple[float, float]]:
    """Rewards of each pair's (a, b), normalised and averaged; an empty response's are below every text's."""
    if not pairs:
        return []
    parts = [
        n.scale * torch.tensor(scores, dtype=torch.float64) + n.shift
        for n, scores in zip(normalization, members, strict=True)
    ]
    empty = torch.tensor([[is_empty(pair.response_a), is_empty(pair.response_b)] for pair in pairs])
    return [(a, b) for a, b in empty_last(torch.stack(parts).mean(dim=0), empty).tolist()]
