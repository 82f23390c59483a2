"""stage=report, and the report that ends a pipeline, a comparison or a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from rlaif.errors import UserError
from rlaif.io import write_text
from rlaif.report.diff.difference import difference
from rlaif.report.diff.page import difference_title, render_difference
from rlaif.report.ledger.entries import ledger_entries
from rlaif.report.ledger.page import ledger_markdown, ledger_page
from rlaif.report.markdown import comparison_markdown
from rlaif.report.page import render_report
from rlaif.stages.common.context import Context
from rlaif.tracking.named import named_runs, short_name
from rlaif.tracking.runs import RunRecord, find_runs

NEWEST_FIRST = ("compare", "pipeline", "eval", "rl", "rm", "label", "sample", "sft", "revise")


def choose_runs(ctx: Context, among: Sequence[RunRecord] | None = None) -> list[RunRecord]:
    """The runs that `report.runs` names, or those that `report.stage` and `report.group` select.

    With none of these, those of the latest run's stage. They are selected from the finished runs, or `among` others.
    """
    options = ctx.options.report
    if options.runs:
        return _named(ctx, options.runs)
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


def _named(ctx: Context, names: Sequence[str]) -> list[RunRecord]:
    options = ctx.options.report
    if options.stage is not None or options.group is not None:
        raise UserError("report.runs names the runs: leave report.stage and report.group out")
    return named_runs(ctx.root, names, NEWEST_FIRST)


def is_difference(ctx: Context) -> bool:
    """Whether two runs are named, whose difference is shown."""
    return len(ctx.options.report.runs or ()) == 2


def write_chosen(ctx: Context, runs: Sequence[RunRecord]) -> Path:
    """The page of stage=report: the difference of two runs that are named, or a report on any others."""
    if not is_difference(ctx):
        return write_report(ctx, runs, "report", "Ablation report")
    a, b = runs
    output = ctx.root / "reports" / f"diff-{short_name(a)}-{short_name(b)}.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(output) + ".lock"):
        return render_difference(difference(a, b), output, title=difference_title(a, b))


def write_report(ctx: Context, runs: Sequence[RunRecord], name: str, title: str) -> Path:
    """Render `outputs/reports/<name>.html` under a lock: jobs of a sweep may finish together."""
    output = ctx.root / "reports" / f"{name}.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(output) + ".lock"):
        return render_report(runs, output, title=title)


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
