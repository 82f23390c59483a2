"""stage=compare: the arms of an experiment, head to head.

An experiment file (`experiments/NAME.yaml`) gives `arms: {name: [overrides]}`, `until:` the stage that each
arm runs to, and `compare:` pairs of arms whose policies meet (for `until: eval`). Arms are composed in
process, so everything that two arms have in common is one artifact and is built once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rlaif.artifacts import Artifact, ArtifactSpec
from rlaif.errors import UserError
from rlaif.models.weights import load_top
from rlaif.reports import arms_table, terminal_arms
from rlaif.stages.context import Context, plain
from rlaif.stages.evaluate import comparison_rows, eval_config, judge_policies
from rlaif.stages.graph import Graph
from rlaif.stages.registry import STAGES

VERSION = 1
VERDICT = {
    "win_rate": "eval/win_rate",
    "ci_low": "eval/win_rate_ci_low",
    "ci_high": "eval/win_rate_ci_high",
    "p": "eval/p_value",
    "n": "eval/n",
}


def _base_overrides(ctx: Context) -> list[str]:
    """The command line's own overrides, without those that make it a comparison."""
    return [
        o
        for o in ctx.overrides
        if o.split("=")[0].lstrip("+~") not in ("experiments", "stage", "arms", "compare", "test")
    ]


def compose_arm(ctx: Context, overrides: list[str]) -> DictConfig:
    """An arm's own configuration: the command line's overrides, then the arm's."""
    config_name = HydraConfig.get().job.config_name
    cfg = compose(config_name, overrides=[*_base_overrides(ctx), *overrides])
    OmegaConf.resolve(cfg)
    return cfg


def _head_to_head(ctx: Context, x: Artifact, y: Artifact, rm: Artifact) -> Artifact:
    """Policy of arm x (as the policy) against policy of arm y (as the baseline)."""
    spec = ArtifactSpec(
        "headtohead", eval_config(ctx), (x, y, rm), ctx.cfg.seeds.eval, VERSION, ctx.task.fingerprint
    )

    def build(folder: Path) -> dict[str, Any]:
        model = ctx.model()
        return judge_policies(ctx, folder, load_top(model, x.path), load_top(model, y.path), rm)

    return ctx.store.get_or_build(spec, build)


def compare_arms(ctx: Context) -> dict[str, Any]:
    """Build every arm, print arms and verdicts, and return the flat summary."""
    arms = plain(ctx.cfg.arms)
    if not arms:
        raise UserError("stage=compare needs an experiment: write experiments=NAME (a file in experiments/)")
    until = ctx.cfg.until
    if until not in STAGES:
        raise UserError(f"until={until} is no stage that makes an artifact: write one of {', '.join(STAGES)}")
    built: dict[str, tuple[Context, Graph]] = {}
    summaries: dict[str, dict[str, Any]] = {}
    lineage: dict[str, dict[str, Any]] = {}
    for name, overrides in arms.items():
        arm = ctx.with_config(compose_arm(ctx, overrides))
        graph = Graph(arm, STAGES)
        last = graph.get(until)
        built[name] = (arm, graph)
        summaries[name] = {k: v for a in reversed(list(graph.built.values())) for k, v in a.metrics.items()}
        for row in ctx.store.lineage(last):
            lineage.setdefault(f"{row['kind']}-{row['digest']}", row)
    verdicts, metrics = _verdicts(ctx, built)
    for name, summary in summaries.items():
        metrics.update({f"{name}/{key}": value for key, value in summary.items()})
    table = arms_table(summaries, verdicts)
    from rich.console import Console

    for part in terminal_arms(table):
        Console().print(part)
    if ctx.run:
        ctx.run.table("arms", [{"arm": name, **summary} for name, summary in summaries.items()])
        ctx.run.table("verdicts", verdicts)
        ctx.run.lineage(list(lineage.values()))
    return metrics


def _verdicts(
    ctx: Context, built: dict[str, tuple[Context, Graph]]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Head-to-heads of the pairs under `compare:`, judged by the experiment's own judge."""
    verdicts, metrics = [], {}
    for x, y in plain(ctx.cfg.compare):
        unknown = {x, y} - set(built)
        if unknown:
            raise UserError(
                f"compare names the unknown arm {sorted(unknown)[0]}: write names of arms ({', '.join(built)})"
            )
        (arm, graph), (_, other) = built[x], built[y]
        if "ppo" not in graph.built or "ppo" not in other.built:
            raise UserError(
                "compare needs policies: write until: ppo or until: eval in the experiment, or drop compare"
            )
        artifact = _head_to_head(arm, graph.built["ppo"], other.built["ppo"], graph.built["rm"])
        verdicts.append(
            {"first": x, "second": y, **{short: artifact.metrics[name] for short, name in VERDICT.items()}}
        )
        metrics.update({f"{x}_vs_{y}/{k.removeprefix('eval/')}": v for k, v in artifact.metrics.items()})
        if ctx.run:
            ctx.run.table(f"samples_{x}_vs_{y}", comparison_rows(artifact, ctx.cfg.report.samples))
    return verdicts, metrics
