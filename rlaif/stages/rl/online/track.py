"""What stage=rl tracks on fixed validation prompts: the reward that RL maximises, beside a held-out measure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from rlaif.errors import UserError
from rlaif.inference.rollouts import Rollout, RolloutCollector
from rlaif.models.split import Top
from rlaif.ops import by_first
from rlaif.options.read import plain
from rlaif.records import Pair, Prompt, Sample
from rlaif.stages.common.context import Context
from rlaif.stages.common.labeling import check_unread, filler_pairs, labeler_identity, labeling_work
from rlaif.stages.common.limits import drawing_work, prompt_tokens, response_tokens
from rlaif.stages.common.measures.text import rouge_l
from rlaif.stages.common.measures.win_rate import compare, win_rate_items
from rlaif.stages.common.rewards.kinds import reward_kind
from rlaif.stages.common.rewards.reward import CHUNK, Reward
from rlaif.stages.common.stage import Work
from rlaif.stages.common.training.logprobs import mean_log_ratio
from rlaif.stages.rl.online.held_out import unseen
from rlaif.stages.rl.online.options import rl_collector
from rlaif.stages.rl.online.tracker import Measured, Tracker, TrackOptions, point_metrics

_ONE = (
    "rl.track.keep=best measures the policy that it keeps again on other validation prompts, but there is only one: "
    "write a larger task.validation_fraction, or rl.track.keep=last"
)
Gold = Callable[[Rollout], list[float]]
"""The held-out measure of each response, NaN if it could not be read."""


def check_track(ctx: Context) -> None:
    """Raises UserError for options of `rl.track` that cannot work, before anything is built."""
    options = ctx.options.rl.track
    if not options.every:
        if options.patience is not None or options.keep == "best":
            raise UserError(
                "rl.track.patience and rl.track.keep=best need measurements, but rl.track.every makes none: "
                "write rl.track.every=2, say"
            )
        return
    if not _candidates(ctx):
        seen = len(unseen(ctx, ctx.task.validation)) < len(ctx.task.validation)
        new = " that the reward model was not trained on" if seen else ""
        raise UserError(
            f"rl.track.every={options.every} needs validation prompts{_with_references(ctx)}{new}, of which task "
            f"{ctx.options.task.name} has none: write a larger task.validation_fraction, or rl.track.every=null"
        )
    if options.keep == "best" and len({prompt.cluster for prompt in _candidates(ctx)}) < 2:
        raise UserError(_ONE)
    if options.judge == "judge":
        labeler_identity(ctx, ctx.options.judge_keys[0], ctx.options.seeds.eval)


def _with_references(ctx: Context) -> str:
    needed = ctx.options.rl.track.judge == "rouge" or reward_kind(ctx).references
    return " with references" if needed else ""


def _candidates(ctx: Context) -> list[Prompt]:
    """Validation prompts whose conversations the reward model, if there is one, was not trained on."""
    return [p for p in unseen(ctx, ctx.task.validation) if p.reference or not _with_references(ctx)]


def track_config(ctx: Context) -> dict[str, Any]:
    """The slice that the measurements depend on; empty if there are none."""
    options = plain(ctx.options.rl.track)
    if not options["every"]:
        return {}
    if options["judge"] == "judge":
        options["labeler"] = labeler_identity(ctx, ctx.options.judge_keys[0], ctx.options.seeds.eval)
        options["tie_margin"] = ctx.options.eval.tie_margin
    return {"track": options}


def track_work(ctx: Context, iterations: int) -> Work:
    """What measuring takes over a run of this many iterations, including its end."""
    options = ctx.options.rl.track
    if not options.every:
        return Work()
    prompts, times = _candidates(ctx)[: options.num_prompts], -(-iterations // options.every) + 1
    if options.keep == "best":
        times += 2  # the kept policy and the start, on other prompts
    scored = 3 * times * len(prompts) * (prompt_tokens(ctx) + response_tokens(ctx))
    work = drawing_work(ctx, len(prompts), ctx.options.rl.max_rows, times) + Work(scored=scored)
    if options.judge == "rouge":
        return work
    return work + labeling_work(
        ctx, ctx.options.judge_keys[0], ctx.options.seeds.eval, filler_pairs(ctx, prompts * times)
    )


@dataclass(frozen=True)
class _Measure:
    """Measures a policy on fixed prompts.

    The noise is that of the first iteration's rollouts, keyed by the prompts: two measurements differ only by what
    the policy has learnt. Responses are sampled as in training, so that the KL is that of training.
    """

    ctx: Context
    prompts: Sequence[Prompt]
    reference: Top
    reward: Reward

    def draw(self, top: Top) -> Rollout:
        """Responses of `top` to the prompts."""
        return self._collector.each(top.frozen_copy())

    def of(self, top: Top) -> Measured:
        gold, rollout = self._gold, self.draw(top)  # processes that train together sample together
        return by_first(lambda: self._measured(top, rollout, gold))

    def _measured(self, top: Top, rollout: Rollout, gold: Gold) -> Measured:
        golds = gold(rollout)
        read = [value for value in golds if not math.isnan(value)]
        if not read:
            raise UserError(
                "rl.track.judge=judge: none of the judge's answers could be read: choose another judge=, or "
                "write rl.track.judge=rouge"
            )
        kl = mean_log_ratio(top, self.reference, rollout.batches(CHUNK), self.ctx.options.rl.temperature)
        return float(self.reward(rollout).mean()), fmean(read), kl, golds

    @cached_property
    def _collector(self) -> RolloutCollector:
        return rl_collector(self.ctx, self.prompts)

    @cached_property
    def _gold(self) -> Gold:
        if self.ctx.options.rl.track.judge == "rouge":
            return _rouge
        return _against(self.ctx, self.draw(self.reference).samples())


def make_tracker(ctx: Context, policy: Top, reference: Top, reward: Reward) -> Tracker | None:
    """The configured tracker of `policy`, which starts as `reference`; None if nothing is to be tracked."""
    options = ctx.options.rl.track
    if not options.every:
        return None
    fixed, others = _tracked_prompts(ctx)
    measure, other = (_Measure(ctx, prompts, reference, reward) for prompts in (fixed, others))
    return Tracker(
        policy,
        lambda: measure.of(policy),
        TrackOptions(options.every, options.patience, options.keep),
        again=(lambda: (other.of(policy), other.of(reference))) if others else None,
    )


def _tracked_prompts(ctx: Context) -> tuple[list[Prompt], list[Prompt]]:
    """The fixed prompts, and others to measure the kept policy on if it is the best of several.

    They share no conversation; in that case at most half of the conversations are fixed.
    """
    options, prompts = ctx.options.rl.track, ctx.encoder.fitting(_candidates(ctx))
    if not prompts:
        raise UserError("no validation prompt fits task.max_prompt_tokens: write a higher limit")
    if options.keep != "best":
        return prompts[: options.num_prompts], []
    clusters = list(dict.fromkeys(prompt.cluster for prompt in prompts))
    first = set(clusters[: -(-len(clusters) // 2)])
    fixed = [prompt for prompt in prompts if prompt.cluster in first][: options.num_prompts]
    taken = {prompt.cluster for prompt in fixed}
    others = [prompt for prompt in prompts if prompt.cluster not in taken][: options.num_prompts]
    if not others:
        raise UserError(_ONE)
    return fixed, others


def kept_metrics(tracker: Tracker) -> dict[str, float]:
    """Put the policy to keep in place; its measurement for the summary, its iteration, and the start's."""
    kept, start = tracker.told()
    return {
        **point_metrics(kept),
        "rl/track_iteration": kept.iteration,
        "rl/track_proxy_start": start.proxy,
        "rl/track_gold_start": start.gold,
    }


def _rouge(rollout: Rollout) -> list[float]:
    return [rouge_l(sample.response, sample.reference or "") for sample in rollout.samples()]


def _against(ctx: Context, baseline: list[Sample]) -> Gold:
    """Win, tie or loss against the SFT policy's responses to the same prompts, counted as in `stage=eval`."""
    key = ctx.options.judge_keys[0]
    judge = ctx.labeler(key, ctx.options.seeds.eval, stored=True)

    def verdicts(rollout: Rollout) -> list[float]:
        sides = list(zip(rollout.samples(), baseline, strict=True))
        pairs = [Pair.between(a, b) for a, b in sides]
        judged = judge.label(pairs)
        check_unread(ctx, key, judged.unread, "the judge's judgements")
        tokens, margin = [(a.tokens, b.tokens) for a, b in sides], ctx.options.eval.tie_margin
        comparisons = compare(pairs, judged.preferences, tokens, tie_margin=margin)
        read = {row["id"]: row["eval/win_rate"] for row in win_rate_items(comparisons)}
        return [read.get(pair.id, math.nan) for pair in pairs]

    return verdicts
