"""Which runs stage=report takes: a sweep's, also while they are watched, and no two selections at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs import job_context, start_job
from synthetic_runs import write_run

from rlaif.app.report import choose_runs
from rlaif.errors import UserError
from rlaif.tracking.runs import find_runs, load_run
from rlaif.tracking.sweep import Job, Ledger

WORDS = ("stage=report", "profile=smoke", "tracking=none")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three runs, of which a sweep has the first, and the second as that of a job that has not ended."""
    ledger = Ledger(tmp_path / "sweeps" / "x-1")
    ledger.describe({"created": "2026-01-01T00:00:00"})
    for number, state in enumerate(("finished", "running", None)):
        own = write_run(tmp_path, f"2026010{number}-a", stage="rm", summary={"rm/accuracy": 0.5})
        if state:
            runs = (str(own.relative_to(tmp_path)),)
            ledger.write(Job(f"k{number}", number, (), state=state, runs=runs))
    return tmp_path


def test_a_sweeps_finished_runs_or_all_that_are_watched(root: Path) -> None:
    ctx = job_context([*WORDS, f"paths.root={root}", "report.sweep=x"])
    first, second, third = find_runs(root, stage="rm")
    assert [run.id for run in choose_runs(ctx)] == [first.id]
    watched = choose_runs(ctx, [load_run(run.path) for run in (first, second, third)])
    assert [run.id for run in watched] == [first.id, second.id]


@pytest.mark.parametrize("word", ["report.runs=[a,b]", "report.stage=rm", "report.group=g"])
def test_a_second_selection_is_refused(root: Path, word: str) -> None:
    with pytest.raises(UserError, match="leave report"):
        choose_runs(job_context([*WORDS, f"paths.root={root}", "report.sweep=x", word]))
    with pytest.raises(UserError, match="leave report"):
        start_job([*WORDS, f"paths.root={root}", "report.sweep=x", word])
