"""stage=report, and the report that ends a pipeline, a comparison or a sweep."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from rlaif.errors import UserError
from rlaif.io import write_text
from rlaif.io.terminal import console
from rlaif.report.dashboard.layout import layout_of
from rlaif.report.diff.difference import difference
from rlaif.report.diff.page import difference_title, render_difference
from rlaif.report.ledger.entries import ledger_entries
from rlaif.report.ledger.page import ledger_markdown, ledger_page
from rlaif.report.markdown import comparison_markdown
from rlaif.report.page import render_report
from rlaif.report.sweep.table import SweepTable, counts_text, sweep_jobs, terminal_jobs
from rlaif.stages.common.context import Context
from rlaif.tracking import Run
from rlaif.tracking.named import named_runs, short_name
from rlaif.tracking.runs import RunRecord, find_runs, load_run
from rlaif.tracking.sweep import Ledger, find_ledgers

_MOST = 8  # sweeps that a sentence lists
EACH_TIME = 24  # finished jobs up to which each one renders the sweep's page
NEWEST_FIRST = ("compare", "pipeline", "eval", "rl", "rm", "label", "sample", "sft", "revise")


def choose_runs(ctx: Context, among: Sequence[RunRecord] | None = None) -> list[RunRecord]:
    """The runs that `report.runs` names, a sweep's, or those that `report.stage` and `report.group` select.

    With none of these, those of the latest run's stage. They are selected from the finished runs, or `among` others.
    """
    options = ctx.options.report
    if options.runs or options.sweep is not None:
        _refuse_selection(ctx)
    if options.runs:
        return named_runs(ctx.root, options.runs, NEWEST_FIRST)
    if options.sweep is not None:
        return _of_sweep(find_sweep(ctx.root, str(options.sweep)), among)
    if options.stage not in (None, *NEWEST_FIRST):
        raise UserError(f"report.stage={options.stage} is not known: write one of {', '.join(NEWEST_FIRST)}")
    found = find_runs(ctx.root, stage=options.stage, group=options.group) if among is None else among
    runs = [run for run in found if run.stage in NEWEST_FIRST]
    if not runs:
        raise UserError(
            f"no finished run in {ctx.root / 'runs'}: run a stage first, or choose another report.stage or report.group"
        )
    if options.stage is None and options.group is None:
        runs = [r for r in runs if r.stage == runs[-1].stage]
    return runs[-options.limit :]


def _refuse_selection(ctx: Context) -> None:
    """Raise UserError for a selection beside a list of runs, which it could only contradict."""
    options = ctx.options.report
    key = "runs" if options.runs else "sweep"
    others = {
        "sweep": options.sweep if options.runs else None,
        "stage": options.stage,
        "group": options.group,
    }
    for name, value in others.items():
        if value is not None:
            raise UserError(f"report.{key} names the runs: leave report.{name} out")


def _of_sweep(ledger: Ledger, among: Sequence[RunRecord] | None) -> list[RunRecord]:
    """The sweep's runs: the finished ones, or its last of each job `among` others."""
    if among is not None:
        last = {ledger.root / job.runs[-1] for job in ledger.jobs() if job.runs}
        runs = [run for run in among if run.path in last]
    else:
        runs = finished_runs(ledger)
    if not runs:
        raise UserError(f"no run of sweep {ledger.id} has finished yet: ask again later")
    return runs


def is_difference(ctx: Context) -> bool:
    """Whether two runs are named, whose difference is shown."""
    return len(ctx.options.report.runs or ()) == 2


def write_chosen(ctx: Context, runs: Sequence[RunRecord]) -> Path:
    """The page of stage=report: the difference of two runs, a sweep, or a report on any others."""
    if ctx.options.report.sweep is not None:
        ledger = find_sweep(ctx.root, str(ctx.options.report.sweep))
        return write_sweep(ctx, ledger.id, runs, ledger)
    if not is_difference(ctx):
        return write_report(ctx, runs, "report", "Ablation report")
    a, b = runs
    output = ctx.root / "reports" / f"diff-{short_name(a)}-{short_name(b)}.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(output) + ".lock"):
        return render_difference(difference(a, b), output, title=difference_title(a, b))


