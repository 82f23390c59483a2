"""The search itself: which trials are left, what each tries, and how it goes on after kill -9.

Every trial has a *turn*: its place in the sequence of proposals. A trial that was running when the process died is
marked as failed, and its values are tried again at the same turn.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from rlaif.app.search.objective import Objective, read_values
from rlaif.app.search.place import Place, make_sampler, storage
from rlaif.app.search.space import Point, Space
from rlaif.app.search.trial import Outcome, read_outcome
from rlaif.errors import UserError
from rlaif.io import read_json
from rlaif.options.search import SearchOptions

logger = logging.getLogger(__name__)

TURN, ERROR, RUN, STALE, IDENTITY = "turn", "error", "run", "stale", "identity"
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)
LEAST_FAILED = 4
Launch = Callable[[Sequence[optuna.Trial]], str | None]
"""Runs the jobs of some trials, each of which leaves its outcome on disk; returns what a launcher that failed says."""
LOST = "the job ended without a word: its process was killed"


@dataclass
class Search:
    """A study and what is left of it. `failed` (their sentences) and `ran` are of this call's trials.

    `absent`: the sentence that a run's summary lacks the objective altogether, which more trials would not change.
    """

    place: Place
    options: SearchOptions
    space: Space
    objectives: tuple[Objective, ...]
    study: optuna.Study
    grid: Sequence[Point] | None = None
    failed: list[str] = field(default_factory=list)
    ran: int = 0
    absent: str | None = None

    @property
    def goal(self) -> int:
        """How many trials the search is to have."""
        return goal_of(self.options, self.grid)

    @property
    def left(self) -> int:
        """Trials that are still to end."""
        return max(0, self.goal - len(self.trials(*COUNTED)))

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The study's trials in these states, oldest first."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def go_on(self) -> int:
        """Settle the trials that a killed process left running; how many are tried again.

        One whose job had ended counts by its outcome.
        """
        waiting = {trial.user_attrs[TURN] for trial in self.trials(TrialState.WAITING)}
        again = 0
        for trial in self.trials(TrialState.RUNNING):
            if read_outcome(self.place.outcome(trial.number)) is not None:
                self.tell(trial.number)
                continue
            turn = trial.user_attrs[TURN]
            if turn not in waiting:  # enqueued before it is marked: a kill in between loses nothing
                point = trial.params if trial.params.keys() == self.space.knobs.keys() else {}
                self.study.enqueue_trial(point, user_attrs={TURN: turn})
            self._mark(trial.number, STALE, True)
            self.study.tell(trial.number, state=TrialState.FAIL)
            again += 1
        return again + self._retry_grid()

    def _retry_grid(self) -> int:
        """Enqueue the grid's points whose jobs have failed; a sampler proposes others in their place."""
        if self.grid is None:
            return 0
        failed = {trial.user_attrs[TURN] for trial in self.trials(TrialState.FAIL)}
        others = {trial.user_attrs[TURN] for trial in self.trials() if trial.state != TrialState.FAIL}
        for turn in sorted(failed - others):
            self.study.enqueue_trial(self.grid[turn], user_attrs={TURN: turn})
        return len(failed - others)

    def run(self, launch: Launch) -> None:
        """Run what is left, batch by batch. Raises UserError once too many trials have failed."""
        while self.left:
            waiting = len(self.trials(TrialState.WAITING))
            # What is tried again runs first and by itself, so that later proposals know as much as they would have.
            size = min(self.options.n_jobs, self.left, waiting or self.left)
            batch = [trial for trial in (self.ask() for _ in range(size)) if trial is not None]
            if not batch:
                return
            lost = launch(batch)
            for trial in batch:
                self.tell(trial.number, lost or LOST)
            self._check_failures()

    def ask(self) -> optuna.Trial | None:
        """The next trial, with its values; None if the grid has no more."""
        waiting = self.trials(TrialState.WAITING)
        if not waiting:
            turn = 1 + max((trial.user_attrs[TURN] for trial in self.trials()), default=-1)
            point = self._proposed(turn)
            if point is None:
                return None
            self.study.enqueue_trial(point, user_attrs={TURN: turn})
            waiting = self.trials(TrialState.WAITING)
        self.study.sampler = make_sampler(self.options, waiting[0].user_attrs[TURN])
        return self.study.ask(dict(self.space.knobs))

    def _proposed(self, turn: int) -> Point | None:
        """The grid's point of a turn, None beyond its end; {} leaves the values to the sampler."""
        if self.grid is None:
            return {}
        return self.grid[turn] if turn < len(self.grid) else None

    def tell(self, number: int, lost: str = LOST) -> None:
        """Tell the study how a trial's job ended, by the outcome that it left; `lost` is what is said without one."""
        outcome = read_outcome(self.place.outcome(number)) or Outcome("failed", error=lost)
        self.ran += 1
        if outcome.run is not None:
            self._mark(number, RUN, outcome.run)
        if outcome.state == "pruned":
            self._mark(number, ERROR, outcome.error)
            self.study.tell(number, state=TrialState.PRUNED)
            return
        error = outcome.error
        if outcome.state == "finished":
            error = self._complete(number, self._summary(outcome))
        if error is not None:
            self._mark(number, ERROR, error)
            self.failed.append(error)
            self.study.tell(number, state=TrialState.FAIL)

    def _complete(self, number: int, summary: Mapping[str, Any]) -> str | None:
        """Tell the values of a finished run; what is wrong if it has none."""
        try:
            values = read_values(summary, self.objectives)
        except UserError as error:
            if any(one.name not in summary for one in self.objectives):
                self.absent = str(error)
            return str(error)
        self.study.tell(number, values)
        return None

    def _summary(self, outcome: Outcome) -> dict[str, Any]:
        return dict(read_json(self.place.root / str(outcome.run) / "summary.json")) if outcome.run else {}

    def _mark(self, number: int, name: str, value: Any) -> None:
        trial = next(one for one in self.trials() if one.number == number)
        self.study._storage.set_trial_user_attr(trial._trial_id, name, value)

    def _check_failures(self) -> None:
        failed, most = len(self.failed), self.options.max_failure_rate
        if self.absent and not self.trials(*COUNTED):
            raise UserError(self.absent)
        if failed >= LEAST_FAILED and failed > most * self.ran:
            raise UserError(
                f"{failed} of {self.ran} trials failed, more than hydra.sweeper.max_failure_rate={most:g} allows; the "
                f"last one: {self.failed[-1]}"
            )


