"""`rl=online_dpo`: the SFT policy, trained on pairs that it draws itself and that are labelled as it trains.

Guo et al. 2024 (arXiv:2402.04792), "Direct Language Model Alignment from Online AI Feedback". With `reward=none` the
job's labeler prefers one response of each pair; with any other reward its difference does.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from rlaif.data.encode import Cuts
from rlaif.errors import UserError
from rlaif.ops import PREFERENCE_LOSSES, PointLoss
from rlaif.options.read import need, plain
from rlaif.options.training import ON_PAIRS
from rlaif.stages.common.context import Context
from rlaif.stages.common.labeling import filler_pairs, labeler_identity, labeling_work, trust_gate
from rlaif.stages.common.limits import cut_metrics, drawing_work, prompt_tokens, response_tokens
from rlaif.stages.common.people import need_references
from rlaif.stages.common.policies import sft_parent
from rlaif.stages.common.preferences.data import label_source
from rlaif.stages.common.preferences.labels import LabelSource, corrupted
from rlaif.stages.common.rewards.kinds import (
    check_reward,
    make_reward,
    reward_config,
    reward_parents,
    reward_work,
)
from rlaif.stages.common.stage import Parents, Work
from rlaif.stages.common.training.ranks import check_devices
from rlaif.stages.common.training.trainer import check_training, optim_options
from rlaif.stages.rl.alarms import raise_alarms, review_policy
from rlaif.stages.rl.budget import drawn
from rlaif.stages.rl.family import Family
from rlaif.stages.rl.online.build import Setting, iterations, make_setting, told_reward, train
from rlaif.stages.rl.online.held_out import held_out_work
from rlaif.stages.rl.online.options import check_penalties
from rlaif.stages.rl.online.track import check_track, track_config, track_work
from rlaif.stages.rl.online_pairs.labels import SPENT, Label, LabelerLabels, reward_labels
from rlaif.stages.rl.online_pairs.module import TRAINED, OnlinePairsModule, OnlinePairsOptions
from rlaif.stages.rl.pair_step import check_pair_loss, pair_knobs
from rlaif.store import Artifact

OWN = (
    *("algorithm", "loss", "num_epochs", "lr", "weight_decay", "eps", "schedule", "warmup_fraction"),
    *("gradient_clip", "beta", "num_prompts", "prompts_per_iteration", "ppo_epochs", "temperature", "max_kl"),
    *ON_PAIRS,
)
"""The keys of `rl` that are read here, whoever labels."""
OF_REWARDS = ("missing_eos_penalty", "missing_eos_score", "length_penalty", "held_out")
"""Those that are read if a reward labels."""
LABELS = ("label_noise", "min_confidence", "confidence_weight", "hard_labels")
"""The keys of `rm` that are read here if the labeler labels."""
COUNTS = (TRAINED, "rl/equal_dropped", "rl/unread_dropped", "rl/dropped_pairs", "rl/flipped_pairs")
SUMMED = (*COUNTS, *SPENT)
"""Metrics whose summary is the sum over all iterations."""


def _by_labeler(ctx: Context) -> bool:
    """Whether the labeler labels, and no reward."""
    return ctx.options.reward.kind == "none"


def _check(ctx: Context) -> None:
    options = ctx.options.rl
    need(options, "rl", (*OWN, *OF_REWARDS, "track", "alarms"), "rl=online_dpo")
    check_training("rl", options)
    check_devices(ctx, "rl.batch_size", options.batch_size)
    check_pair_loss(options, "online_dpo")
    if isinstance(PREFERENCE_LOSSES[options.loss], PointLoss):
        raise UserError(
            f"rl.loss={options.loss} compares with responses to other prompts, which rl=online_dpo does not run: write "
            "another rl.loss, such as sigmoid, or rl=dpo"
        )
    check_reward(ctx)
    check_penalties(options)
    if _by_labeler(ctx):
        _check_labeler(ctx)
    check_track(ctx)


def _check_labeler(ctx: Context) -> None:
    need_references(ctx, "labeler")
    labeler_identity(ctx, "labeler", ctx.options.seeds.label)
    rm, bound = ctx.options.rm, ctx.options.labeler.min_alignment
    if rm.labels != "ai":
        raise UserError(
            f"rm.labels={rm.labels}: rl=online_dpo has its own responses labelled, about which nobody but the labeler "
            "is asked: write rm.labels=ai (labeler=reference stands in for people), or reward=rm for a reward model of "
            "such labels"
        )
    if rm.n is not None:
        raise UserError(
            f"rm.n={rm.n} is a number of pairs that exist before training, but rl=online_dpo labels what it draws: "
            "write rm.n=null, and rl.num_prompts or rl.num_epochs for fewer labels"
        )
    if bound is not None:
        raise UserError(
            f"labeler.min_alignment={bound} is not checked by rl=online_dpo, which labels no gold pairs: look at"
            " stage=label first, and write labeler.min_alignment=null here"
        )
    if ctx.options.rl.track.every:
        raise UserError(
            f"rl.track.every={ctx.options.rl.track.every} tracks a reward, but reward=none has none: write "
            "reward=rm, or rl.track.every=null"
        )


def _source(ctx: Context) -> LabelSource:
    """What is done to the labels: as to those of `rl=dpo` if the labeler gave them, else nothing."""
    source = replace(label_source(ctx), labels="ai", n=None)
    if _by_labeler(ctx):
        return source
    return replace(source, noise=0.0, min_confidence=0.0, hard=False, confidence_exponent=0.0)


def _options(ctx: Context) -> OnlinePairsOptions:
    options = ctx.options.rl
    return OnlinePairsOptions(
        loss=options.loss,
        knobs=pair_knobs(options),
        temperature=options.temperature,
        pairs=options.prompts_per_iteration,
        passes=options.ppo_epochs,
        batch_size=options.batch_size,
        micro_batch_size=options.micro_batch_size or options.batch_size,
        max_kl=options.max_kl,
        seed=ctx.options.seeds.rl,
    )


def _module(ctx: Context, setting: Setting, label: Label) -> OnlinePairsModule:
    options = _options(ctx)
    return OnlinePairsModule(
        setting.policy,
        setting.reference,
        collect=setting.collect,
        label=label,
        prepare=partial(corrupted, source=_source(ctx)),
        diagnose=setting.diagnose,
        watch=lambda history: raise_alarms(ctx, history),
        tracker=setting.tracker,
        options=options,
        optim=optim_options(ctx.options.rl, setting.iterations * options.updates),
    )


def _build(ctx: Context, folder: Path, parents: Parents) -> dict[str, Any]:
    cuts, reward = Cuts(), make_reward(ctx, parents)
    setting = make_setting(ctx, parents, cuts, reward, samples_per_prompt=2)
    labeler = LabelerLabels(ctx) if _by_labeler(ctx) else None
    module = _module(ctx, setting, labeler or reward_labels(ctx, reward))
    cut = cut_metrics(ctx, "rl", cuts, "prompts")
    metrics = train(ctx, folder, setting, module, TRAINED)
    for name in SUMMED:
        if name in module.history[0]:
            metrics[name] = sum(row.get(name, 0) for row in module.history)
    _say_dropped(ctx, metrics)
    own = labeler.costs() if labeler else told_reward(ctx, reward, module.history)
    return metrics | own | cut


def _say_dropped(ctx: Context, metrics: dict[str, Any]) -> None:
    """Warn of pairs that taught nothing."""
    words = {"rl/equal_dropped": "equal responses", "rl/unread_dropped": "no readable label"}
    left_out = [f"{metrics[name]} have {text}" for name, text in words.items() if metrics[name]]
    if left_out:
        drawn = sum(metrics[name] for name in COUNTS[:-1])
        ctx.warn("pairs left out", f"rl: of {drawn} pairs, {' and '.join(left_out)}: none is trained on")


def _config(ctx: Context) -> dict[str, Any]:
    rl, rm = plain(ctx.options.rl), plain(ctx.options.rm)
    slices = {
        "rl": {name: rl[name] for name in OWN},
        "model": ctx.model_identity,
        "encoding": ctx.encoding,
    }
    if _by_labeler(ctx):
        identity = labeler_identity(ctx, "labeler", ctx.options.seeds.label)
        labels = {name: rm[name] for name in LABELS} | {"seed": ctx.options.seeds.rm}
        return slices | {"labeler": identity, "labels": labels}
    slices["rl"] |= {name: rl[name] for name in OF_REWARDS} | track_config(ctx)
    return slices | {"reward": reward_config(ctx)}


def _review(ctx: Context, policy: Artifact) -> dict[str, Any]:
    return review_policy(ctx, policy) | drawn(ctx, policy, 2 * ctx.options.rl.prompts_per_iteration)


def _work(ctx: Context) -> Work:
    options = ctx.options.rl
    count = iterations(ctx, min(options.num_prompts, len(ctx.task.train)))
    pairs = count * options.prompts_per_iteration
    prompt, response = prompt_tokens(ctx), response_tokens(ctx)
    tokens = pairs * (prompt + 2 * response)
    drawn = drawing_work(ctx, 2 * options.prompts_per_iteration, options.max_rows, count)
    # A prompt runs once for its two responses. Policy and reference score them.
    own = replace(drawn, forward=drawn.forward / 2)
    own += Work(trained=tokens * options.ppo_epochs, scored=2 * tokens)
    if _by_labeler(ctx):
        prompts = list(islice(cycle(ctx.task.train), pairs))
        return own + labeling_work(ctx, "labeler", ctx.options.seeds.label, filler_pairs(ctx, prompts))
    scored = Work(scored=2 * pairs * (prompt + response))
    return own + scored + reward_work(ctx, 2 * pairs) + track_work(ctx, count) + held_out_work(ctx, count)


ONLINE_PAIRS = Family(
    parents=lambda ctx: (*reward_parents(ctx), *sft_parent(ctx)),
    config=_config,
    build=_build,
    work=_work,
    check=_check,
    gate=lambda ctx, built: trust_gate(ctx, built["label"].metrics) if "label" in built else {},
    review=_review,
)
