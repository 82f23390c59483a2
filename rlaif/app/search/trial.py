"""The job of a trial: it reports its history to the pruner, and leaves on disk how it ended, for any launcher."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import RandomSampler
from optuna.study import StudyDirection

from rlaif.app.search.objective import better
from rlaif.app.search.place import Place, make_pruner, storage
from rlaif.errors import Pruned, UserError
from rlaif.io import read_json, write_json
from rlaif.options.search import SearchOptions
from rlaif.tracking import Watch
from rlaif.tracking.text import metric_value

logger = logging.getLogger(__name__)

PRUNE_ON = "hydra.sweeper.prune_on"


@dataclass(frozen=True)
class Outcome:
    """How the job of a trial ended. `run`: the run's folder, relative to the root, if there is one."""

    state: Literal["finished", "failed", "pruned"]
    run: str | None = None
    error: str | None = None


def read_outcome(file: Path) -> Outcome | None:
    """The outcome in `file`; None while there is none."""
    return Outcome(**read_json(file)) if file.is_file() else None


def run_trial(
    place: Place,
    options: SearchOptions,
    run: Callable[[Watch], Path | None],
    known: tuple[type[Exception], ...],
) -> Exception | None:
    """Run a trial's job, and write its outcome. Returns the error of a failed one, if it is one of `known`.

    `run` gets what it must call with each row of the history, and returns the summary's path. Of other errors the
    traceback goes to stderr and their sentence is returned as a UserError: the search goes on.
    """
    assert options.trial is not None
    outcome, failed = Outcome("failed"), None
    watcher = Watcher(place, options)
    try:
        summary = run(watcher)
        outcome = Outcome("finished", str(summary.parent.relative_to(place.root)) if summary else None)
    except Pruned as pruned:
        outcome = Outcome("pruned", error=str(pruned))
        print(f"pruned: {pruned}", file=sys.stderr)
    except known as error:
        failed = error
    except Exception as error:  # a crash of one point must not end the search
        traceback.print_exc()
        failed = UserError(f"{type(error).__name__}: {error}")
    if failed is not None:
        outcome = Outcome("failed", error=str(failed))
    write_json(place.outcome(options.trial), asdict(outcome))
    return failed


class Watcher:
    """Reports one metric of the history to a trial, and raises Pruned when the pruner has seen enough."""

    def __init__(self, place: Place, options: SearchOptions) -> None:
        self._sign = 1.0
        self._trial: Any = None
        if options.pruner == "none":
            return
        study = optuna.load_study(
            study_name=place.name,
            storage=storage(place, options),
            sampler=RandomSampler(),  # draws nothing here
            pruner=make_pruner(options),
        )
        (own,) = [one for one in study.get_trials(deepcopy=False) if one.number == options.trial]
        self._trial = optuna.Trial(study, own._trial_id)
        objective = (study.metric_names or [""])[0]
        self._metric = options.prune_on or objective
        if self._metric != objective:
            upwards = better(PRUNE_ON, self._metric) == "maximize"
            # A pruner goes by the direction of the study's objective.
            self._sign = 1.0 if upwards == (study.direction == StudyDirection.MAXIMIZE) else -1.0

    def __call__(self, row: Mapping[str, float | None], step: int) -> None:
        if self._trial is None or self._metric not in row:
            return
        value = row[self._metric]
        try:
            self._trial.report(float("nan") if value is None else self._sign * value, step)
            stop = self._trial.should_prune()
        except (UpdateFinishedTrialError, StorageInternalError) as error:
            # The search has given this trial up (its process was killed), or its database is gone.
            logger.warning("the pruner hears no more of this trial: %s", str(error).split("\n")[0])
            self._trial = None
            return
        if stop:
            raise Pruned(f"{self._metric} was {metric_value(self._metric, value)} at step {step}")


def check_pruner(options: SearchOptions, objectives: Sequence[Any]) -> None:
    """Raises UserError for a pruner that has nothing to go by."""
    if options.pruner == "none":
        if options.prune_on is not None:
            raise UserError(
                f"{PRUNE_ON}={options.prune_on} is read by no pruner: write hydra.sweeper.pruner=median"
            )
        return
    if len(objectives) > 1:
        raise UserError("hydra.sweeper.pruner needs a single objective: write pruner=none, or one objective")
    if options.prune_on is not None and options.prune_on != objectives[0].name:
        better(PRUNE_ON, options.prune_on)
