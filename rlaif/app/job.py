"""One job: seeds, run record, the requested stage, its summary and its table."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import torch
from omegaconf import DictConfig

from rlaif.app.clean import clean
from rlaif.app.compose import arm_composer, read_options, with_jury
from rlaif.app.disk import written_below
from rlaif.app.doctor import doctor
from rlaif.app.export import check_export, check_loaded, export_model
from rlaif.app.plan.models import attention_path, check_memory, check_training, memory_lines
from rlaif.app.plan.seconds import merge_plans, plan_table, total_seconds
from rlaif.app.plan.sizes import Sized, sized
from rlaif.app.report import (
    choose_runs,
    finished_runs,
    is_difference,
    is_due,
    report_sweep,
    write_chosen,
    write_comparison,
    write_ledger,
    write_report,
    write_sweep,
)
from rlaif.app.watch.watch import watch_report
from rlaif.errors import UserError
from rlaif.io.cores import own_cores
from rlaif.io.terminal import console
from rlaif.options.job import Options
from rlaif.options.read import plain
from rlaif.options.rules import shown
from rlaif.report.comparison import sweep_table, terminal_arms, terminal_comparison
from rlaif.report.dashboard.layout import layout_of
from rlaif.report.diff.difference import difference
from rlaif.report.diff.page import terminal_difference
from rlaif.report.summary import result_table
from rlaif.stages.common.context import Context
from rlaif.stages.eval.judge_tables import judge_grids, terminal_grid
from rlaif.stages.graph import Graph, Planned
from rlaif.stages.label.section import subset_table
from rlaif.stages.record import record
from rlaif.stages.registry import STAGES
from rlaif.study.arms import Arm, read_arms
from rlaif.study.claims.claim import missing, read_claim
from rlaif.study.claims.measure import CLAIM, unmet_row
from rlaif.study.compare import compare_arms
from rlaif.study.labelers import labelers_of, labelers_table, terminal_labelers
from rlaif.study.sweeps import sweep
from rlaif.tracking import Run, WandbOptions, Watch, check_environment, run_directory
from rlaif.tracking.glossary import groups, names
from rlaif.tracking.runs import find_runs, load_run
from rlaif.tracking.sweep import Entry, Ledger
from rlaif.tracking.text import duration
from rlaif.tracking.wandb_run import sync_command

logger = logging.getLogger(__name__)

OTHER_STAGES = ("report", "dashboard", "compare", "doctor", "clean", "pipeline")


def prepare_torch(options: Options) -> None:
    """Threads, and the same arithmetic in every job of a multirun."""
    torch.set_num_threads(options.trainer.threads or own_cores())
    torch.manual_seed(0)


def run_job(
    cfg: DictConfig,
    overrides: Sequence[str],
    group: str | None,
    entry: Entry | None = None,
    watch: Watch | None = None,
) -> Path | None:
    """Run one composed configuration; returns the summary's path (None for a plan). Raises UserError.

    `entry`: the job's row in its sweep's ledger. `watch` is a search's: it is told of each row of the history, and
    may raise Pruned.
    """
    if cfg.stage not in (*STAGES, *OTHER_STAGES):
        raise UserError(f"stage={cfg.stage} is not known: write one of {', '.join((*STAGES, *OTHER_STAGES))}")
    options = read_options(cfg)
    _check(options)
    prepare_torch(options)
    with written_below(options.paths.root):
        return _run(sized(options, overrides, entry.ledger.agree if entry else None), group, entry, watch)


def _run(job: Sized, group: str | None, entry: Entry | None, watch: Watch | None) -> Path | None:
    overrides = job.words
    options, compose = with_jury(job.options, overrides), arm_composer(overrides)
    if options.plan and options.stage != "clean":
        print_plan(Context(options, None, compose))
        return None
    if options.stage == "doctor":
        doctor(Context(options, None, compose))
        return None
    if options.report.watch:
        watch_report(Context(options, None, compose), Event())
        return None
    tracking, wandb = options.tracking, wandb_options(options, group)
    directory = run_directory(Path(options.paths.root).expanduser().absolute(), options.stage)
    if options.stage == "compare" and wandb is not None and wandb.group is None:
        wandb = replace(wandb, group=_ablation(overrides, directory))
    with Run(
        directory=directory,
        stage=options.stage,
        config={name: value for name, value in plain(options).items() if name != "dashboard"},
        overrides=list(overrides),
        group=tracking.group or group,
        name=tracking.name or os.environ.get("WANDB_NAME") or _job_name(options.stage, overrides),
        wandb_options=None if options.stage == "dashboard" else wandb,  # which is about runs, and none itself
        watch=watch,
    ) as run:
        if entry:
            entry.began(run.directory, run.commit)
        ctx = Context(options, run, compose)
        with closing(ctx.progress):
            _dispatch(ctx, run, wandb, overrides)
            if job.why:
                run.summary({"demo/size": options.demo.size, "demo/why": job.why})
    if entry:
        entry.finished()
    if watch:  # a search ends with a table of its own
        return _finish(ctx, run, None, None)
    return _finish(ctx, run, group, entry.ledger if entry else None)


def _ablation(overrides: Sequence[str], directory: Path) -> str:
    """W&B's group of a comparison and its arms: the experiment's name and the run's, by which one finds it."""
    words = [word.partition("=")[2] for word in overrides if word.startswith("experiments=")]
    return f"{(words or ['compare'])[-1]}-{directory.name}"[-128:]


