"""stage=rm: the reward model on the labeler's soft preferences."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from rlaif.data.datamodule import TextDataModule
from rlaif.models.split import ScalarHead
from rlaif.options.read import plain
from rlaif.stages.common.context import Context
from rlaif.stages.common.labeling import trust_gate
from rlaif.stages.common.limits import prompt_tokens, response_tokens
from rlaif.stages.common.policies import policy_top, sft_parent
from rlaif.stages.common.preferences.data import (
    REWARD_MODEL,
    PreferenceData,
    check_labels,
    gold_named,
    label_identity,
    label_parents,
    label_source,
    pairs_work,
    trained_pairs,
)
from rlaif.stages.common.preferences.labels import for_loss
from rlaif.stages.common.stage import Parents, Stage, Work
from rlaif.stages.common.training.history import keep_history, read_history
from rlaif.stages.common.training.ranks import check_devices, training_together
from rlaif.stages.common.training.trainer import Advance, check_training, fit, make_trainer, optim_options
from rlaif.stages.rm.data import reward_data
from rlaif.stages.rm.measures import item_rows, measure_and_save, table_rows
from rlaif.stages.rm.module import PreferenceLossOptions, RewardModule

MEMBER_SEEDS = 1_000_003  # between the seeds of two members' heads


def _module(ctx: Context, parents: Parents, rows: PreferenceData) -> RewardModule:
    """The members, which differ in their heads' initial weights; member 0 is the model of an ensemble of one."""
    options, seed = ctx.options.rm, ctx.options.seeds.rm
    size, start = ctx.model().trunk.config.hidden_size, parents if options.init == "sft" else {}
    generators = (torch.Generator().manual_seed(seed + MEMBER_SEEDS * i) for i in range(options.ensemble))
    steps = options.num_epochs * sum(-(-len(phase) // options.batch_size) for phase in rows.phases)
    return RewardModule(
        [(policy_top(ctx, start), ScalarHead(size).init_normal(generator)) for generator in generators],
        optim_options(options, steps),
        PreferenceLossOptions(
            options.margin, options.label_smoothing, options.label_temperature, options.centering
        ),
        head_lr_factor=options.head_lr_factor,
        patience=options.patience,
        # A model that stopped before its last phase would not be what rm.labels asks for.
        choose_from=options.num_epochs * (len(rows.phases) - 1),
    )


def _build(ctx: Context, folder: Path, parents: Parents) -> dict[str, Any]:
    options = ctx.options.rm
    rows = reward_data(ctx, parents)
    module = _module(ctx, parents, rows)
    data = TextDataModule.preference_view(
        rows.phases,
        [for_loss(row, label_source(ctx)) for row in rows.validation],
        epochs_per_phase=options.num_epochs,
        batch_size=options.batch_size,
        micro_batch_size=options.micro_batch_size or options.batch_size,
        seed=ctx.options.seeds.rm,
    )
    epochs = options.num_epochs * len(rows.phases)
    trainer = make_trainer(ctx, folder / "work", max_epochs=epochs, log_every=2, limit_val=True)
    planned = sum(map(len, rows.phases)) * options.num_epochs
    task = ctx.progress.task("reward model (pairs)", planned)
    with task as advance, training_together(ctx, "rm", folder):
        fresh, started = not (folder / "work" / "checkpoints").exists(), time.perf_counter()
        fit(trainer, module, folder / "work", data, progress=Advance(advance, planned))
        seconds = time.perf_counter() - started
    keep_history(trainer, folder)
    trained = sum(len(rows.phases[epoch // options.num_epochs]) for epoch in range(module.epochs))
    module.eval().to(ctx.model().device)
    return {
        **measure_and_save(ctx, folder, module.members, rows.validation, rows.test),
        **rows.counts,
        "rm/best_val_loss": fmean(best.loss for best in module.best),
        "rm/epochs": module.epochs,
        **gold_named(rows, REWARD_MODEL),
        **({"rm/pairs_per_s": trained / seconds} if fresh else {}),
    }


def _config(ctx: Context) -> dict[str, Any]:
    slices = {"rm": plain(ctx.options.rm), "model": ctx.model_identity, "encoding": ctx.encoding}
    return slices | label_identity(ctx)


def _parents(ctx: Context) -> tuple[str, ...]:
    return (*label_parents(ctx), *(sft_parent(ctx) if ctx.options.rm.init == "sft" else ()))


def _work(ctx: Context) -> Work:
    options = ctx.options.rm
    pairs, tokens, trunk = pairs_work(ctx)
    passes = options.num_epochs * options.ensemble
    measured = options.validation_fraction * (passes + 1) + options.test_fraction
    reference_tokens = prompt_tokens(ctx) + response_tokens(ctx)
    references = min(options.normalize_rows, len(ctx.task.validation)) * reference_tokens
    return trunk + Work(
        forward=references,
        ranked=trained_pairs(ctx, pairs) * tokens * passes,
        scored=pairs * measured * tokens + references,
    )


def _check(ctx: Context) -> None:
    check_training("rm", ctx.options.rm)
    check_devices(ctx, "rm.batch_size", ctx.options.rm.batch_size)
    check_labels(ctx, REWARD_MODEL)


STAGE = Stage(
    "rm",
    8,
    "rm",
    _parents,
    _config,
    _build,
    _work,
    _check,
    lambda ctx, built: trust_gate(ctx, built["label"].metrics) if "label" in built else {},
    items=lambda ctx, built: item_rows(built["rm"]),
    tables=lambda ctx, built: table_rows(built["rm"]),
    history=read_history,
)
