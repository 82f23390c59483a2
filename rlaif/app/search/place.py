"""Where a search is kept, by which its sweeper and the jobs of its trials find the same study."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from sqlalchemy.exc import SQLAlchemyError

from rlaif.errors import UserError
from rlaif.io import digest
from rlaif.options.search import SearchOptions


@dataclass(frozen=True)
class Place:
    """The folder of a study below `paths.root`, and the study's name in its storage."""

    root: Path
    name: str

    @property
    def folder(self) -> Path:
        """`<root>/sweeps/<name>`."""
        return self.root / "sweeps" / self.name

    def outcome(self, number: int) -> Path:
        """Where the job of a trial writes how it ended."""
        return self.folder / "trials" / f"{number}.json"


def storage(place: Place, options: SearchOptions) -> Any:
    """The storage of the study. Raises UserError for one that cannot be opened."""
    quiet_optuna()
    if options.storage is None:
        place.folder.mkdir(parents=True, exist_ok=True)
    url = options.storage or f"sqlite:///{place.folder / 'study.db'}"
    # A job waits for another's write instead of failing; the default is 5 seconds.
    waiting = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs=waiting)
    except (SQLAlchemyError, ImportError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise UserError(
            f"hydra.sweeper.storage={options.storage} cannot be opened ({said}): write an URL such as "
            "sqlite:////FOLDER/study.db, or null"
        ) from None


def make_sampler(options: SearchOptions, turn: int) -> BaseSampler:
    """The sampler of the search's trial number `turn`.

    A sampler's random state is not stored with the study. Drawn anew for each trial from (seed, turn), it is the same
    in a search that was killed and goes on as in one that was not.
    """
    seed = int(digest([options.seed, turn], 8), 16)
    if options.sampler == "tpe":
        return TPESampler(seed=seed, n_startup_trials=options.startup_trials)
    return RandomSampler(seed=seed)


def make_pruner(options: SearchOptions) -> BasePruner:
    """The pruner that `hydra.sweeper.pruner` names."""
    after = options.prune_after
    return {
        "none": NopPruner,
        "median": lambda: MedianPruner(options.prune_startup, after),
        "hyperband": lambda: HyperbandPruner(min_resource=max(after, 1)),
        "successive_halving": lambda: SuccessiveHalvingPruner(min_resource=after or "auto"),
    }[options.pruner]()


def quiet_optuna() -> None:
    """Silence its own lines on each trial, which the search's table has."""
    optuna.logging.set_verbosity(logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