def _check(options: Options) -> None:
    """Refuse what can be refused before anything is opened or written."""
    layout_of(options.dashboard)
    if options.force not in (True, False, "all"):
        raise UserError(f"force={shown(options.force)} is not known: write true, false or all")
    if options.report.sweep is not None and options.stage not in ("report", "dashboard"):
        raise UserError(
            f"sweep={options.report.sweep} shows a sweep that was started: write stage=report sweep=ID; to start the "
            "one of a file, write sweeps=NAME"
        )
    for key in ("runs", "watch"):
        if getattr(options.report, key) and options.stage != "report":
            raise UserError(
                f"report.{key} has no meaning with stage={options.stage}: write stage=report, or leave it out"
            )
    if options.export and options.stage not in ("sft", "rm", "rl"):
        raise UserError(
            f"export={options.export}: stage={options.stage} does not make a model; write stage=sft, rm or rl"
        )
    if options.export and Path(options.export).expanduser().is_file():
        raise UserError(f"export={options.export} is a file: write a folder, which may be new")


def _job_name(stage: str, overrides: Sequence[str]) -> str:
    told = [o for o in overrides if not o.startswith(("stage=", "paths.", "tracking.", "size=", "demo."))]
    return " ".join([stage, *told])[:120]


def wandb_options(options: Options, group: str | None) -> WandbOptions | None:
    """The configuration's settings, else W&B's own variables, else our defaults. Raises UserError for bad ones."""
    own, env = options.tracking, os.environ
    if own.mode == "disabled":
        return None
    upload: Any = own.upload or ("text" if options.task.public else "metrics")
    found = WandbOptions(
        project=own.project or env.get("WANDB_PROJECT") or "rlaif",
        mode=own.mode,  # type: ignore[arg-type]
        entity=own.entity or env.get("WANDB_ENTITY") or None,
        group=own.group or env.get("WANDB_RUN_GROUP") or group,
        job_type={"compare": "comparison"}.get(options.stage, options.stage),
        tags=_tags(own.tags or ()),
        upload=upload,
    )
    check_environment(found.mode)
    return found


def _tags(stated: Sequence[str]) -> tuple[str, ...]:
    """The stated tags, else those of WANDB_TAGS, which commas separate. Raises UserError for an odd one."""
    if not stated:
        stated = [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag.strip()]
    odd = [tag for tag in stated if not 1 <= len(tag.strip()) <= 64]
    if odd:
        raise UserError(f"tracking.tags has {odd[0]!r}: a tag must have 1 to 64 characters")
    return tuple(dict.fromkeys(stated))


def print_plan(ctx: Context) -> None:
    """What the stage, or each arm of a comparison, would reuse and build."""
    stage = ctx.options.stage
    target = {"pipeline": "eval", "compare": ctx.options.until}.get(stage, stage)
    claim = read_claim(ctx) if stage == "compare" else None
    if claim is not None and (needs := missing(ctx, claim)):
        console().print(unmet_row(claim, needs)["sentence"])
        return
    if target not in STAGES:
        raise UserError(f"plan=true plans {', '.join(STAGES)}, compare and pipeline, not stage={stage}")
    arms = read_arms(ctx) if stage == "compare" else [Arm("", {"": ctx})]
    planned: list[Planned] = []
    for arm in arms:
        check_memory(arm.first)
        graphs = [Graph(run, STAGES) for run in arm.runs.values()]
        for graph in graphs:
            graph.check(target)
            check_export(graph.ctx)
        plan = merge_plans([graph.plan(target) for graph in graphs], after=planned)
        check_training(arm.first, plan)
        planned += plan
        console().print(plan_table(arm.first, plan, f"Plan of arm {arm.name}" if arm.name else "Plan"))
    if len(arms) > 1:
        console().print(f"All {len(arms)} arms: about {duration(total_seconds(ctx, planned))}")
    for line in dict.fromkeys(line for arm in arms for line in memory_lines(arm.first)):
        console().print(f"memory: {line}", markup=False, highlight=False)


