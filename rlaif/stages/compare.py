"""stage=compare: the arms of an experiment, head to head.

An experiment file (`experiments/NAME.yaml`) gives `arms: {name: [overrides]}`, `until:` the stage that each
arm runs to, and `compare:` pairs of arms whose policies meet. Arms are composed in process, so everything
that two arms have in common is one artifact and is built once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rlaif.artifacts import Artifact, ArtifactSpec
from rlaif.errors import UserError
from rlaif.models.weights import load_top
from rlaif.reports import arms_table, compare_labelers, labelers_table, terminal_arms, terminal_labelers
from rlaif.stages import label
from rlaif.stages.context import Context, apply_engine, apply_seed, plain, require_values
from rlaif.stages.evaluate import comparison_rows, eval_config, judge_gate, judge_policies
from rlaif.stages.graph import Graph
from rlaif.stages.registry import STAGES
from rlaif.stages.terminal import console

VERSION = 1
VERDICT = {
    "win_rate": "eval/win_rate",
    "ci_low": "eval/win_rate_ci_low",
    "ci_high": "eval/win_rate_ci_high",
    "p": "eval/p_value",
    "n": "eval/n",
}


def compose_arm(ctx: Context, overrides: list[str]) -> DictConfig:
    """An arm's own configuration: the experiment and the command line, then the arm's overrides."""
    own = {override.split("=")[0].lstrip("+~") for override in overrides}
    # A key that the arm sets itself is the arm's: a sweep over it would otherwise be undone silently.
    base = [o for o in ctx.overrides if o.split("=")[0].lstrip("+~") not in own]
    cfg = compose(HydraConfig.get().job.config_name, overrides=[*base, *overrides])
    require_values(cfg)
    apply_seed(cfg)
    apply_engine(cfg)
    OmegaConf.resolve(cfg)
    return cfg


def arm_contexts(ctx: Context) -> dict[str, Context]:
    """The arms by name. Raises UserError for an experiment that cannot be run."""
    arms, until = plain(ctx.cfg.arms), ctx.cfg.until
    if not arms:
        raise UserError("stage=compare needs an experiment: write experiments=NAME (a file in experiments/)")
    if until not in STAGES:
        raise UserError(f"until={until} is no stage that makes an artifact: write one of {', '.join(STAGES)}")
    for pair in plain(ctx.cfg.compare):
        unknown = sorted(set(pair) - set(arms))
        if unknown or len(pair) != 2:
            names = ", ".join(arms)
            raise UserError(f"compare: {list(pair)} is no pair of arms: write two of {names} in each pair")
        if until not in ("ppo", "eval"):
            raise UserError(
                f"compare needs policies, but until={until}: write until: ppo or until: eval, or drop compare"
            )
    return {name: ctx.with_config(compose_arm(ctx, overrides)) for name, overrides in arms.items()}


def compare_arms(ctx: Context) -> dict[str, Any]:
    """Build every arm, print arms and verdicts, and return the flat summary."""
    graphs = {name: Graph(arm, STAGES) for name, arm in arm_contexts(ctx).items()}
    for graph in graphs.values():
        graph.check(ctx.cfg.until)
    for graph in graphs.values():
        graph.get(ctx.cfg.until)
    duels = _duels(ctx, graphs)
    summaries = {name: graph.summary() for name, graph in graphs.items()}
    verdicts = [
        {"first": x, "second": y, **{short: duel.metrics[name] for short, name in VERDICT.items()}}
        for (x, y), duel in duels.items()
    ]
    for part in terminal_arms(arms_table(summaries, verdicts)):
        console().print(part)
    _labelers(ctx, graphs)
    _record(ctx, graphs, duels, summaries, verdicts)
    metrics = {
        f"{name}/{key}": value for name, summary in summaries.items() for key, value in summary.items()
    }
    for (x, y), duel in duels.items():
        noted = _judge_notes(ctx, graphs[x], graphs[y])
        metrics |= {f"{x}_vs_{y}/{name}": value for name, value in (duel.metrics | noted).items()}
    return metrics


def _labelers(ctx: Context, graphs: Mapping[str, Graph]) -> None:
    """The arms' labelers on the same gold pairs, printed and recorded; arms with the same labels are one."""
    names: dict[str, list[str]] = {}
    for name, graph in graphs.items():
        if "label" in graph.built:
            names.setdefault(graph.built["label"].name, []).append(name)
    arms = {", ".join(group): graphs[group[0]] for group in names.values()}
    ranking, tests = compare_labelers(
        {name: [label.item_rows(graph.ctx, graph.built["label"])] for name, graph in arms.items()},
        {name: graph.summary() for name, graph in arms.items()},
    )
    table = labelers_table(ranking, tests)
    if table:
        console().print(terminal_labelers(table))
    if table and ctx.run is not None:
        ctx.run.table("labelers", ranking)
        ctx.run.table("labeler_tests", tests)


