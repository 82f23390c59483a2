"""RL fine-tuning of the SFT policy on the configured reward, with responses that it draws itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rlaif.data.datamodule import PromptCursor
from rlaif.data.encode import Cuts
from rlaif.errors import UserError
from rlaif.inference.rollouts import Rollout
from rlaif.models.split import ScalarHead, Top
from rlaif.models.weights import TOP_FILE, save_modules
from rlaif.ops import ALGORITHMS
from rlaif.options.read import plain
from rlaif.records import is_empty
from rlaif.stages.common.context import Context
from rlaif.stages.common.limits import cut_metrics, drawing_work, prompt_tokens, response_tokens
from rlaif.stages.common.measures.text import copy_rate, distinct_ngram_share
from rlaif.stages.common.policies import policy_top, sft_parent
from rlaif.stages.common.rewards.kinds import (
    NO_REWARD,
    check_reward,
    make_reward,
    reward_config,
    reward_parents,
    reward_work,
)
from rlaif.stages.common.rewards.reward import Reward
from rlaif.stages.common.sources import rl_prompts
from rlaif.stages.common.stage import Parents, Work
from rlaif.stages.common.training.history import HISTORY_FILE, write_history
from rlaif.stages.common.training.ranks import check_devices, training_together
from rlaif.stages.common.training.trainer import Advance, fit, make_trainer, optim_options
from rlaif.stages.rl.alarms import raise_alarms, review_policy
from rlaif.stages.rl.budget import drawn
from rlaif.stages.rl.family import Family
from rlaif.stages.rl.online.held_out import HeldOut, held_out_work, make_held_out
from rlaif.stages.rl.online.module import PPOModule
from rlaif.stages.rl.online.options import check_rl, rl_collector, rl_options
from rlaif.stages.rl.online.track import check_track, kept_metrics, make_tracker, track_config, track_work
from rlaif.stages.rl.online.tracker import Tracker
from rlaif.store import Artifact

FLAT = 0.98  # of the entropy of a uniform distribution
LAST = 3  # iterations averaged for the final figures
NOT_TRAINED = ("max_rows", "alarms", "track", "num_responses", "responses_per_iteration")
"""Keys of `rl` that do not change what is trained, or do so through others: `track_config`, and numbers of prompts."""


def iterations(ctx: Context, prompts: int) -> int:
    """Iterations for the configured passes over the prompts (at least one)."""
    options = ctx.options.rl
    return max(1, int(options.num_epochs * prompts) // options.prompts_per_iteration)


def _copy_rate(rollout: Rollout) -> float:
    pairs = zip(rollout.responses, rollout.prompts, strict=True)
    return fmean(copy_rate(response, prompt.prompt) for response, prompt in pairs)


RESPONSE_METRICS: dict[str, Callable[[Rollout], float]] = {
    "rl/copy_rate": _copy_rate,
    "rl/distinct_3": lambda rollout: distinct_ngram_share(rollout.responses, 3),
    "rl/empty_rate": lambda rollout: fmean(map(is_empty, rollout.responses)),
}
"""Measures of each iteration's responses."""


def _check(ctx: Context) -> None:
    check_rl(ctx.options.rl)
    if ctx.options.reward.kind == "none":
        raise UserError(NO_REWARD)
    check_devices(ctx, "rl.minibatch_rollouts", ctx.options.rl.minibatch_rollouts)
    check_reward(ctx)
    check_track(ctx)


@dataclass(frozen=True)
class Setting:
    """What an algorithm on the policy's own responses trains, what it draws, and what measures it.

    `rollouts` responses are drawn in each of `iterations` iterations: `collect` (iteration -> them), and `diagnose`
    measures them. `policy` starts as `reference`.
    """

    policy: Top
    reference: Top
    iterations: int
    rollouts: int
    collect: Callable[[int], Rollout]
    diagnose: Callable[[Rollout], dict[str, float]]
    tracker: Tracker | None
    held_out: HeldOut | None


