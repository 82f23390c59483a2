"""One job: seeds, run record, the requested stage, its summary and its table."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from rlaif.artifacts import Artifact
from rlaif.errors import UserError
from rlaif.io import read_jsonl
from rlaif.models.weights import export_policy, export_reward, load_reward, load_top
from rlaif.reports import (
    ablation_table,
    find_runs,
    labelers_of,
    labelers_table,
    load_run,
    result_table,
    terminal_labelers,
    terminal_table,
)
from rlaif.stages import evaluate, label, rm
from rlaif.stages.clean import clean
from rlaif.stages.compare import arm_contexts, compare_arms
from rlaif.stages.context import Context, apply_engine, apply_seed, require_values
from rlaif.stages.doctor import doctor
from rlaif.stages.graph import Graph
from rlaif.stages.messages import wrong_kind
from rlaif.stages.plan import plan_table
from rlaif.stages.ppo import HISTORY_FILE
from rlaif.stages.registry import STAGES
from rlaif.stages.report import choose_runs, write_report
from rlaif.stages.terminal import console
from rlaif.tracking import Run, WandbOptions, run_directory

logger = logging.getLogger(__name__)

OTHER_STAGES = ("report", "compare", "doctor", "clean", "pipeline")
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


def prepare_torch(cfg: DictConfig) -> None:
    """Threads, and the same arithmetic in every job of a multirun."""
    torch.set_num_threads(cfg.trainer.threads or len(os.sched_getaffinity(0)))
    torch.manual_seed(0)


def run_job(cfg: DictConfig, overrides: Sequence[str], group: str | None) -> Path | None:
    """Run one composed configuration; returns the summary's path (None for a plan). Raises UserError."""
    if cfg.stage not in (*STAGES, *OTHER_STAGES):
        raise UserError(f"stage={cfg.stage} is not known: write one of {', '.join((*STAGES, *OTHER_STAGES))}")
    _check_config(cfg, overrides)
    apply_seed(cfg)
    apply_engine(cfg)
    prepare_torch(cfg)
    OmegaConf.resolve(cfg)
    if cfg.plan and cfg.stage != "clean":
        print_plan(Context(cfg, None, overrides))
        return None
    if cfg.stage == "doctor":
        doctor(Context(cfg, None, overrides))
        return None
    wandb_options = _wandb_options(cfg, group)
    with Run(
        directory=run_directory(Path(cfg.paths.root).expanduser().absolute(), cfg.stage),
        stage=cfg.stage,
        config=OmegaConf.to_container(cfg, resolve=True),  # type: ignore[arg-type]
        overrides=list(overrides),
        group=cfg.tracking.group or group,
        name=cfg.tracking.name or _job_name(cfg, overrides),
        wandb_options=wandb_options,
    ) as run:
        ctx = Context(cfg, run, overrides)
        _dispatch(ctx, run)
    return _finish(ctx, run, group)


