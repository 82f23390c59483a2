"""What became of each job of a sweep, at any time: finished, failed with its sentence, running, still to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath

from rich.table import Table as RichTable
from rich.text import Text

from rlaif.tracking.sweep import Job, Ledger
from rlaif.tracking.sweep.ledger import counts, now
from rlaif.tracking.text import MISSING, duration


@dataclass(frozen=True)
class JobRow:
    """One job in words. `note`: its error, who runs it, or why it is not running."""

    number: int
    words: str
    state: str
    attempts: int
    took: str
    note: str
    run: str


@dataclass(frozen=True)
class SweepTable:
    """The jobs of a sweep, how many are in each state, and what else there is to know about them."""

    id: str
    counts: str
    rows: Sequence[JobRow]
    notes: Sequence[str]

    @property
    def open(self) -> bool:
        """Whether the jobs are more than a list of what the page shows anyway."""
        return any(row.state != "finished" or row.attempts > 1 for row in self.rows)


def sweep_jobs(ledger: Ledger) -> SweepTable:
    """The table of a sweep's jobs at this moment."""
    about, jobs, starts = ledger.about(), ledger.jobs(), ledger.starts()
    common = set.intersection(*(set(job.words) for job in jobs)) if len(jobs) > 1 else set()
    rows = [_row(job, [word for word in job.words if word not in common]) for job in jobs]
    notes = [_start_note(start, number, len(starts)) for number, start in enumerate(starts, 1)]
    notes += [_accepted_note(accepted) for accepted in about.get("accepted", [])]
    if any(job.state in ("queued", "stopped") for job in jobs) and starts and not ledger.active:
        notes.append(f"No process works on this sweep; go on with: {starts[-1]['command']}")
    return SweepTable(ledger.id, counts_text(jobs), rows, notes)


def counts_text(jobs: Sequence[Job]) -> str:
    """How many jobs there are, and how many in each state."""
    told = ", ".join(f"{number} {state}" for state, number in counts(jobs).items())
    return f"{len(jobs)} {'job' if len(jobs) == 1 else 'jobs'}: {told}" if jobs else "no jobs"


def _row(job: Job, words: Sequence[str]) -> JobRow:
    run = PurePosixPath(job.runs[-1]).name if job.runs else MISSING
    return JobRow(
        job.number, " ".join(words) or "(all defaults)", job.state, job.attempts, _took(job), _note(job), run
    )


def _took(job: Job) -> str:
    """Seconds of the last attempt, up to now if it runs."""
    end = now() if job.state == "running" else job.finished
    if job.started is None or end is None or job.state in ("queued", "stopped"):
        return MISSING
    return duration((datetime.fromisoformat(end) - datetime.fromisoformat(job.started)).total_seconds())


def _note(job: Job) -> str:
    if job.state in ("failed", "pruned"):
        return job.error or ""
    if job.state == "running":
        return f"process {job.pid} on {job.host}, since {job.started}"
    if job.state == "stopped":
        return f"process {job.pid} on {job.host} has died"
    return ""


def _start_note(start: Mapping[str, object], number: int, of: int) -> str:
    """What a start of the sweep did, with the jobs that it skipped."""
    return f"Start {number} of {of} ({start['time']}, process {start['pid']} on {start['host']}): {start['said']}."


def _accepted_note(accepted: Mapping[str, object]) -> str:
    differences = accepted["differences"]
    told = "; ".join(map(str, differences)) if isinstance(differences, list) else ""
    return f"Accepted on {accepted['time']}, with {accepted['finished']} jobs finished before: {told}."


def terminal_jobs(table: SweepTable) -> RichTable:
    """The table for the terminal."""
    view = RichTable(
        title=f"Sweep {table.id}: {table.counts}", caption="\n".join(table.notes), header_style="bold"
    )
    for name in ("#", "job", "state", "attempts", "took", "note"):
        right = name in ("#", "attempts", "took")
        view.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=name == "took")
    for row in table.rows:
        cells = (str(row.number), row.words, row.state, str(row.attempts), row.took, row.note)
        view.add_row(*map(Text, cells))
    return view
