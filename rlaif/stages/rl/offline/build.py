"""`rl=dpo`: the SFT policy, trained on the pairs and labels that a reward model would be trained on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rlaif.data.datamodule import EncodedRow, PreferenceRow, collate_sequences
from rlaif.data.policy_pairs import PolicyPair, policy_pairs_view
from rlaif.errors import UserError
from rlaif.inference.batches import forward_batches
from rlaif.inference.features import MAX_ROWS
from rlaif.inference.packing import SharedPrefix
from rlaif.models.split import Top
from rlaif.models.weights import TOP_FILE, save_modules
from rlaif.ops import PREFERENCE_LOSSES, PointLoss
from rlaif.options.read import need, plain
from rlaif.options.training import ON_PAIRS
from rlaif.stages.common.context import Context
from rlaif.stages.common.labeling import trust_gate
from rlaif.stages.common.limits import prompt_tokens, response_tokens
from rlaif.stages.common.policies import policy_top, sft_parent
from rlaif.stages.common.preferences.data import (
    POLICY,
    check_labels,
    gold_named,
    label_identity,
    label_parents,
    label_source,
    pairs_work,
    preference_data,
    trained_pairs,
)
from rlaif.stages.common.preferences.labels import for_loss
from rlaif.stages.common.rewards.kinds import check_reward, reward_kind
from rlaif.stages.common.rows import response_ids
from rlaif.stages.common.stage import Parents, Work
from rlaif.stages.common.training.history import HISTORY_FILE, write_history
from rlaif.stages.common.training.logprobs import of_pairs, pair_logprobs, response_logprobs
from rlaif.stages.common.training.ranks import check_devices, training_together
from rlaif.stages.common.training.trainer import Advance, check_training, fit, make_trainer, optim_options
from rlaif.stages.rl.budget import NOTHING_DRAWN
from rlaif.stages.rl.family import Family
from rlaif.stages.rl.offline.module import PreferenceModule
from rlaif.stages.rl.pair_step import check_pair_loss, pair_knobs

LAST = 0.1  # of the steps, whose metrics are averaged for the summary
OWN = (
    *("algorithm", "loss", "num_epochs", "lr", "weight_decay", "eps", "schedule", "warmup_fraction"),
    *("gradient_clip", "beta"),
    *ON_PAIRS,
)
"""The keys of `rl` that are read here; a profile's sizes of rollouts stand beside them and mean nothing."""
LABELS = (
    *("labels", "n", "label_noise", "min_confidence", "confidence_weight", "hard_labels"),
    *("validation_fraction", "test_fraction"),
)
"""The keys of `rm` that are read here: which pairs and labels there are to learn from."""


def _check(ctx: Context) -> None:
    options = ctx.options.rl
    need(options, "rl", OWN, "rl=dpo")
    check_training("rl", options)
    check_devices(ctx, "rl.batch_size", options.batch_size)
    check_pair_loss(options, "dpo")
    if options.num_epochs != int(options.num_epochs):
        raise UserError(
            f"rl.num_epochs={options.num_epochs:g} must be a whole number of passes over the pairs"
        )
    if reward_kind(ctx).parents != ("rm",) and ctx.options.reward.kind != "none":
        raise UserError(
            f"rl=dpo learns from the pairs' labels and reads no reward, so reward={ctx.options.reward.kind} has no "
            "meaning: write reward=none, or reward=rm for what a reward model makes of the policy"
        )
    check_reward(ctx)
    check_labels(ctx, POLICY)


def _pairs(ctx: Context, rows: Sequence[PreferenceRow], reference: Top) -> list[PolicyPair]:
    """The rows with ids and what the reference policy makes of them; mismatched responses if the loss reads them."""
    ids = [response_ids(ctx, row.pair) for row in rows]
    pairs = [PolicyPair(row, torch.tensor(a), torch.tensor(b)) for row, (a, b) in zip(rows, ids, strict=True)]
    if isinstance(PREFERENCE_LOSSES[ctx.options.rl.loss], PointLoss):
        pairs = _mismatched(ctx, pairs, reference)
    with ctx.progress.task("reference log-probabilities (pairs)", len(pairs)) as advance:
        known = (
            of_pairs(partial(pair_logprobs, reference), pairs, ctx.model().device, advance) if pairs else ()
        )
    return [replace(pair, reference=(float(a), float(b))) for pair, (a, b) in zip(pairs, known, strict=True)]


