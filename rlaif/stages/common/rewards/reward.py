"""Rewards of responses: from reward models, rules on the text, or a labeler's own score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from rlaif.data.datamodule import PreferenceRow
from rlaif.errors import UserError
from rlaif.inference.rollouts import Rollout
from rlaif.labelers import Labeler, Unread
from rlaif.labelers.readout.readouts import Reading
from rlaif.models.weights import RewardMember
from rlaif.ops import empty_last
from rlaif.records import Sample, is_empty
from rlaif.stages.common.context import Context
from rlaif.stages.common.rewards.scale import RewardScale, scale_of_models
from rlaif.stages.common.scoring import score_pairs, sequence_scores

CHUNK = 64  # rollouts whose hidden states exist at once

Sides = tuple[Sequence[Sample], Sequence[Sample]]
"""Responses of two policies to the same prompts."""

SideRewards = list[tuple[float, float] | None]
"""Both rewards of each prompt's responses; None if one of the two has none."""


class Reward(Protocol):
    """Gives each response a number. `measures` are `rl/*` metrics of the last rollout.

    `unread`: the rows of the last rollout whose number stands in for one that could not be read.

    If it is a judgement (by a model, not a formula), an empty response gets less than every non-empty one in its
    batch, and as much as another empty one.
    """

    measures: dict[str, float]
    unread: Sequence[int]
    scale: RewardScale

    def __call__(self, rollout: Rollout) -> Tensor:
        """Rewards (N,)."""
        ...

    def of_pairs(self, sides: Sides, rows: Sequence[PreferenceRow]) -> SideRewards:
        """Rewards of both policies' responses; `rows` hold them with the trunk's features."""
        ...


class ModelReward:
    """The rewards of reward models on the policy's trunk, combined by `combine`: (M, ...) -> (...)."""

    def __init__(
        self, ctx: Context, members: Sequence[RewardMember], combine: Callable[[Tensor], Tensor]
    ) -> None:
        self._ctx, self._combine = ctx, combine
        self._members = [member.frozen_copy() for member in members]
        self.scale = scale_of_models([member.normalization for member in members])
        self.measures: dict[str, float] = {}
        self.unread: Sequence[int] = ()

    @torch.no_grad()
    def __call__(self, rollout: Rollout) -> Tensor:
        """Read from the rollout's own trunk features."""
        rows = []
        for member in self._members:
            chunks = zip(rollout.features.split(CHUNK), rollout.last.split(CHUNK), strict=True)
            scores = [sequence_scores(member.top, member.head, *chunk) for chunk in chunks]
            rows.append(torch.cat(scores) + member.shift)
        rewards = torch.stack(rows)
        if len(rows) > 1:
            self.measures = {"rl/reward_disagreement": float(rewards.std(dim=0, correction=0).mean())}
        return empty_last(self._combine(rewards), _empties(rollout.responses).to(rewards.device))

    def of_pairs(self, sides: Sides, rows: Sequence[PreferenceRow]) -> SideRewards:
        scores = torch.tensor(score_pairs(self._ctx, [(m.top, m.head) for m in self._members], rows))
        shifts = torch.tensor([member.shift for member in self._members])
        empty = torch.stack([_empties([s.response for s in side]) for side in sides], dim=1)
        return [(a, b) for a, b in empty_last(self._combine(scores + shifts[:, None, None]), empty).tolist()]


Rule = Callable[[Sequence[Sample], Sequence[Any]], list[float | None]]
"""(responses, keys of their noise) -> raw rewards, None if there is none."""


class RuleReward:
    """A reward that depends on the text or length alone, on `scale`. Every rollout must have one.

    `judges`: the rule is a model's judgement, so an empty response gets the least.
    """

    def __init__(self, rule: Rule, scale: RewardScale, *, judges: bool = False) -> None:
        self._rule, self.scale, self._judges = rule, scale, judges
        self.measures: dict[str, float] = {}
        self.unread: Sequence[int] = ()

    def __call__(self, rollout: Rollout) -> Tensor:
        rewards = torch.tensor(self._rewards(rollout.samples(), rollout.seeds))
        return empty_last(rewards, _empties(rollout.responses)) if self._judges else rewards

    def of_pairs(self, sides: Sides, rows: Sequence[PreferenceRow]) -> SideRewards:
        def score(side: Sequence[Sample]) -> list[float | None]:
            return self._rewards(side, [[s.prompt_id, s.response] for s in side])

        return _of_both(score, sides, judges=self._judges)

    def _rewards(self, samples: Sequence[Sample], keys: Sequence[Any]) -> list[float | None]:
        return [None if raw is None else self.scale.apply(raw) for raw in self._rule(samples, keys)]


class LabelerReward:
    """The labeler's own score of each response, on the reward's scale (direct RLAIF, Lee et al. 2023).

    A response whose score cannot be read gets the lowest of its rollout, so that nothing is gained by being
    unreadable. `check` raises UserError, with the cause, if too many cannot be read.
    """

    def __init__(self, labeler: Labeler, scale: RewardScale, *, check: Callable[[Unread], None]) -> None:
        self._labeler, self.scale, self._check = labeler, scale, check
        self.measures: dict[str, float] = {}
        self.unread: Sequence[int] = ()

    def __call__(self, rollout: Rollout) -> Tensor:
        spent = self._labeler.usd
        readings = self._readings(rollout.samples())
        unread = Unread.of(readings, min_mass=self._labeler.min_mass)
        scores = [self._scaled(reading) for reading in readings]
        read = [score for score in scores if score is not None]
        self.unread = [row for row, score in enumerate(scores) if score is None]
        self.measures = {
            "rl/reward_unparsed_rate": unread.unparsed / len(scores),
            "rl/reward_failed_rate": unread.failed / len(scores),
        }
        if spent is not None:
            self.measures["rl/usd"] = (self._labeler.usd or 0.0) - spent
        self._check(unread)
        if not read:
            raise UserError("reward=direct: none of an iteration's responses has a score that could be read")
        rewards = torch.tensor([min(read) if score is None else score for score in scores])
        return empty_last(rewards, _empties(rollout.responses))

    def of_pairs(self, sides: Sides, rows: Sequence[PreferenceRow]) -> SideRewards:
        return _of_both(self._scores, sides, judges=True)

    def _readings(self, samples: Sequence[Sample]) -> list[Reading]:
        return self._labeler.readings(
            [(sample.prompt, sample.response, sample.reference) for sample in samples]
        )

    def _scaled(self, reading: Reading) -> float | None:
        return None if reading.value is None else self.scale.apply(reading.value)

    def _scores(self, samples: Sequence[Sample]) -> list[float | None]:
        return [self._scaled(reading) for reading in self._readings(samples)]


def _of_both(
    score: Callable[[Sequence[Sample]], list[float | None]], sides: Sides, *, judges: bool
) -> SideRewards:
    found = list(zip(*(score(side) for side in sides), strict=True))
    read = [i for i, (a, b) in enumerate(found) if a is not None and b is not None]
    rewards = torch.tensor([found[i] for i in read], dtype=torch.float64).view(-1, 2)
    if read and judges:
        empty = torch.stack([_empties([side[i].response for i in read]) for side in sides], dim=1)
        rewards = empty_last(rewards, empty)
    both: SideRewards = [None] * len(found)
    for i, (a, b) in zip(read, rewards.tolist(), strict=True):
        both[i] = (a, b)
    return both


def _empties(responses: Sequence[str]) -> Tensor:
    """Which of the responses (N,) are empty."""
    return torch.tensor([is_empty(response) for response in responses], dtype=torch.bool)
