"""The rewards of `reward=` that RL maximises, each built from a job and its artifacts.

A new reward is an entry in `KINDS` (its function here or in a module of its own), and conf/reward/NAME.yaml.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from rlaif.data.datamodule import PreferenceRow
from rlaif.errors import UserError
from rlaif.inference.rollouts import Rollout
from rlaif.io import stable_uniform
from rlaif.labelers import Unread
from rlaif.models.weights import load_reward
from rlaif.ops import combine_members, length_reward
from rlaif.options.read import need, plain, refuse_others
from rlaif.records import Sample
from rlaif.stages.common.context import Context
from rlaif.stages.common.labeling import check_unread, filler_pairs, labeler_identity, labeling_work
from rlaif.stages.common.measures.text import rouge_l
from rlaif.stages.common.rewards.classifier import check_classifier, classifier_identity, text_scorer
from rlaif.stages.common.rewards.reward import (
    LabelerReward,
    ModelReward,
    Reward,
    RuleReward,
    SideRewards,
    Sides,
)
from rlaif.stages.common.rewards.scale import UNIT, RewardScale, anchor_count, check_scale, standardised
from rlaif.stages.common.stage import Parents, Work


def _model(ctx: Context, parents: Parents) -> Reward:
    mean = partial(combine_members, how="mean", coefficient=0.0)
    return ModelReward(ctx, load_reward(ctx.model(), parents["rm"].path), mean)


def _ensemble(ctx: Context, parents: Parents) -> Reward:
    options = ctx.options.reward
    combine = partial(combine_members, how=options.how, coefficient=options.coefficient)
    return ModelReward(ctx, load_reward(ctx.model(), parents["rm"].path), combine)


def _check_ensemble(ctx: Context) -> None:
    if ctx.options.rm.ensemble == 1:
        raise UserError(
            "reward=ensemble is over several reward models, but rm.ensemble=1 trains one: write rm.ensemble=4,"
            " say, or reward=rm"
        )


def _readout(ctx: Context) -> str:
    """`score` or `likelihood`. Raises UserError for a labeler that compares pairs."""
    readout = ctx.options.labeler.readout
    if not readout.pointwise:
        raise UserError(
            f"reward=direct needs a score of each response by itself, but labeler={ctx.options.labeler.name} compares"
            " two: write labeler=score or labeler=likelihood"
        )
    return readout.kind


def _direct(ctx: Context, parents: Parents) -> Reward:
    labeler = ctx.labeler("labeler", ctx.options.seeds.label, stored=True)

    def read(samples: Sequence[Sample]) -> list[float | None]:
        readings = labeler.readings(
            [(sample.prompt, sample.response, sample.reference) for sample in samples]
        )
        unread = Unread.of(readings, min_mass=labeler.min_mass)
        check_unread(ctx, "labeler", unread, "the scores that the reward is standardised on")
        return [reading.value for reading in readings]

    scale = standardised(ctx, read, own=_ONE_TO_TEN if _readout(ctx) == "score" else None)
    return LabelerReward(
        labeler, scale, check=partial(check_unread, ctx, "labeler", what="an iteration's scores")
    )


# The scale of direct RLAIF in Lee et al. 2023 (arXiv:2309.00267).
_ONE_TO_TEN = RewardScale("from -1 to 1: scores from 1 to 10, less 5.5, over 4.5", mean=5.5, sd=4.5)


def _check_direct(ctx: Context) -> None:
    check_scale(ctx, has_own=_readout(ctx) == "score")
    labeler_identity(ctx, "labeler", ctx.options.seeds.label)
    bound = ctx.options.labeler.min_alignment
    if bound is not None:
        raise UserError(
            f"labeler.min_alignment={bound} is not checked by reward=direct, which labels no gold pairs: look at"
            " stage=label first, and write labeler.min_alignment=null here"
        )


def _direct_identity(ctx: Context) -> dict[str, Any]:
    return {**plain(ctx.options.reward), "labeler": labeler_identity(ctx, "labeler", ctx.options.seeds.label)}


def _hub(ctx: Context, parents: Parents) -> Reward:
    score = text_scorer(ctx)
    return RuleReward(
        lambda samples, keys: [*score(samples)], standardised(ctx, score, own=None), judges=True
    )


def _check_hub(ctx: Context) -> None:
    check_classifier(ctx)
    check_scale(ctx, has_own=False)


def _rouge(ctx: Context, parents: Parents) -> Reward:
    def rule(samples: Sequence[Sample], keys: Sequence[Any]) -> list[float | None]:
        return [rouge_l(s.response, s.reference) if s.reference else None for s in samples]

    return RuleReward(rule, standardised(ctx, lambda samples: rule(samples, ()), own=UNIT, elsewhere=True))


def _check_rouge(ctx: Context) -> None:
    without = sum(1 for prompt in ctx.task.train if not prompt.reference)
    if without:
        raise UserError(
            f"reward=rouge needs references, but {without} of the {len(ctx.task.train)} training prompts of task "
            f"{ctx.options.task.name} have none: write another reward, such as reward=rm"
        )
    check_scale(ctx, has_own=True)


def _length(ctx: Context, parents: Parents) -> Reward:
    limit, target = ctx.options.task.max_response_tokens, ctx.options.reward.target

    def rule(samples: Sequence[Sample], keys: Sequence[Any]) -> list[float | None]:
        tokens = torch.tensor([sample.tokens for sample in samples])
        return [*length_reward(tokens, limit=limit, target=target).tolist()]

    return RuleReward(rule, standardised(ctx, lambda samples: rule(samples, ()), own=UNIT))


def _check_length(ctx: Context) -> None:
    limit, target = ctx.options.task.max_response_tokens, ctx.options.reward.target
    if target is not None and target > limit:
        raise UserError(
            f"reward.target={target} is longer than a response can be: write a whole number from 1 to "
            f"task.max_response_tokens={limit}, or null"
        )
    check_scale(ctx, has_own=True)


def _random(ctx: Context, parents: Parents) -> Reward:
    seed = ctx.options.seeds.rl

    def rule(samples: Sequence[Sample], keys: Sequence[Any]) -> list[float | None]:
        return [2 * stable_uniform("reward", seed, key) - 1 for key in keys]

    # The standard deviation of uniform noise from -1 to 1, whatever the responses.
    return RuleReward(rule, RewardScale("noise of mean 0 and standard deviation 1", sd=math.sqrt(1 / 3)))


class _NoReward:
    """For policies that learn from preferences themselves: no pair of responses has rewards."""

    measures: dict[str, float] = {}
    unread: Sequence[int] = ()
    scale = RewardScale("no reward")

    def __call__(self, rollout: Rollout) -> Tensor:
        raise UserError(NO_REWARD)

    def of_pairs(self, sides: Sides, rows: Sequence[PreferenceRow]) -> SideRewards:
        return [None] * len(rows)


NO_REWARD = (
    "reward=none gives RL on rollouts nothing to maximise: write reward=rm, or rl=dpo or rl=online_dpo, which learn "
    "from pairs"
)


@dataclass(frozen=True)
class RewardKind:
    """A reward in words, how it is created, the stages whose artifacts it reads, and what its options must be.

    `needs`: the keys of `reward` that it reads. `identity` is what it depends on besides those artifacts.
    `by_labeler`: it is the labeler's own judgement, and costs as much. `references`: prompts without a reference have
    no reward. `from_labels`: the policy learns from labelled pairs, by a reward model or by itself.
    """

    words: str
    make: Callable[[Context, Parents], Reward]
    parents: tuple[str, ...] = ()
    check: Callable[[Context], None] = lambda ctx: None
    identity: Callable[[Context], dict[str, Any]] = lambda ctx: plain(ctx.options.reward)
    needs: tuple[str, ...] = ()
    by_labeler: bool = False
    references: bool = False
    from_labels: bool = False

    def pleases_labeler(self, labels: str) -> bool:
        """Whether the labeler's verdicts are behind it, if pairs carry the labels of `rm.labels=labels`."""
        return self.by_labeler or (self.from_labels and labels in ("ai", "mixed", "ai_then_gold"))