def _dispatch(ctx: Context, run: Run, wandb: WandbOptions | None, words: Sequence[str]) -> None:
    stage = ctx.options.stage
    if stage == "clean":
        run.summary(clean(ctx))
    elif stage == "compare":
        run.summary(compare_arms(ctx))
    elif stage == "report" and ctx.options.report.sweep is not None:
        report_sweep(ctx, run)
    elif stage == "report":
        chosen = choose_runs(ctx)
        if is_difference(ctx):
            for part in terminal_difference(difference(*chosen)):
                console().print(part)
        written = write_chosen(ctx, chosen)
        run.summary({"report/path": str(written)})
        print(f"report: {written}")
    elif stage == "dashboard":
        from rlaif.app.dashboard.stage import write_dashboard  # no other stage needs W&B's classes of it

        run.summary(dict(write_dashboard(ctx, choose_runs(ctx), wandb, words)))
    else:
        _build(ctx, run, "eval" if stage == "pipeline" else stage)


def _build(ctx: Context, run: Run, target: str) -> None:
    force, graph = ctx.options.force, Graph(ctx, STAGES)
    graph.check(target)
    check_export(ctx)
    check_loaded(ctx)
    if ctx.options.stage == "pipeline":
        plan = graph.plan(target)
        if not all(p.exists for p in plan):
            console(stderr=True).print(plan_table(ctx, plan, "Plan"))
    artifact = graph.get(target, force=bool(force), force_parents=force == "all")
    record(graph, run)
    _record_model(ctx, run)
    run.lineage(graph.lineage())
    if ctx.options.export:
        folder = export_model(ctx, artifact, Path(ctx.options.export).expanduser(), graph.summary())
        print(f"exported: {folder}")


def _record_model(ctx: Context, run: Run) -> None:
    """How the base model ran, if this job has loaded it."""
    model = ctx.loaded(ctx.model_spec)
    if model is None:
        return
    verdict = model.trunk.verdict
    run.summary({"model/attention": attention_path(verdict)})
    if not verdict.patterns:
        run.summary({"model/why": verdict.why})


def _finish(ctx: Context, run: Run, group: str | None, ledger: Ledger | None) -> Path:
    """Print the table and write the report, from the run directory alone, once the run is closed."""
    stage = ctx.options.stage
    record = load_run(run.directory)
    if stage in (*STAGES, "pipeline"):
        console().print(result_table(record.summary, record.history))
        subsets = subset_table(record.table("label_subsets"))
        if subsets is not None:
            console().print(subsets)
        for grid in judge_grids([record.table("judges"), record.table("judge_agreement")]):
            console().print(terminal_grid(grid))
    if stage == "compare":
        for part in terminal_comparison(record):
            console().print(part)
        for claim in record.table(CLAIM):
            console().print(f"{claim['id']}: {claim['sentence']}", markup=False, highlight=False)
    if stage in ("label", "rm", "pipeline", "eval", "compare"):
        name = f"{stage}-{record.path.name}"
        print(f"report: {write_report(ctx, [record], name, f'{stage}: {record.name}')}")
        if stage == "compare":
            print(f"tables: {write_comparison(ctx, record, name)}")
    if record.table(CLAIM):
        print(f"ledger: {write_ledger(ctx)}")
    elif group:
        _sweep_report(ctx, group, ledger)
    if run.offline:
        print(f"upload to W&B: {sync_command(ctx.root)}")
    return run.summary_path


def _sweep_report(ctx: Context, group: str, ledger: Ledger | None) -> None:
    """Render the sweep's report again after each finished job, so that a failed job does not cost the others theirs."""
    stage = ctx.options.stage
    runs = finished_runs(ledger) if ledger else find_runs(ctx.root, stage=stage, group=group)
    own = [run for run in runs if run.stage == stage]
    if len(own) < 2 or (ledger and not is_due(ctx.root, group, len(runs))):
        return
    main, *more = names("ablation", stage if stage in groups("ablation") else "eval")
    present = [name for name in more if any(run.summary.get(name) is not None for run in own)]
    for part in terminal_arms(sweep_table(sweep(own, [main, *present]))):
        console().print(part)
    labelers = labelers_table(*labelers_of(own))
    if labelers:
        console().print(terminal_labelers(labelers))
    print(f"sweep report: {write_sweep(ctx, group, runs, ledger)}")
