"""A job of a multirun, entered into its sweep's ledger while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rlaif.app.command.words import one_sentence
from rlaif.app.job import run_job
from rlaif.app.sweep.identity import job_key
from rlaif.errors import UserError
from rlaif.tracking.sweep import Ledger


def run_in_sweep(cfg: DictConfig, words: Sequence[str], folder: Path) -> Path | None:
    """Run a job whose multirun writes to `folder`; the summary's path, None for a plan or if it is not to run.

    Raises what `run_job` raises; in the ledger that is the job's one sentence.
    """
    ledger = Ledger(folder)
    if not ledger.exists:
        return run_job(cfg, words, folder.name)
    with ledger.claim(job_key(cfg, words)) as entry:
        if entry is None:
            return None
        try:
            return run_job(cfg, words, ledger.id, entry)
        except (UserError, OmegaConfBaseException) as error:
            entry.failed(one_sentence(error))
            raise
        except Exception as error:
            entry.failed(f"{type(error).__name__}: {one_sentence(error)}")
            raise