def make_setting(
    ctx: Context, parents: Parents, cuts: Cuts, reward: Reward, samples_per_prompt: int
) -> Setting:
    """The setting of a job; `cuts` counts the prompts that are cut or left out."""
    options = ctx.options.rl
    prompts = rl_prompts(ctx, options.num_prompts, cuts)
    if not prompts:
        raise UserError("no prompt fits task.max_prompt_tokens: write a higher limit")
    count = iterations(ctx, len(prompts))
    collector = rl_collector(ctx, prompts, samples_per_prompt=samples_per_prompt)
    cursor = PromptCursor(len(prompts), options.prompts_per_iteration, ctx.options.seeds.rl)
    policy, reference = policy_top(ctx, parents), policy_top(ctx, parents).frozen_copy()
    tracker = make_tracker(ctx, policy, reference, reward)
    held_out = make_held_out(ctx, policy, reference, reward, count)
    current = [0]

    def collect(iteration: int) -> Rollout:
        current[0] = iteration
        # A copy in the compute dtype decodes without casting the master weights at every token.
        return collector.collect(policy.frozen_copy(), cursor.indices(iteration), iteration)

    def diagnose(rollout: Rollout) -> dict[str, float]:
        own = {name: measure(rollout) for name, measure in RESPONSE_METRICS.items()}
        own |= reward.measures  # before the reward scores the held-out responses
        return own | (held_out.at(current[0]) if held_out is not None else {})

    rollouts = options.prompts_per_iteration * samples_per_prompt
    return Setting(policy, reference, count, rollouts, collect, diagnose, tracker, held_out)


def _module(ctx: Context, parents: Parents, setting: Setting, reward: Reward) -> PPOModule:
    options, model = ctx.options.rl, ctx.model()
    updates = setting.iterations * options.ppo_epochs * setting.rollouts // options.minibatch_rollouts
    return PPOModule(
        setting.policy,
        None if options.value == "none" else ScalarHead(model.trunk.config.hidden_size),
        policy_top(ctx, parents) if options.value == "separate" else None,
        setting.reference,
        collect=setting.collect,
        reward=reward,
        diagnose=setting.diagnose,
        watch=lambda history: raise_alarms(ctx, history),
        tracker=setting.tracker,
        rollouts_per_iteration=setting.rollouts,
        options=rl_options(ctx),
        optim=optim_options(options, updates),
    )


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every metric that all rows have."""
    names = [name for name in rows[-1] if all(name in row for row in rows)]
    return {name: fmean(row[name] for row in rows) for name in names}


def train(ctx: Context, folder: Path, setting: Setting, module: Any, updated: str) -> dict[str, Any]:
    """Fit `module`, write the policy and the history into `folder`; the summary's metrics.

    `updated` is a metric that only the rows of iterations with updates have. The iteration at which `rl.max_kl` or
    the tracker stops has none: a shorter row.
    """
    trainer = make_trainer(ctx, folder / "work", max_epochs=setting.iterations, log_every=1, limit_val=False)
    planned = setting.iterations * setting.rollouts
    task = ctx.progress.task("RL (rollouts)", planned)
    with task as advance, training_together(ctx, "rl", folder):
        fit(trainer, module, folder / "work", progress=Advance(advance, planned))
    history: list[dict[str, float]] = module.history  # a row of metrics per iteration
    updates = [row for row in history if updated in row]
    rows: list[dict[str, Any]] = [{"step": i, **row} for i, row in enumerate(history)]
    tracked: dict[str, Any] = {}
    if setting.tracker is not None:
        rows += _measured_end(ctx, setting.tracker, len(updates))
        tracked = kept_metrics(setting.tracker)
    if setting.held_out is not None:
        tracked |= setting.held_out.told()  # on the policy that is kept
    save_modules(folder / TOP_FILE, {"top": setting.policy})
    write_history(folder / HISTORY_FILE, rows)
    metrics: dict[str, Any] = {**_means(updates[-LAST:]), **_means(history[-LAST:]), **tracked}
    metrics["rl/iterations"] = len(history)
    if "rl/usd" in metrics:
        metrics["rl/usd"] = sum(row.get("rl/usd", 0.0) for row in history)
    _say_flat(ctx, history[0]["rl/entropy"])
    return metrics


def told_reward(ctx: Context, reward: Reward, history: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The summary's metrics of the reward itself: where it started, and its scale."""
    if reward.scale.problem:
        ctx.warn("reward without a scale", reward.scale.problem)
    return {"rl/reward_start": history[0]["rl/reward"], **reward.scale.metrics()}