_MODEL = "the score of a reward model that learnt from pairwise preferences"
_MODELS = "a cautious score of several reward models that learnt from pairwise preferences"
_ELSEWHERE = "the score of a reward model that was trained elsewhere"
_DIRECT, _ROUGE_L = "a labeler's own score of each response", "ROUGE-L against the task's references"
_NONE = "no reward: the policy learnt from labelled pairs"
_SCALED = ("normalize_rows",)
_CLASSIFIER = ("name", "revision", "format", "max_tokens", "dtype", "trust_remote_code", "normalize_rows")
KINDS: dict[str, RewardKind] = {
    "rm": RewardKind(_MODEL, _model, parents=("rm",), from_labels=True),
    "ensemble": RewardKind(
        _MODELS,
        _ensemble,
        parents=("rm",),
        check=_check_ensemble,
        needs=("how", "coefficient"),
        from_labels=True,
    ),
    "none": RewardKind(_NONE, lambda ctx, parents: _NoReward(), from_labels=True),
    "hub": RewardKind(_ELSEWHERE, _hub, check=_check_hub, identity=classifier_identity, needs=_CLASSIFIER),
    "direct": RewardKind(
        _DIRECT, _direct, check=_check_direct, identity=_direct_identity, needs=_SCALED, by_labeler=True
    ),
    "rouge": RewardKind(_ROUGE_L, _rouge, check=_check_rouge, needs=_SCALED, references=True),
    "length": RewardKind(
        "a reward of length alone", _length, check=_check_length, needs=("target", *_SCALED)
    ),
    "random": RewardKind("noise, as a control", _random),
}
"""By `reward.kind`."""


def reward_kind(ctx: Context) -> RewardKind:
    """The configured kind. Raises UserError for one that does not exist."""
    kind = ctx.options.reward.kind
    if kind not in KINDS:
        raise UserError(f"reward.kind={kind} is not known: write reward= and one of {', '.join(KINDS)}")
    return KINDS[kind]


def make_reward(ctx: Context, parents: Parents) -> Reward:
    """The configured reward; `parents` holds at least the artifacts that `reward_parents` names."""
    return reward_kind(ctx).make(ctx, parents)


def check_reward(ctx: Context) -> None:
    """Raises UserError for options that the reward cannot have, before anything is built."""
    kind, own = reward_kind(ctx), ctx.options.reward
    need(own, "reward", kind.needs, f"reward={own.kind}")
    refuse_others(own, "reward", ("normalize_rows", *kind.needs), f"reward={own.kind}")
    kind.check(ctx)


def reward_parents(ctx: Context) -> tuple[str, ...]:
    """The stages whose artifacts the reward reads."""
    return reward_kind(ctx).parents


def reward_config(ctx: Context) -> dict[str, Any]:
    """The slice that the reward depends on besides those artifacts."""
    return reward_kind(ctx).identity(ctx)


def reward_work(ctx: Context, responses: int) -> Work:
    """What the labeler would read, and cost, to score this many responses and those that set their scale.

    Nothing for any other reward.
    """
    if not reward_kind(ctx).by_labeler:
        return Work()
    prompts = islice(cycle(ctx.task.train), (responses + anchor_count(ctx)) // 2)
    return labeling_work(ctx, "labeler", ctx.options.seeds.label, filler_pairs(ctx, list(prompts)))
