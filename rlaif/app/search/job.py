"""A trial as a job: its row in the ledger, and what the command runs when a search has started it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rlaif.app.command.words import one_sentence
from rlaif.app.job import run_job
from rlaif.app.search.place import Place
from rlaif.app.search.study import TURN
from rlaif.app.search.sweeper import search_options
from rlaif.app.search.trial import run_trial
from rlaif.errors import Pruned, UserError
from rlaif.tracking import Watch
from rlaif.tracking.redact import redact_assignments
from rlaif.tracking.sweep import Entry, Job, Ledger


def enter(ledger: Ledger, trial: Any, words: Sequence[str], config: Mapping[str, Any]) -> None:
    """The trial's row in the ledger, new or queued again: a trial that is tried again keeps it."""
    key = _key(trial.user_attrs[TURN])
    with ledger.lock():
        if ledger.job(key) is None:
            ledger.write_config(key, config)
            ledger.write(Job(key, trial.user_attrs[TURN] + 1, tuple(map(redact_assignments, words))))
        else:
            ledger.requeue(key, config)


def trial_words(place: Place, trial: Any) -> list[str]:
    """The words by which a job knows that it is the trial."""
    own = {"study_name": place.name, "trial": trial.number, "turn": trial.user_attrs[TURN]}
    return [f"hydra.sweeper.{name}={value}" for name, value in own.items()]


def trial_job(cfg: DictConfig, own: Any) -> Exception | None:
    """Run the trial that `own`, Hydra's part of the configuration, names. Returns what a failed one failed of."""
    options = search_options(own.sweeper)
    assert options.study_name is not None and options.turn is not None
    place, key = (
        Place(Path(str(cfg.paths.root)).expanduser().absolute(), options.study_name),
        _key(options.turn),
    )
    ledger, words = Ledger(place.folder), list(own.overrides.task)

    def run(watch: Watch) -> Path | None:
        ledger.wait(key)  # for a job that has outlived the search which started it
        with ledger.claim(key) as entry:
            if entry is None:
                return _summary_of(ledger, key)
            return _entered(cfg, words, entry, watch)

    return run_trial(place, options, run, (UserError, OmegaConfBaseException, HydraException))


def _entered(cfg: DictConfig, words: Sequence[str], entry: Entry, watch: Watch) -> Path | None:
    try:
        summary = run_job(cfg, words, entry.ledger.id, entry, watch)
    except Pruned as pruned:
        entry.pruned(str(pruned))
        raise
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        entry.failed(f"{kind}{one_sentence(error)}")
        raise
    print(f"summary: {summary}")
    return summary


def _summary_of(ledger: Ledger, key: str) -> Path:
    """The summary that another process's run of the trial came to."""
    job = ledger.job(key)
    if job is None or job.state != "finished":
        raise UserError(f"{ledger.title(key)}: another process has run it, and it has not finished")
    return ledger.root / job.runs[-1] / "summary.json"


def _key(turn: int) -> str:
    return f"{turn:04d}"
