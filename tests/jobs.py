"""Jobs of train.py in this process: composed by Hydra as the command line would."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from rlaif.app.compose import read_options
from rlaif.stages.common.context import Context
from rlaif.tracking.glossary import unknown
from rlaif.tracking.runs import RunRecord, load_run

CODE = Path(__file__).resolve().parents[1]


def job_context(words: Sequence[str]) -> Context:
    """A job that is only asked, not run."""
    with initialize_config_dir(str(CODE / "conf"), version_base="1.3"):
        return Context(read_options(compose("config", overrides=list(words))), None)


def start_job(words: Sequence[str], group: str | None = None) -> RunRecord | None:
    """Run one job; its record, None for a plan. All that it logged must be in the registry of metrics."""
    from rlaif.app.job import run_job

    with initialize_config_dir(str(CODE / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=list(words), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            cfg.pop("hydra")
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
