"""Jobs of train.py in this process: composed by Hydra as the command line would."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from rlaif.app.compose import read_options
from rlaif.stages.common.context import Context
from rlaif.tracking.runs import RunRecord, load_run

CODE = Path(__file__).resolve().parents[1]


def job_context(words: Sequence[str]) -> Context:
    """A job that is only asked, not run."""
    with initialize_config_dir(str(CODE / "conf"), version_base="1.3"):
        return Context(read_options(compose("config", overrides=list(words))), None)


def start_job(words: Sequence[str], group: str | None = None) -> RunRecord | None:
    """Run one job; its record, None for a plan."""
    from rlaif.app.job import run_job

    with initialize_config_dir(str(CODE / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=list(words), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            cfg.pop("hydra")
        summary = run_job(cfg, words, group)
    return load_run(summary.parent) if summary else None
