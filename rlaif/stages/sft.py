"""stage=sft: supervised fine-tuning on (prompt, reference)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rlaif.data.datamodule import EncodedRow, TextDataModule
from rlaif.errors import UserError
from rlaif.inference.packing import SharedPrefix
from rlaif.models.weights import TOP_FILE, load_top, save_modules
from rlaif.modules import SFTModule
from rlaif.records import Prompt
from rlaif.stages.context import Context, plain
from rlaif.stages.graph import Parents, Stage, Work
from rlaif.stages.ranks import check_devices, training_together
from rlaif.stages.sizes import prompt_tokens, response_tokens
from rlaif.stages.training import check_training, fit, make_trainer, optim_options

NO_REFERENCES = (
    "the task has no references to fine-tune on: write sft.enabled=false, or add a reference column"
)


def reference_rows(ctx: Context, prompts: Sequence[Prompt], limit: int | None, what: str) -> list[EncodedRow]:
    """Encoded (prompt, reference) rows with the trunk's features: the first `limit` that have a reference and fit."""
    referenced = [p for p in prompts if p.reference]
    fitting = ctx.encoder.fitting(referenced)[:limit]
    if not fitting:
        return []
    groups = [
        SharedPrefix(tuple(ctx.encoder.prompt(p.prompt)), (tuple(ctx.encoder.response(p.reference or "")),))
        for p in fitting
    ]
    with ctx.progress.task(f"trunk pass ({what} rows)", len(groups)) as advance:
        features = ctx.features.get(ctx.model(), groups, advance)
    return [
        EncodedRow(torch.tensor([*g.prefix, *g.suffixes[0]]), f.prefix, f.suffixes[0])
        for g, f in zip(groups, features, strict=True)
    ]


def _build(ctx: Context, folder: Path, parents: Parents) -> dict[str, Any]:
    node, model = ctx.cfg.sft, ctx.model()
    train = reference_rows(ctx, ctx.task.train, node.num_rows, "SFT")
    validation = reference_rows(ctx, ctx.task.validation, max(8, len(train) // 8), "SFT validation")
    if not train or not validation:
        raise UserError(NO_REFERENCES)
    data = TextDataModule.sft_view(
        train,
        validation,
        batch_size=node.batch_size,
        micro_batch_size=node.micro_batch_size or node.batch_size,
        seed=ctx.cfg.seeds.sft,
    )
    steps = node.num_epochs * -(-len(train) // node.batch_size)
    module = SFTModule(model.trunk.new_top(), optim_options(node, steps))
    trainer = make_trainer(
        ctx,
        folder / "work",
        max_epochs=node.num_epochs,
        log_every=5,
        limit_val=True,
    )
    task = ctx.progress.task("SFT (rows)", len(train) * node.num_epochs)
    with task as advance, training_together(ctx, "sft", folder):
        fit(trainer, module, folder / "work", data)
        advance(len(train) * node.num_epochs)
    save_modules(folder / TOP_FILE, {"top": module.top})
    metrics = {name: module.metrics[name] for name in ("sft/loss", "sft/val_loss")}
    return {**metrics, "sft/rows": len(train)}


def _config(ctx: Context) -> dict[str, Any]:
    return {"sft": plain(ctx.cfg.sft), "model": ctx.model_identity, "encoding": ctx.encoding}


def _work(ctx: Context) -> Work:
    rows = min(ctx.cfg.sft.num_rows or len(ctx.task.train), len(ctx.task.train))
    tokens = rows * (prompt_tokens(ctx) + response_tokens(ctx))
    return Work(forward=tokens * 1.1, trained=tokens * ctx.cfg.sft.num_epochs)


def _check(ctx: Context) -> None:
    """The task is read and refused here, before a model is loaded."""
    check_training("sft", ctx.cfg.sft)
    check_devices(ctx, "sft.batch_size", ctx.cfg.sft.batch_size)
    if not any(prompt.reference for prompt in ctx.task.train):
        raise UserError(NO_REFERENCES)


STAGE = Stage("sft", 2, "sft", lambda ctx: (), _config, _build, _work, _check)


def sft_parent(ctx: Context) -> tuple[str, ...]:
    """`sft` as a parent, or nothing where the base model is passed through."""
    return ("sft",) if ctx.cfg.sft.enabled else ()


def policy_top(ctx: Context, parents: Parents) -> Any:
    """The SFT policy's top, or the base model's."""
    return load_top(ctx.model(), parents["sft"].path if "sft" in parents else None)