def goal_of(options: SearchOptions, grid: Sequence[Point] | None) -> int:
    """How many trials a search is to have. Raises UserError if it would have no end."""
    if grid is not None:
        return len(grid) if options.n_trials is None else min(options.n_trials, len(grid))
    if options.n_trials is None:
        raise UserError(
            "hydra.sweeper.n_trials=null has no end: write a number, or hydra.sweeper.sampler=grid"
        )
    return options.n_trials


def grid_of(options: SearchOptions, space: Space) -> list[Point] | None:
    """The points of sampler=grid; None for the other samplers. Raises UserError for an interval."""
    return space.grid() if options.sampler == "grid" else None


def open_search(
    place: Place,
    options: SearchOptions,
    space: Space,
    objectives: tuple[Objective, ...],
    identity: Mapping[str, Any],
) -> Search:
    """The search at `place`, new or as an earlier call left it.

    Raises UserError if the study there is another one: `identity` says what makes a search what it is.
    """
    study = optuna.create_study(
        storage=storage(place, options),
        study_name=place.name,
        directions=[one.direction for one in objectives],
        load_if_exists=True,
    )
    before = study.user_attrs.get(IDENTITY)
    if before is None and study.get_trials(deepcopy=False):
        raise UserError(
            f"hydra.sweeper.study_name={place.name} names a study that another program made in this storage: "
            "write another name"
        )
    if before is not None and before != identity:
        raise UserError(
            f"hydra.sweeper.study_name={place.name} names a search of another kind, which differs in "
            f"{_difference(before, identity)}: write another name, or leave it out"
        )
    study.set_user_attr(IDENTITY, dict(identity))
    study.set_metric_names([one.name for one in objectives])
    return Search(place, options, space, objectives, study, grid_of(options, space))


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first entry in which two identities differ, with both values."""
    key = next(name for name in now if before.get(name) != now[name])
    return f"its {key} ({before.get(key)} there, {now[key]} here)"
