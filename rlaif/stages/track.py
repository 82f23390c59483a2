"""What stage=ppo tracks on fixed validation prompts: the reward that RL maximises beside a held-out measure."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

from rlaif.errors import UserError
from rlaif.evaluation import compare, rouge_l, win_rate_items
from rlaif.inference.sampler import Decoding
from rlaif.models.split import Top
from rlaif.modules import Tracker, TrackOptions, rollout_kl
from rlaif.modules.tracker import point_metrics
from rlaif.ops import by_first
from rlaif.records import Prompt, Sample
from rlaif.rollout import Rollout, RolloutCollector
from rlaif.stages.context import Context, plain
from rlaif.stages.graph import Work
from rlaif.stages.label import check_unread, filler_pairs, labeler_identity, labeling_work
from rlaif.stages.rewards import Reward
from rlaif.stages.sample import sampled_pair
from rlaif.stages.sizes import prompt_tokens, response_tokens

JUDGES = ("rouge", "judge")
KEEP = ("last", "best")
Gold = Callable[[Rollout], float]


def check_track(ctx: Context) -> None:
    """Raises UserError for options of `rl.track` that cannot be had, before anything is built."""
    node = ctx.cfg.rl.track
    for key, known in (("judge", JUDGES), ("keep", KEEP)):
        if node[key] not in known:
            raise UserError(f"rl.track.{key}={node[key]} is not known: write {' or '.join(known)}")
    if not node.every:
        if node.patience is not None or node.keep == "best":
            raise UserError(
                "rl.track.patience and rl.track.keep=best go by measurements, and rl.track.every makes none: "
                "write rl.track.every=2, say"
            )
        return
    if not _candidates(ctx):
        raise UserError(
            f"rl.track.every={node.every} needs validation prompts{_with_references(ctx)}, of which task "
            f"{ctx.cfg.task.name} has none: write a larger task.validation_fraction, or rl.track.every=null"
        )
    if node.judge == "judge":
        labeler_identity(ctx, "judge", ctx.cfg.seeds.eval)


def _with_references(ctx: Context) -> str:
    needed = "rouge" in (ctx.cfg.rl.track.judge, ctx.cfg.reward.kind)
    return " with references" if needed else ""


def _candidates(ctx: Context) -> list[Prompt]:
    return [p for p in ctx.task.validation if p.reference or not _with_references(ctx)]


def track_config(ctx: Context) -> dict[str, Any]:
    """The slice that the measurements depend on; nothing where there are none."""
    node = plain(ctx.cfg.rl.track)
    if not node["every"]:
        return {}
    if node["judge"] == "judge":
        node["labeler"] = labeler_identity(ctx, "judge", ctx.cfg.seeds.eval)
        node["tie_margin"] = ctx.cfg.eval.tie_margin
    return {"track": node}


def track_work(ctx: Context, iterations: int) -> Work:
    """What measuring takes over a run of so many iterations, its end included."""
    node = ctx.cfg.rl.track
    if not node.every:
        return Work()
    prompts, times = _candidates(ctx)[: node.num_prompts], -(-iterations // node.every) + 1
    tokens, responses = prompt_tokens(ctx) + response_tokens(ctx), times * len(prompts)
    work = Work(forward=3 * responses * tokens, decoded=responses * response_tokens(ctx))
    if node.judge == "rouge":
        return work
    judging = labeling_work(ctx, "judge", ctx.cfg.seeds.eval, filler_pairs(ctx, prompts * times))
    local = judging.forward if judging.seconds is None else 0.0
    return Work(forward=work.forward + local, decoded=work.decoded, usd=judging.usd)


def make_tracker(ctx: Context, policy: Top, reference: Top, reward: Reward) -> Tracker | None:
    """The configured tracker of `policy`; None where nothing is to be tracked.

    The noise is that of the first iteration's rollouts, keyed by the prompts: two measurements differ by what
    the policy has learnt alone. Responses are sampled as in training, so that the KL is that of training.
    """
    node = ctx.cfg.rl.track
    if not node.every:
        return None
    prompts = ctx.encoder.fitting(_candidates(ctx), limit=node.num_prompts)
    if not prompts:
        raise UserError("no validation prompt fits task.max_prompt_tokens: write a higher limit")
    temperature = ctx.cfg.rl.temperature
    collector = RolloutCollector(
        prompts,
        [ctx.encoder.prompt(p.prompt) for p in prompts],
        ctx.encoder.decode,
        Decoding(ctx.cfg.task.max_response_tokens, temperature),
        eos_ids=ctx.model().eos_ids,
        samples_per_prompt=1,
        max_rows=ctx.cfg.rl.max_rows,
        seed=ctx.cfg.seeds.rl,
    )

    def draw(top: Top) -> Rollout:
        return collector.collect(top, range(len(prompts)), 0)

    gold = _rouge if node.judge == "rouge" else _against(ctx, draw(reference).samples())

    def measure() -> tuple[float, float, float]:
        rollout = draw(policy.frozen_copy())
        return by_first(
            lambda: (
                float(reward(rollout).mean()),
                gold(rollout),
                rollout_kl(policy, reference, rollout, temperature),
            )
        )

    return Tracker(policy, measure, TrackOptions(node.every, node.patience, node.keep))


def kept_metrics(tracker: Tracker) -> dict[str, float]:
    """Puts the policy to keep in place: its measurement for the summary, and where it stood."""
    kept, start = tracker.keep(), tracker.points[0]
    return {
        **point_metrics(kept),
        "ppo/track_iteration": kept.iteration,
        "ppo/track_proxy_start": start.proxy,
        "ppo/track_gold_start": start.gold,
    }


def _rouge(rollout: Rollout) -> float:
    """Mean ROUGE-L against the references."""
    return fmean(rouge_l(sample.response, sample.reference or "") for sample in rollout.samples())


def _against(ctx: Context, baseline: list[Sample]) -> Gold:
    """Win rate over the SFT policy's responses to the same prompts, as `stage=eval` counts it."""
    judge = ctx.labeler("judge", ctx.cfg.seeds.eval, stored=True)

    def win_rate(rollout: Rollout) -> float:
        sides = list(zip(rollout.samples(), baseline, strict=True))
        pairs = [sampled_pair(a, b) for a, b in sides]
        judged = judge.label(pairs)
        check_unread(ctx, "judge", judged.unread, "the judge's judgements")
        comparisons = compare(
            pairs,
            judged.preferences,
            [(a.tokens, b.tokens) for a, b in sides],
            tie_margin=ctx.cfg.eval.tie_margin,
        )
        verdicts = [row["eval/win_rate"] for row in win_rate_items(comparisons)]
        if not verdicts:
            raise UserError(
                "rl.track.judge=judge: none of the judge's answers could be read: choose another judge=, or "
                "write rl.track.judge=rouge"
            )
        return fmean(verdicts)

    return win_rate
