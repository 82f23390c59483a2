"""One job: seeds, run record, the requested stage, its summary and its table."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from rlaif.artifacts import Artifact
from rlaif.errors import UserError
from rlaif.models.weights import export_policy, export_reward, load_reward, load_top
from rlaif.reports import ablation_table, find_runs, load_run, result_table, terminal_table
from rlaif.stages.clean import clean
from rlaif.stages.compare import compare_arms
from rlaif.stages.context import Context
from rlaif.stages.doctor import doctor
from rlaif.stages.evaluate import comparison_rows
from rlaif.stages.graph import Graph
from rlaif.stages.label import judgement_rows
from rlaif.stages.plan import plan_table
from rlaif.stages.ppo import HISTORY_FILE
from rlaif.stages.registry import STAGES
from rlaif.stages.report import choose_runs, write_report
from rlaif.tracking import Run, WandbOptions, run_directory

logger = logging.getLogger(__name__)

OTHER_STAGES = ("report", "compare", "doctor", "clean", "pipeline")
SEEDS = {
    "sft": ("sft",),
    "sample": ("sample",),
    "label": ("label",),
    "rm": ("rm",),
    "ppo": ("rl",),
    "eval": ("eval",),
    "pipeline": ("rm", "rl"),
}
MAIN_METRIC = {
    "label": ["label/alignment", "label/unparsed_rate", "label/same_position_rate", "label/length_gap"],
    "rm": ["rm/accuracy", "rm/ece", "rm/length_correlation", "label/alignment"],
    "ppo": ["ppo/reward", "ppo/kl", "ppo/response_length", "ppo/eos_rate"],
    "sft": ["sft/val_loss"],
    "sample": ["sample/n", "sample/mean_tokens"],
}
EVAL_METRICS = [
    "eval/win_rate",
    "eval/win_rate_lc",
    "eval/rouge_l_policy",
    "eval/kl",
    "rm/accuracy",
    "label/alignment",
]


def apply_seed(cfg: DictConfig) -> None:
    """`seed=` sets the requested stage's seed only (for `pipeline`: rm and rl), so that the rest is shared."""
    if cfg.seed is not None:
        for name in SEEDS.get(cfg.stage, ()):
            cfg.seeds[name] = cfg.seed


def prepare_torch(cfg: DictConfig) -> None:
    """Threads, and the same arithmetic in every job of a multirun."""
    torch.set_num_threads(cfg.trainer.threads or len(os.sched_getaffinity(0)))
    torch.manual_seed(0)


def run_job(cfg: DictConfig, overrides: Sequence[str], group: str | None) -> Path | None:
    """Run one composed configuration; returns the summary's path (None for a plan). Raises UserError."""
    if cfg.stage not in (*STAGES, *OTHER_STAGES):
        raise UserError(f"stage={cfg.stage} is not known: write one of {', '.join((*STAGES, *OTHER_STAGES))}")
    apply_seed(cfg)
    prepare_torch(cfg)
    OmegaConf.resolve(cfg)
    if cfg.plan and cfg.stage != "clean":
        _print_plan(Context(cfg, None, overrides))
        return None
    if cfg.stage == "doctor":
        doctor(Context(cfg, None, overrides))
        return None
    root = Path(cfg.paths.root).expanduser().absolute()
    directory = run_directory(root, cfg.stage)
    with Run(
        directory=directory,
        stage=cfg.stage,
        config=OmegaConf.to_container(cfg, resolve=True),  # type: ignore[arg-type]
        overrides=list(overrides),
        group=cfg.tracking.group or group,
        name=cfg.tracking.name or _job_name(cfg, overrides),
        wandb_options=_wandb_options(cfg, group),
    ) as run:
        ctx = Context(cfg, run, overrides)
        _dispatch(ctx, run)
    return _finish(ctx, run, group)


def _job_name(cfg: DictConfig, overrides: Sequence[str]) -> str:
    told = [o for o in overrides if not o.startswith(("stage=", "paths.", "tracking."))]
    return " ".join([cfg.stage, *told])[:120]


def _wandb_options(cfg: DictConfig, group: str | None) -> WandbOptions | None:
    node = cfg.tracking
    if node.mode == "disabled":
        return None
    upload = node.upload or ("text" if cfg.task.public else "metrics")
    return WandbOptions(
        node.project, node.mode, node.entity, node.group or group, cfg.stage, tuple(node.tags), upload
    )


