"""The scale of a reward: 1 is one standard deviation over references, whatever the reward is made of.

Penalties (`rl.missing_eos_penalty`), `rl.beta` and RL's gains are on this scale, so that they weigh as much against a
length reward as against a reward model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlaif.errors import UserError
from rlaif.models.weights import Normalization
from rlaif.records import Pair, Prompt, Sample, is_empty
from rlaif.stages.common.context import Context

_NO_SPREAD = 1e-6  # relative to a reward's size: smaller differences are rounding

Scores = Callable[[Sequence[Sample]], Sequence[float | None]]
"""Raw scores of responses, None if there is none."""


@dataclass(frozen=True)
class RewardScale:
    """reward = (raw - mean) / sd. `words` say where the two come from.

    `known` is False if they are not a single pair. `problem` says why the scale is not that of references although it
    should be.
    """

    words: str
    mean: float = 0.0
    sd: float = 1.0
    known: bool = True
    problem: str = ""

    def apply(self, raw: float) -> float:
        """The reward of a raw score."""
        return (raw - self.mean) / self.sd

    def metrics(self) -> dict[str, Any]:
        """The scale's entries in the summary."""
        numbers = {"rl/reward_raw_mean": self.mean, "rl/reward_raw_sd": self.sd} if self.known else {}
        return {"rl/reward_scale": self.words, **numbers}


UNIT = RewardScale("as it comes, from 0 to 1")


def scale_of_models(normalizations: Sequence[Normalization]) -> RewardScale:
    """The scale that stage=rm has given its members: each is standardised by itself."""
    words = "mean 0, standard deviation 1 on references or preferred responses, by stage=rm"
    if len(normalizations) > 1:
        return RewardScale(f"each of {len(normalizations)} members: {words}", known=False)
    (one,) = normalizations
    return RewardScale(words, -one.shift / one.scale, 1 / one.scale)


def standardised(
    ctx: Context, score: Scores, *, own: RewardScale | None, elsewhere: bool = False
) -> RewardScale:
    """The scale on which the responses of `anchors` have mean 0 and (population) standard deviation 1.

    They are those of the validation prompts, and of the training prompts too if there are fewer than two or they have
    no spread. If there is no spread at all, `own`, the natural scale of the scores (None: they may be of any size), is
    used and a `problem` noted; without it, UserError is raised. `elsewhere` pairs each reference with another prompt:
    for scores against the prompt's own reference, which every reference would match in full.
    """
    if not ctx.options.reward.normalize_rows:
        return own or RewardScale("as it comes")
    problem = ""
    for samples, what in (
        anchors(ctx, ctx.task.validation, elsewhere),
        anchors(ctx, (*ctx.task.validation, *ctx.task.train), elsewhere),
    ):
        scores = [value for value in score(samples) if value is not None] if len(samples) > 1 else []
        if len(scores) < 2:
            problem = _too_few(ctx, len(scores))
            continue
        found = Normalization.of(scores)
        mean, sd = -found.shift / found.scale, 1 / found.scale
        if sd > _NO_SPREAD * max(1.0, abs(mean)):
            return RewardScale(f"mean 0, standard deviation 1 on {len(scores)} {what}", mean, sd)
        problem = (
            f"reward={ctx.options.reward.kind} gives all {len(scores)} {what} the same, {mean:.4g}: they have no "
            "spread to normalise by"
        )
    return _fallback(own, problem)


def _fallback(own: RewardScale | None, problem: str) -> RewardScale:
    if own is None:
        raise UserError(f"{problem}; write reward.normalize_rows=0 for scores as they come")
    return replace(own, problem=f"{problem}, so penalties and the KL may weigh more than the reward, or less")


def anchors(ctx: Context, prompts: Sequence[Prompt], elsewhere: bool) -> tuple[list[Sample], str]:
    """The responses that rewards are standardised on, as if the policy had written them, and what they are.

    References of `prompts` or, without any, the preferred responses of the task's pairs (both responses if a pair
    prefers neither).
    """
    rows = ctx.options.reward.normalize_rows
    prompts = ctx.encoder.fitting([p for p in prompts if p.reference], references=True, limit=rows)
    if len(prompts) > 1 or elsewhere:
        texts = [p.reference or "" for p in prompts]
        if elsewhere:
            texts = texts[1:] + texts[:1]
        told = "references, each of another prompt" if elsewhere else "references"
        return [
            _written(ctx, Sample(p.id, p.prompt, text, 0, True, p.reference))
            for p, text in zip(prompts, texts, strict=True)
        ], told
    written = [
        _written(ctx, Sample(pair.prompt_id, pair.prompt, text, 0, True))
        for pair in ctx.encoder.fitting(ctx.task.pairs, limit=rows)
        for text in _preferred(pair)
        if not is_empty(text)
    ]
    return written[:rows], "responses of the task's pairs"


def anchor_count(ctx: Context) -> int:
    """About how many responses would be scored for a scale: nothing is encoded for an estimate."""
    splits = ctx.task.validation, ctx.task.train
    validation, train = (sum(bool(p.reference) for p in rows) for rows in splits)
    found = validation if validation > 1 else validation + train
    return min(ctx.options.reward.normalize_rows, found if found > 1 else len(ctx.task.pairs))


def _written(ctx: Context, sample: Sample) -> Sample:
    """The sample with the token count and the end that its text has once encoded."""
    ids = ctx.encoder.response(sample.response)
    return replace(sample, tokens=len(ids), finished=ids[-1] == ctx.encoder.eos_id)


def _preferred(pair: Pair) -> tuple[str, ...]:
    if pair.gold is None or pair.gold == 0.5:
        return pair.response_a, pair.response_b
    return (pair.response_a if pair.gold > 0.5 else pair.response_b,)


def check_scale(ctx: Context, *, has_own: bool) -> None:
    """Raises UserError if there is nothing to standardise on and the scores have no natural scale."""
    rows = ctx.options.reward.normalize_rows
    if rows < 0 or rows == 1:
        raise UserError(
            f"reward.normalize_rows={rows} gives no spread to normalise by: write 2 or more, or 0 for scores as they "
            "come"
        )
    if rows and not has_own and anchor_count(ctx) < 2:
        _fallback(None, _too_few(ctx, anchor_count(ctx)))


def _too_few(ctx: Context, count: int) -> str:
    return (
        f"reward={ctx.options.reward.kind} is standardised on the task's references, or on the responses of its pairs, "
        f"of which task {ctx.options.task.name} has {count} to score"
    )