def _build(ctx: Context, folder: Path, parents: Parents) -> dict[str, Any]:
    cuts, reward = Cuts(), make_reward(ctx, parents)
    setting = make_setting(ctx, parents, cuts, reward, ctx.options.rl.samples_per_prompt)
    module, cut = _module(ctx, parents, setting, reward), cut_metrics(ctx, "rl", cuts, "prompts")
    metrics = train(ctx, folder, setting, module, "rl/ratio_first")
    metrics["rl/ratio_first"] = max(
        row["rl/ratio_first"] for row in module.history if "rl/ratio_first" in row
    )
    return metrics | told_reward(ctx, reward, module.history) | cut


def _say_flat(ctx: Context, entropy: float) -> None:
    """Warn of a policy, such as that of profile=smoke, that can show nothing about RL."""
    most = math.log(ctx.model().trunk.config.vocab_size)
    if entropy > FLAT * most:
        ctx.warn(
            "a policy that cannot learn",
            f"the policy samples tokens almost uniformly (entropy {entropy:.2f} of at most {most:.2f} nats per token), "
            "as a random model does: this run shows that the commands work, but no reward can be expected to rise; "
            "write profile=demo, or another model, to see it learn",
        )


def _measured_end(ctx: Context, tracker: Tracker, updates: int) -> list[dict[str, Any]]:
    """The history's row for the policy after its last update, unless the run stopped at a measurement of it."""
    if tracker.points[-1].iteration == updates:
        return []
    measured = tracker.measure(updates)
    if ctx.run is not None:
        ctx.run.log(measured, step=updates)
    return [{"step": updates, **measured}]


def _config(ctx: Context) -> dict[str, Any]:
    options = plain(ctx.options.rl)
    for key in NOT_TRAINED:
        options.pop(key, None)
    return {
        "rl": options | track_config(ctx),
        "reward": reward_config(ctx),
        "model": ctx.model_identity,
        "encoding": ctx.encoding,
    }


def _review(ctx: Context, policy: Artifact) -> dict[str, Any]:
    options = ctx.options.rl
    budget = drawn(ctx, policy, options.prompts_per_iteration * options.samples_per_prompt)
    return review_policy(ctx, policy) | budget


def _work(ctx: Context) -> Work:
    options = ctx.options.rl
    count = iterations(ctx, min(options.num_prompts, len(ctx.task.train)))
    rollouts = count * options.prompts_per_iteration * options.samples_per_prompt
    prompt, response = prompt_tokens(ctx), response_tokens(ctx)
    tokens = rollouts * (prompt + response)
    drawn = drawing_work(ctx, rollouts / count, options.max_rows, count)
    drawn = replace(drawn, forward=drawn.forward / options.samples_per_prompt)
    learnt = tokens / options.samples_per_prompt if ALGORITHMS[options.algorithm].chooses else tokens
    # Scored by the policy, the reference and a reward model.
    own = drawn + Work(trained=learnt * options.ppo_epochs, scored=3 * tokens)
    return own + reward_work(ctx, rollouts) + track_work(ctx, count) + held_out_work(ctx, count)


ONLINE = Family(
    parents=lambda ctx: (*reward_parents(ctx), *sft_parent(ctx)),
    config=_config,
    build=_build,
    work=_work,
    check=_check,
    review=_review,
)