def _duels(ctx: Context, graphs: Mapping[str, Graph]) -> dict[tuple[str, str], Artifact]:
    """Head-to-heads of the pairs under `compare:`, judged by the experiment's own judge."""
    return {(x, y): _head_to_head(ctx, graphs[x], graphs[y]) for x, y in plain(ctx.cfg.compare)}


def _head_to_head(ctx: Context, x: Graph, y: Graph) -> Artifact:
    """Policy of arm x (as the policy) against policy of arm y (as the baseline).

    An arm's judge may be its own labeler, which would favour it: the judge is the experiment's.
    """
    if x.ctx.model_identity != y.ctx.model_identity or x.ctx.encoding != y.ctx.encoding:
        raise UserError("compare: two policies meet only with one model and one prompt format in both arms")
    meeting = _meeting(ctx, x)
    cfg = meeting.cfg
    first, second, rm = x.built["ppo"], y.built["ppo"], x.built["rm"]
    spec = ArtifactSpec(
        "headtohead",
        eval_config(meeting),
        (first, second, rm),
        cfg.seeds.eval,
        VERSION,
        meeting.task.fingerprint,
    )

    def build(folder: Path) -> dict[str, Any]:
        policies = [load_top(meeting.model(), artifact.path) for artifact in (first, second)]
        return judge_policies(meeting, folder, policies[0], policies[1], rm)

    return ctx.store.get_or_build(spec, build)


def _meeting(ctx: Context, arm: Graph) -> Context:
    """The arm's context with the experiment's own judge."""
    cfg = arm.ctx.cfg.copy()
    cfg.judge, cfg.eval, cfg.seeds.eval = ctx.cfg.judge, ctx.cfg.eval, ctx.cfg.seeds.eval
    return arm.ctx.with_config(cfg)


def _judge_notes(ctx: Context, x: Graph, y: Graph) -> dict[str, Any]:
    """A warning where the judge of a head-to-head is an arm's labeler that may be guessing."""
    notes: dict[str, Any] = {}
    for arm in (x, y):
        notes |= judge_gate(_meeting(ctx, arm), arm.built["label"])
    return notes


def _record(
    ctx: Context,
    graphs: Mapping[str, Graph],
    duels: Mapping[tuple[str, str], Artifact],
    summaries: Mapping[str, dict[str, Any]],
    verdicts: list[dict[str, Any]],
) -> None:
    if ctx.run is None:
        return
    ctx.run.table("arms", [{"arm": name, **summary} for name, summary in summaries.items()])
    ctx.run.table("verdicts", verdicts)
    rows: dict[str, dict[str, Any]] = {}
    for graph in graphs.values():
        for row in graph.lineage():
            known = rows.setdefault(f"{row['kind']}-{row['digest']}", row)
            known["reused"] = known["reused"] and row["reused"]  # one arm built it, the next found it
    for (x, y), duel in duels.items():
        rows[duel.name] = {**ctx.store.lineage(duel)[0], "reused": duel.reused}
        ctx.run.table(f"samples_{x}_vs_{y}", comparison_rows(duel, ctx.cfg.report.samples))
    ctx.run.lineage(list(rows.values()))
