"""stage=sft: supervised fine-tuning on (prompt, reference), or on (prompt, revision)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlaif.data.datamodule import EncodedRow, TextDataModule
from rlaif.data.encode import Cuts
from rlaif.errors import UserError
from rlaif.io import read_records
from rlaif.models.weights import TOP_FILE, save_modules
from rlaif.records import Revision
from rlaif.stages.common.context import Context
from rlaif.stages.common.limits import cut_metrics, prompt_tokens, response_tokens
from rlaif.stages.common.revisions.making import (
    REVISIONS_FILE,
    dropped,
    training_options,
    validation_rows,
)
from rlaif.stages.common.revisions.rows import revised_rows
from rlaif.stages.common.rows import reference_rows
from rlaif.stages.common.sources import all_held_out
from rlaif.stages.common.stage import Parents, Stage, Work
from rlaif.stages.common.training.history import keep_history, read_history
from rlaif.stages.common.training.likelihood import LikelihoodModule
from rlaif.stages.common.training.ranks import check_devices, training_together
from rlaif.stages.common.training.trainer import Advance, check_training, fit, make_trainer, optim_options
from rlaif.store import Artifact


def no_references(ctx: Context) -> str:
    """Why there is nothing to fine-tune on, and what to write instead."""
    task, options = ctx.task, ctx.options.task
    splits = {"train": task.train, "validation": task.validation, "test": task.test}
    have = {name: sum(bool(p.reference) for p in rows) for name, rows in splits.items()}
    if any(have.values()):
        told = ", ".join(f"{count} in {name}" for name, count in have.items())
        return (
            f"fine-tuning needs references to train and to validate on, but the task has {told}: write "
            f"other fractions than task.test_fraction={options.test_fraction} and "
            f"task.validation_fraction={options.validation_fraction}, or sft.enabled=false"
        )
    held = all_held_out(ctx)
    if held:
        return (
            f"task.gold_fraction={options.gold_fraction} holds out all {held} labelled pairs, so none is left to "
            "label, and there are no references to fine-tune a policy on that could sample others: write a smaller "
            "task.gold_fraction, such as 0.2"
        )
    return "the task has no references to fine-tune on: write sft.enabled=false, or add a reference column"


def _referenced(ctx: Context) -> tuple[list[EncodedRow], list[EncodedRow], dict[str, int]]:
    """Rows to train and to validate on with the task's references, and what the limits did to the former."""
    cuts = Cuts()
    train = reference_rows(ctx, ctx.task.train, ctx.options.sft.num_rows, "SFT", cuts)
    validation = reference_rows(ctx, ctx.task.validation, validation_rows(len(train)), "SFT validation")
    cut = cut_metrics(ctx, "sft", cuts, "rows")
    if not train or not validation:
        raise UserError(_none_fits(ctx, cuts) if cut else no_references(ctx))
    return train, validation, cut


def _revised(ctx: Context, revise: Artifact) -> tuple[list[EncodedRow], list[EncodedRow], dict[str, int]]:
    """The same with revisions."""
    cuts, every = Cuts(), read_records(revise.file(REVISIONS_FILE), Revision)
    own, held = ([row for row in every if row.split == split] for split in ("train", "validation"))
    train = revised_rows(ctx, own, "SFT rows", cuts)
    validation = revised_rows(ctx, held, "SFT validation rows", Cuts())
    if not train or not validation:
        raise UserError(
            f"no revision is left to train or to validate on: of {len(every)}, {dropped(every) or 'none are empty'},"
            f" and {cuts.responses_dropped} are beyond task.max_response_tokens="
            f"{ctx.options.task.max_response_tokens}; write another labeler or backend, or task.too_long=truncate"
        )
    return train, validation, cut_metrics(ctx, "sft", cuts, "revisions")


def _build(ctx: Context, folder: Path, parents: Parents) -> dict[str, Any]:
    options, model = ctx.options.sft, ctx.model()
    revise = parents.get("revise")
    train, validation, cut = _referenced(ctx) if revise is None else _revised(ctx, revise)
    data = TextDataModule.sft_view(
        train,
        validation,
        batch_size=options.batch_size,
        micro_batch_size=options.micro_batch_size or options.batch_size,
        seed=ctx.options.seeds.sft,
    )
    steps = options.num_epochs * -(-len(train) // options.batch_size)
    module = LikelihoodModule(model.trunk.new_top(), optim_options(options, steps))
    trainer = make_trainer(ctx, folder / "work", max_epochs=options.num_epochs, log_every=5, limit_val=True)
    planned = len(train) * options.num_epochs
    task = ctx.progress.task("SFT (rows)", planned)
    with task as advance, training_together(ctx, "sft", folder):
        fit(trainer, module, folder / "work", data, progress=Advance(advance, planned))
    keep_history(trainer, folder)
    save_modules(folder / TOP_FILE, {"top": module.top})
    metrics = {name: module.metrics[name] for name in ("sft/loss", "sft/val_loss")}
    return {**metrics, **cut, "sft/rows": len(train)}


def _none_fits(ctx: Context, cuts: Cuts) -> str:
    options = ctx.options.task
    return (
        f"none of {cuts.rows} rows with a reference fits, to train or to validate on: {cuts.prompts_dropped} have a "
        f"prompt beyond task.max_prompt_tokens={options.max_prompt_tokens}, {cuts.responses_dropped} a reference "
        f"beyond task.max_response_tokens={options.max_response_tokens}; write higher limits, or task.too_long=truncate"
    )


def _config(ctx: Context) -> dict[str, Any]:
    return {"sft": training_options(ctx), "model": ctx.model_identity, "encoding": ctx.encoding}


def _work(ctx: Context) -> Work:
    rows = min(ctx.options.sft.num_rows or len(ctx.task.train), len(ctx.task.train))
    tokens = rows * (prompt_tokens(ctx) + response_tokens(ctx))
    epochs, validation = ctx.options.sft.num_epochs, tokens / 8
    return Work(forward=tokens + validation, trained=tokens * epochs, scored=validation * epochs)


def _check(ctx: Context) -> None:
    """The task is read, and rejected if unusable, before a model is loaded."""
    check_training("sft", ctx.options.sft)
    check_devices(ctx, "sft.batch_size", ctx.options.sft.batch_size)
    if ctx.options.sft.revised:
        return  # no reference is read
    for rows in (ctx.task.train, ctx.task.validation):
        if not any(prompt.reference for prompt in rows):
            raise UserError(no_references(ctx))


def _parents(ctx: Context) -> tuple[str, ...]:
    return ("revise",) if ctx.options.sft.revised else ()


STAGE = Stage("sft", 4, "sft", _parents, _config, _build, _work, _check, history=read_history)
