"""Jobs of train.py in this process: composed by Hydra as the command line would."""

from collections.abc import Sequence
from pathlib import Path

from rlaif.app.compose import composed, read_options
from rlaif.stages.common.context import Context
from rlaif.tracking.glossary import unknown
from rlaif.tracking.runs import RunRecord, load_run

CODE = Path(__file__).resolve().parents[1]


def job_context(words: Sequence[str]) -> Context:
    """A job that is only asked, not run."""
    with composed(words) as cfg:
        return Context(read_options(cfg), None)


def start_job(words: Sequence[str], group: str | None = None) -> RunRecord | None:
    """Run one job; its record, None for a plan. All that it logged must be in the registry of metrics."""
    from rlaif.app.job import run_job

    with composed(words) as cfg:
        summary = run_job(cfg, words, group)
    if summary is None:
        return None
    record = load_run(summary.parent)
    assert unknown(logged(record)) == []
    return record


def logged(record: RunRecord) -> set[str]:
    """Every metric that a run has logged: in its summary, its history and the columns of its tables."""
    tables = [record.table(file.stem) for file in record.path.glob("tables/*.jsonl")]
    columns = {name for rows in (record.history, *tables) for row in rows for name in row}
    return {name for name in columns if "/" in name} | set(record.summary)