def _print_plan(ctx: Context) -> None:
    target = "eval" if ctx.cfg.stage == "pipeline" else ctx.cfg.stage
    if target not in STAGES:
        raise UserError(f"plan=true plans {', '.join(STAGES)} and pipeline, not stage={ctx.cfg.stage}")
    Console().print(plan_table(ctx, Graph(ctx, STAGES).plan(target)))


def _dispatch(ctx: Context, run: Run) -> None:
    stage = ctx.cfg.stage
    if stage == "clean":
        run.summary(clean(ctx))
    elif stage == "compare":
        run.summary(compare_arms(ctx))
    elif stage == "report":
        write = write_report(ctx, choose_runs(ctx), "report", "Ablation report")
        run.summary({"report/path": str(write)})
        print(f"report: {write}")
    else:
        _build(ctx, run, "eval" if stage == "pipeline" else stage)


def _build(ctx: Context, run: Run, target: str) -> None:
    force = ctx.cfg.force
    if force not in (True, False, "all"):
        raise UserError(f"force={force} is not known: write true, false or all")
    graph = Graph(ctx, STAGES)
    if ctx.cfg.stage == "pipeline":
        plan = graph.plan(target)
        if not all(p.exists for p in plan):
            Console(stderr=True).print(plan_table(ctx, plan))
    artifact = graph.get(target, force=bool(force), force_parents=force == "all")
    built = {f"{a.kind}-{a.digest}": a for a in graph.built.values()}
    metrics: dict[str, Any] = {}
    for ancestor in built.values():
        metrics.update(ancestor.metrics)
        metrics[f"{ancestor.kind}/seconds"] = ancestor.manifest["seconds"]
        run.artifact(name=ancestor.name, kind=ancestor.kind, path=ancestor.path, metadata=ancestor.metrics)
    run.summary(metrics)
    run.lineage(
        [
            {
                **row,
                "reused": built[name].reused if (name := f"{row['kind']}-{row['digest']}") in built else True,
            }
            for row in ctx.store.lineage(artifact)
        ]
    )
    _history(graph, run)
    _tables(ctx, graph, run)
    if ctx.cfg.export:
        _export(ctx, artifact)


def _history(graph: Graph, run: Run) -> None:
    """A reused PPO run's curves belong to this run's report too."""
    ppo = graph.built.get("ppo")
    if ppo is not None and ppo.reused:
        from rlaif.io import read_jsonl

        for row in read_jsonl(ppo.file(HISTORY_FILE)):
            run.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])


def _tables(ctx: Context, graph: Graph, run: Run) -> None:
    limit = ctx.cfg.report.samples
    if "eval" in graph.built:
        run.table("samples", comparison_rows(graph.built["eval"]))
    if "label" in graph.built:
        run.table("judgements", judgement_rows(ctx, graph.built["label"], graph.built["sample"], limit))


def _export(ctx: Context, artifact: Artifact) -> None:
    """Write the whole model of stage sft, rm or ppo where users take it elsewhere."""
    target = Path(ctx.cfg.export).expanduser()
    if artifact.kind in ("sft", "ppo"):
        export_policy(target, ctx.model(), load_top(ctx.model(), artifact.path))
    elif artifact.kind == "rm":
        export_reward(target, ctx.model(), *load_reward(ctx.model(), artifact.path))
    else:
        raise UserError(f"export={target}: stage={ctx.cfg.stage} makes no model; write stage=sft, rm or ppo")
    print(f"exported: {target}")


def _finish(ctx: Context, run: Run, group: str | None) -> Path:
    """The table and the report, from the run directory alone, after the run is closed."""
    stage = ctx.cfg.stage
    record = load_run(run.directory)
    if stage in (*STAGES, "pipeline"):
        Console().print(result_table(record.summary, record.history))
    if stage in ("pipeline", "eval", "compare"):
        report = write_report(ctx, [record], f"{stage}-{record.path.name}", f"{stage}: {record.name}")
        print(f"report: {report}")
    if group:
        _sweep_report(ctx, group)
    return run.summary_path


def _sweep_report(ctx: Context, group: str) -> None:
    """Rendered again by each finished job: a sweep with a failed job has a report of the others."""
    runs = find_runs(ctx.root, stage=ctx.cfg.stage, group=group)
    if len(runs) < 2:
        return
    metrics = MAIN_METRIC.get(ctx.cfg.stage, EVAL_METRICS)
    Console().print(terminal_table(ablation_table(runs, metrics)))
    print(f"sweep report: {write_report(ctx, runs, f'sweep-{group}', f'Sweep {group}')}")