def write_report(
    ctx: Context, runs: Sequence[RunRecord], name: str, title: str, jobs: SweepTable | None = None
) -> Path:
    """Render `outputs/reports/<name>.html` under a lock: jobs of a sweep may finish together."""
    output = ctx.root / "reports" / f"{name}.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(output) + ".lock"):
        layout = layout_of(ctx.options.dashboard)
        return render_report(runs, output, title=title, layout=layout, jobs=jobs)


def is_due(root: Path, group: str, runs: int) -> bool:
    """Whether a job that has finished renders the page of its sweep, which now has so many finished `runs`.

    Of many not each time, since a page takes longer the more there are: with half a second of rest per run, at most a
    tenth of a sweep's time goes into it. The sweep's end renders the last one.
    """
    page = root / "reports" / f"sweep-{group}.html"
    return runs <= EACH_TIME or not page.exists() or time.time() - page.stat().st_mtime > runs / 2


def write_sweep(ctx: Context, group: str, runs: Sequence[RunRecord], ledger: Ledger | None) -> Path:
    """Render the report of a sweep, with what became of each of its jobs."""
    jobs = sweep_jobs(ledger) if ledger else None
    return write_report(ctx, runs, f"sweep-{group}", f"Sweep {group}", jobs)


def report_sweep(ctx: Context, run: Run) -> None:
    """stage=report sweep=ID: the sweep's jobs at this moment, and the report on those that have finished."""
    _refuse_selection(ctx)
    ledger = find_sweep(ctx.root, str(ctx.options.report.sweep))
    console().print(terminal_jobs(sweep_jobs(ledger)))
    runs = finished_runs(ledger)
    if not runs:
        print(f"sweep {ledger.id}: no job has finished yet, so there is nothing to report")
        return
    output = write_sweep(ctx, ledger.id, runs, ledger)
    run.summary({"report/path": str(output)})
    print(f"report: {output}")


def finished_runs(ledger: Ledger) -> list[RunRecord]:
    """The last run of each job that has finished, whichever start of the sweep it was in."""
    folders = [ledger.root / job.runs[-1] for job in ledger.jobs() if job.state == "finished" and job.runs]
    return [load_run(folder) for folder in folders if folder.is_dir()]


def find_sweep(root: Path, name: str) -> Ledger:
    """The sweep whose ID is, or alone begins with, `name`. Raises UserError that lists the known ones."""
    known = find_ledgers(root)
    found = [ledger for ledger in known if ledger.id == name]
    found = found or [ledger for ledger in known if name and ledger.id.startswith(name)]
    if len(found) == 1:
        return found[0]
    if not known:
        raise UserError(f"sweep={name}: no sweep was started below {root}; start one with -m or sweeps=NAME")
    told = ", ".join(
        f"{ledger.id} ({str(ledger.about()['created'])[:16].replace('T', ' ')}, {counts_text(ledger.jobs())})"
        for ledger in reversed((found or known)[-_MOST:])
    )
    more = f" and {len(found or known) - _MOST} older ones" if len(found or known) > _MOST else ""
    what = "names several sweeps" if found else "is no sweep" if name else "needs the ID of a sweep"
    raise UserError(f"sweep={name} {what}: write one of {told}{more}")


def write_comparison(ctx: Context, run: RunRecord, name: str) -> Path:
    """Write the tables of a comparison to `outputs/reports/<name>.md`."""
    output = ctx.root / "reports" / f"{name}.md"
    write_text(output, comparison_markdown(run))
    return output


def write_ledger(ctx: Context) -> Path:
    """Render the claims ledger of all finished runs to `outputs/reports/ledger.html` and `.md`, under a lock."""
    output = ctx.root / "reports" / "ledger.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(output) + ".lock"):
        entries = ledger_entries(find_runs(ctx.root, stage="compare"))
        write_text(output.with_suffix(".md"), ledger_markdown(entries))
        write_text(output, ledger_page(entries))
    return output
