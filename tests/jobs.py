"""Jobs of train.py in this process, composed by Hydra as on the command line."""

from collections.abc import Sequence
from pathlib import Path

from rlaif.app.compose import composed, read_options
from rlaif.stages.common.context import Context
from rlaif.tracking.glossary import unknown
from rlaif.tracking.runs import RunRecord, load_run

CODE = Path(__file__).resolve().parents[1]


def job_context(words: Sequence[str]) -> Context:
    """A job that is only inspected, not run."""
    with composed(words) as cfg:
        return Context(read_options(cfg), None)


def start_job(words: Sequence[str], group: str | None = None) -> RunRecord | None:
    """Run one job and return its record, or None for a plan. Every metric that it logs must be in the registry."""
    from rlaif.app.job import run_job

    with composed(words) as cfg:
        summary = run_job(cfg, words, group)
    if summary is None:
        return None
    record = load_run(summary.parent)
    assert unknown(logged(record)) == []
    return record


def logged(record: RunRecord) -> set[str]:
    """Every metric that a run logged: in its summary, its history and the columns of its tables."""
    tables = [record.table(file.stem) for file in record.path.glob("tables/*.jsonl")]
    columns = {name for rows in (record.history, *tables) for row in rows for name in row}
    return {name for name in columns if "/" in name} | set(record.summary)