def _mismatched(ctx: Context, pairs: Sequence[PolicyPair], reference: Top) -> list[PolicyPair]:
    """Each pair with the first response of another prompt's pair: the next one's in order, round and round."""
    others = [_next_prompt(pairs, index) for index in range(len(pairs))]
    groups = [
        SharedPrefix(tuple(ctx.encoder.prompt(pair.row.pair.prompt)), (tuple(other.ids_a.tolist()),))
        for pair, other in zip(pairs, others, strict=True)
    ]
    with ctx.progress.task("trunk pass (mismatched responses)", len(groups)) as advance:
        features = ctx.features.get(ctx.model(), groups, advance)
    rows = [
        EncodedRow(torch.tensor([*group.prefix, *group.suffixes[0]]), own.prefix, own.suffixes[0])
        for group, own in zip(groups, features, strict=True)
    ]
    device, known = ctx.model().device, [0.0] * len(rows)
    with torch.no_grad():
        for indices in forward_batches([len(row.ids) for row in rows], device, max_rows=MAX_ROWS):
            batch = collate_sequences([rows[i] for i in indices]).to(device)
            for index, value in zip(
                indices, response_logprobs(reference, batch).sum(1).tolist(), strict=True
            ):
                known[index] = value
    return [
        replace(pair, mismatch=row, mismatch_reference=value)
        for pair, row, value in zip(pairs, rows, known, strict=True)
    ]


def _next_prompt(pairs: Sequence[PolicyPair], index: int) -> PolicyPair:
    """The next pair, in order and round, of another prompt. Raises UserError if there is none."""
    own = pairs[index].row.pair.prompt
    for step in range(1, len(pairs)):
        other = pairs[(index + step) % len(pairs)]
        if other.row.pair.prompt != own:
            return other
    raise UserError(
        "rl.loss=kto compares with responses to other prompts, but all pairs have one prompt: write another rl.loss"
    )


def _build(ctx: Context, folder: Path, parents: Parents) -> dict[str, Any]:
    options, epochs = ctx.options.rl, int(ctx.options.rl.num_epochs)
    rows = preference_data(ctx, parents, POLICY)
    policy = policy_top(ctx, parents)
    reference = policy.frozen_copy()
    phases = [_pairs(ctx, phase, reference) for phase in rows.phases]
    validation = _pairs(ctx, [for_loss(row, label_source(ctx)) for row in rows.validation], reference)
    steps = epochs * sum(-(-len(phase) // options.batch_size) for phase in phases)
    module = PreferenceModule(policy, options.loss, pair_knobs(options), optim_options(options, steps))
    data = policy_pairs_view(
        phases,
        validation,
        epochs_per_phase=epochs,
        batch_size=options.batch_size,
        micro_batch_size=options.micro_batch_size or options.batch_size,
        seed=ctx.options.seeds.rl,
    )
    trainer = make_trainer(ctx, folder / "work", max_epochs=epochs * len(phases), log_every=1, limit_val=True)
    planned = sum(map(len, phases)) * epochs
    task = ctx.progress.task("preference optimisation (pairs)", planned)
    with task as advance, training_together(ctx, "rl", folder):
        fresh, started = not (folder / "work" / "checkpoints").exists(), time.perf_counter()
        fit(trainer, module, folder / "work", data, progress=Advance(advance, planned))
        seconds = time.perf_counter() - started
    save_modules(folder / TOP_FILE, {"top": module.policy})
    write_history(folder / HISTORY_FILE, [{"step": i, **row} for i, row in enumerate(module.history)])
    return {
        **_told(module.history),
        **rows.counts,
        **gold_named(rows, POLICY),
        **({"rl/pairs_per_s": planned / seconds} if fresh else {}),
    }


def _told(history: Sequence[dict[str, float]]) -> dict[str, float]:
    """The summary's metrics: means over the last steps, and the last validation."""
    last = history[-max(1, round(LAST * len(history))) :]
    names = {name for row in last for name in row if not name.startswith("rl/val_") and name != "rl/lr"}
    means = {name: _mean([row[name] for row in last if name in row]) for name in sorted(names)}
    return means | {name: value for name, value in history[-1].items() if name.startswith("rl/val_")}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _config(ctx: Context) -> dict[str, Any]:
    rl, rm = plain(ctx.options.rl), plain(ctx.options.rm)
    slices = {
        "rl": {name: rl[name] for name in OWN},
        "labels": {name: rm[name] for name in LABELS} | {"seed": ctx.options.seeds.rm},
        "model": ctx.model_identity,
        "encoding": ctx.encoding,
    }
    return slices | label_identity(ctx)


def _work(ctx: Context) -> Work:
    pairs, tokens, trunk = pairs_work(ctx)
    epochs, trained = ctx.options.rl.num_epochs, trained_pairs(ctx, pairs)
    validation = pairs * ctx.options.rm.validation_fraction
    work = trunk + Work(
        trained=trained * tokens * epochs, scored=(trained + validation * (1 + epochs)) * tokens
    )
    if ctx.options.rl.loss in PREFERENCE_LOSSES and isinstance(
        PREFERENCE_LOSSES[ctx.options.rl.loss], PointLoss
    ):
        other = prompt_tokens(ctx) + response_tokens(ctx)
        work += Work(forward=(trained + validation) * other, scored=trained * (1 + epochs) * other)
    return work


OFFLINE = Family(
    parents=lambda ctx: (*label_parents(ctx), *sft_parent(ctx)),
    config=_config,
    build=_build,
    work=_work,
    check=_check,
    gate=lambda ctx, built: trust_gate(ctx, built["label"].metrics) if "label" in built else {},
    review=lambda ctx, policy: dict(NOTHING_DRAWN),
)
