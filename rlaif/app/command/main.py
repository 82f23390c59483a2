"""The `rlaif` command, which `python train.py` runs too: one job, or a multirun of jobs."""

from __future__ import annotations

import os
import sys
import tempfile
import uuid
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlaif.app.command.failures import FAILED, report
from rlaif.app.command.help import help_text
from rlaif.app.command.words import arranged, refuse_null, with_judges
from rlaif.app.disk import not_written
from rlaif.app.home import CODE, CONF
from rlaif.app.sweep.plugins import register_plugins
from rlaif.errors import UserError


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(cfg: DictConfig) -> None:
    """Run one composed configuration. In a multirun later jobs still run; the exit code reports failures at the end."""
    from rlaif.app.job import run_job  # `--help` need not wait for torch
    from rlaif.app.sweep.record import run_in_sweep

    own = HydraConfig.get()
    if own.sweeper.get("trial") is not None:
        from rlaif.app.search.job import trial_job

        if (failed := trial_job(cfg, own)) is not None:
            report(failed)
        return
    words = list(own.overrides.task)
    try:
        if own.mode == RunMode.MULTIRUN:
            summary = run_in_sweep(cfg, words, Path(own.sweep.dir))
        else:
            summary = run_job(cfg, words, None)
    except (UserError, OmegaConfBaseException, HydraException) as error:
        report(error)
        return
    if summary:
        print(f"summary: {summary}")


def main() -> None:
    """Exits with 0, or with 2 after one sentence on stderr."""
    os.environ |= {"HYDRA_FULL_ERROR": "1", "RLAIF_JOB": uuid.uuid4().hex[:8]}
    # What an Apple GPU has no kernel for runs on the CPU, with a warning; torch reads this when it is imported.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    sys.argv[1:] = arranged(sys.argv[1:])
    register_plugins()
    program = "python train.py" if Path(sys.argv[0]).name == "train.py" else "rlaif"
    OmegaConf.register_new_resolver("rlaif_help", lambda: help_text(CODE, program), replace=True)
    with tempfile.TemporaryDirectory(prefix="rlaif-") as folder:
        os.environ[FAILED] = str(Path(folder) / "failed")
        try:
            refuse_null(sys.argv[1:])
            sys.argv[1:] = with_judges(sys.argv[1:], Path(folder))
            job()
        except (UserError, OmegaConfBaseException, HydraException) as error:
            report(error)
        except OSError as error:  # Hydra's own folders
            report(not_written(error))
        failed = Path(os.environ[FAILED]).exists()
    sys.exit(2 if failed else 0)
