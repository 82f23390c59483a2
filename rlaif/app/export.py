"""`export=DIR`: the model of stage sft, rm or rl, whole or as adapters, with its card, for use outside this harness."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlaif.errors import UserError
from rlaif.io import write_text
from rlaif.models.export.adapter import (
    BaseFiles,
    export_policy_adapter,
    export_reward_adapters,
    require_adapters,
)
from rlaif.models.export.classifier import require_classifier
from rlaif.models.export.whole import export_policy, export_reward
from rlaif.models.load import base_files, read_model_config
from rlaif.models.weights import load_reward, load_top
from rlaif.ops import algorithm_title
from rlaif.report.card import ModelCard, TextFormat, model_card
from rlaif.stages.common.context import Context
from rlaif.stages.common.rewards.kinds import KINDS
from rlaif.store import Artifact


def check_export(ctx: Context) -> None:
    """Raises UserError for an export that cannot be, as far as options and the model's configuration show."""
    options = ctx.options
    if not options.export:
        return
    if options.stage == "rl" and options.rl.algorithm == "best_of_n":
        raise UserError(
            "export: rl=best_of_n has no weights of its own; write stage=sft, whose responses it chooses from"
        )
    if options.export_format == "adapter":
        trainable = ctx.model_spec.trainable
        if not trainable.startswith("lora:"):
            raise UserError(
                f"export_format=adapter is for model.trainable=lora:R, which trains adapters, not for {trainable}: "
                "write export_format=whole"
            )
        _base(ctx)
    if options.stage == "rm":
        config = read_model_config(ctx.model_spec)
        if config is not None:
            require_classifier(config)


def check_loaded(ctx: Context) -> None:
    """Raises UserError for an export that cannot be, as the loaded base model shows; to be called before training."""
    if ctx.options.export and ctx.options.export_format == "adapter":
        require_adapters(ctx.model(), pad=ctx.options.stage == "rm")


def _base(ctx: Context) -> BaseFiles:
    return BaseFiles(*base_files(ctx.model_spec, ctx.cache_dir))


def export_model(ctx: Context, artifact: Artifact, target: Path, metrics: Mapping[str, Any]) -> Path:
    """Write the model and README.md into `target` and return it; `metrics` are the artifact's and its ancestors'."""
    model, members = ctx.model(), 1
    base = _base(ctx) if ctx.options.export_format == "adapter" else None
    if artifact.kind == "rm":
        ensemble = load_reward(model, artifact.path)
        if base is None:
            export_reward(target, model, ensemble)
        else:
            export_reward_adapters(target, model, ensemble, base)
        members = len(ensemble)
    elif base is None:
        export_policy(target, model, load_top(model, artifact.path))
    else:
        export_policy_adapter(target, model, load_top(model, artifact.path), base)
    write_text(target / "README.md", model_card(_card(ctx, artifact, members, metrics, base)))
    return target


def _card(
    ctx: Context, artifact: Artifact, members: int, metrics: Mapping[str, Any], base: BaseFiles | None
) -> ModelCard:
    identity, encoding = ctx.model_identity, dict(ctx.encoding)
    for rule in ("too_long", "too_long_responses"):
        encoding.pop(rule)
    reward = KINDS[ctx.options.reward.kind] if artifact.kind == "rl" else None
    labels = ctx.options.rm.labels if artifact.kind == "rm" or (reward and reward.from_labels) else None
    labelled = labels not in (None, "gold") or (reward is not None and reward.by_labeler)
    return ModelCard(
        stage=artifact.kind,  # type: ignore[arg-type]
        artifact=artifact.name,
        base=f"{identity['name']} ({identity['weights']})",
        hub_id=identity["name"] if identity["source"] == "hub" else None,
        trainable=identity["trainable"],
        task=ctx.options.task.name,
        labels=labels,
        labeler=ctx.options.labeler.name if labelled else None,
        algorithm=algorithm_title(ctx.options.rl.algorithm, ctx.options.rl.loss) if reward else None,
        reward=reward.words if reward else None,
        members=members,
        adapter_of=None if base is None else base.name,
        text=TextFormat(eos_id=ctx.model().eos_id, **encoding),
        metrics=metrics,
    )
