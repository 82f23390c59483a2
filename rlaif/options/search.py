"""Options of a search: `hydra.sweeper` with `hydra/sweeper=optuna`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from rlaif.options.rules import Count, Count0, Name, Number

Direction = Literal["minimize", "maximize"]


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """`hydra.sweeper`: what is searched for, by which sampler and pruner, and where the study is kept.

    `trial` and `turn` are set by the search for each of its jobs.
    """

    objective: tuple[str, ...] | None
    direction: tuple[str, ...] | None
    n_trials: Count | None
    n_jobs: Count
    sampler: Literal["tpe", "random", "grid"]
    seed: Count0
    startup_trials: Count0
    pruner: Literal["none", "median", "hyperband", "successive_halving"]
    prune_on: Name | None
    prune_startup: Count0
    prune_after: Count0
    study_name: Name | None
    storage: Name | None
    max_failure_rate: Annotated[float, Number(0, 1)]
    params: Any
    trial: Count0 | None
    turn: Count0 | None