def _check_config(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """What can be refused before anything is opened or written."""
    if cfg.force not in (True, False, "all"):
        raise UserError(f"force={cfg.force} is not known: write true, false or all")
    for key in {override.split("=")[0].lstrip("+") for override in overrides} - {"force"}:
        value = None if "@" in key or "/" in key else OmegaConf.select(cfg, key)
        wrong = wrong_kind(key, value, Path(cfg.paths.code) / "conf")
        if wrong and not OmegaConf.is_config(value):
            raise UserError(wrong)
    if cfg.stage not in ("compare", "report", "clean"):
        require_values(cfg)
    if cfg.export and cfg.stage not in ("sft", "rm", "ppo"):
        raise UserError(f"export={cfg.export}: stage={cfg.stage} makes no model; write stage=sft, rm or ppo")


def _job_name(cfg: DictConfig, overrides: Sequence[str]) -> str:
    told = [o for o in overrides if not o.startswith(("stage=", "paths.", "tracking."))]
    return " ".join([cfg.stage, *told])[:120]


def _wandb_options(cfg: DictConfig, group: str | None) -> WandbOptions | None:
    node = cfg.tracking
    if node.mode == "disabled":
        return None
    upload: Any = node.upload or ("text" if cfg.task.public else "metrics")
    return WandbOptions(
        node.project, node.mode, node.entity, node.group or group, cfg.stage, tuple(node.tags), upload
    )


def print_plan(ctx: Context) -> None:
    """What the stage, or each arm of a comparison, would reuse and build."""
    stage = ctx.cfg.stage
    target = {"pipeline": "eval", "compare": ctx.cfg.until}.get(stage, stage)
    if target not in STAGES:
        raise UserError(f"plan=true plans {', '.join(STAGES)}, compare and pipeline, not stage={stage}")
    arms = arm_contexts(ctx) if stage == "compare" else {"": ctx}
    for name, arm in arms.items():
        graph = Graph(arm, STAGES)
        graph.check(target)
        title = f"Plan of arm {name}" if name else "Plan"
        console().print(plan_table(arm, graph.plan(target), title))


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
    force, graph = ctx.cfg.force, Graph(ctx, STAGES)
    graph.check(target)
    if ctx.cfg.stage == "pipeline":
        plan = graph.plan(target)
        if not all(p.exists for p in plan):
            console(stderr=True).print(plan_table(ctx, plan, "Plan"))
    artifact = graph.get(target, force=bool(force), force_parents=force == "all")
    for ancestor in graph.built.values():
        run.artifact(name=ancestor.name, kind=ancestor.kind, path=ancestor.path, metadata=ancestor.metrics)
    run.summary(graph.summary())
    run.lineage(graph.lineage())
    _history(graph, run)
    _tables(ctx, graph, run)
    if ctx.cfg.export:
        _export(ctx, artifact)


def _history(graph: Graph, run: Run) -> None:
    """A reused PPO run's curves belong to this run's report too."""
    ppo = graph.built.get("ppo")
    if ppo is not None and ppo.reused:
        for row in read_jsonl(ppo.file(HISTORY_FILE)):
            run.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])


def _tables(ctx: Context, graph: Graph, run: Run) -> None:
    limit, built = ctx.cfg.report.samples, graph.built
    items: list[dict[str, Any]] = []
    if "label" in built:
        run.table("judgements", label.judgement_rows(ctx, built["label"], built["sample"], limit))
        run.table("reliability", label.reliability_rows(ctx, built["label"]))
        for name, rows in label.bin_rows(ctx, built["label"], built["sample"]).items():
            run.table(name, rows)
        items += label.item_rows(ctx, built["label"])
    if "rm" in built:
        items += rm.item_rows(built["rm"])
    if "eval" in built:
        run.table("samples", evaluate.comparison_rows(built["eval"]))
        items += evaluate.item_rows(built["eval"])
    if items:
        run.table("items", items)


def _export(ctx: Context, artifact: Artifact) -> None:
    """Write the whole model of stage sft, rm or ppo where users take it elsewhere."""
    target = Path(ctx.cfg.export).expanduser()
    if artifact.kind in ("sft", "ppo"):
        export_policy(target, ctx.model(), load_top(ctx.model(), artifact.path))
    else:
        export_reward(target, ctx.model(), *load_reward(ctx.model(), artifact.path))
    print(f"exported: {target}")


def _finish(ctx: Context, run: Run, group: str | None) -> Path:
    """The table and the report, from the run directory alone, after the run is closed."""
    stage = ctx.cfg.stage
    record = load_run(run.directory)
    if stage in (*STAGES, "pipeline"):
        console().print(result_table(record.summary, record.history))
    if stage in ("label", "pipeline", "eval", "compare"):
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
    console().print(terminal_table(ablation_table(runs, metrics)))
    labelers = labelers_table(*labelers_of(runs))
    if labelers:
        console().print(terminal_labelers(labelers))
    print(f"sweep report: {write_report(ctx, runs, f'sweep-{group}', f'Sweep {group}')}")
