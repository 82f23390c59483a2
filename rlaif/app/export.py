"""`export=DIR`: the whole model of stage sft, rm or rl, with its card, for use outside this harness."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlaif.errors import UserError
from rlaif.io import write_text
from rlaif.models.weights import export_policy, export_reward, load_reward, load_top
from rlaif.ops import algorithm_title
from rlaif.report.card import ModelCard, TextFormat, model_card
from rlaif.stages.common.context import Context
from rlaif.stages.common.policies import best_of
from rlaif.stages.common.rewards.kinds import KINDS
from rlaif.store import Artifact


def export_model(ctx: Context, artifact: Artifact, target: Path, metrics: Mapping[str, Any]) -> Path:
    """Write the model and README.md into `target` and return it; `metrics` are the artifact's and its ancestors'."""
    members = 1
    if best_of(artifact.path) > 1:
        raise UserError(
            "export: rl=best_of_n has no weights of its own; write stage=sft, whose responses it chooses from"
        )
    if artifact.kind == "rm":
        ensemble = load_reward(ctx.model(), artifact.path)
        export_reward(target, ctx.model(), ensemble)
        members = len(ensemble)
    else:
        export_policy(target, ctx.model(), load_top(ctx.model(), artifact.path))
    write_text(target / "README.md", model_card(_card(ctx, artifact, members, metrics)))
    return target


def _card(ctx: Context, artifact: Artifact, members: int, metrics: Mapping[str, Any]) -> ModelCard:
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
        text=TextFormat(eos_id=ctx.model().eos_id, **encoding),
        metrics=metrics,
    )
