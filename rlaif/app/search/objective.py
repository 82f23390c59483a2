"""What a search is for: metrics of the registry, which knows their better direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args

from rlaif.errors import UserError
from rlaif.options.search import Direction, SearchOptions
from rlaif.tracking.glossary import describe, entries, groups, names
from rlaif.tracking.runs import number

_BETTER: Mapping[str, Direction] = {"up": "maximize", "down": "minimize"}


@dataclass(frozen=True)
class Objective:
    """A metric of a run's summary, and whether it is to be small or large."""

    name: str
    direction: Direction


def read_objectives(options: SearchOptions, stage: str) -> tuple[Objective, ...]:
    """The objectives of a search over runs of `stage`. Raises UserError for one that has no better direction."""
    key = "hydra.sweeper.objective"
    found = options.objective or (names("ablation", stage if stage in groups("ablation") else "eval")[0],)
    given = options.direction or (None,) * len(found)
    if len(given) != len(found):
        raise UserError(
            f"hydra.sweeper.direction has {len(given)} values for {len(found)} objectives: write one for each, or null"
        )
    if odd := [one for one in given if one is not None and one not in get_args(Direction)]:
        raise UserError(f"hydra.sweeper.direction={odd[0]} is not known: write minimize, maximize or null")
    return tuple(
        Objective(check_metric(key, name), one or better(key, name))  # type: ignore[arg-type]
        for name, one in zip(found, given)
    )


def check_metric(key: str, name: str) -> str:
    """`name`, if it is the registry's. Raises UserError with names that resemble it."""
    if describe(name) is None:
        near = get_close_matches(name, [known for known in entries() if "*" not in known], cutoff=0.5)
        hint = (
            f"did you mean {' or '.join(near)}?"
            if near
            else "write one of docs/glossary.md, such as rm/accuracy"
        )
        raise UserError(f"{key}={name} is not a metric: {hint}")
    return name


def better(key: str, name: str) -> Direction:
    """The direction that the registry calls better. Raises UserError for a metric of which it calls none so."""
    metric = describe(check_metric(key, name))
    assert metric is not None
    if metric.better not in _BETTER:
        raise UserError(
            f"{key}={name} is better neither when it is small nor when it is large: write another metric"
            + (", or hydra.sweeper.direction=minimize or maximize" if key.endswith("objective") else "")
        )
    return _BETTER[metric.better]


def read_values(summary: Mapping[str, Any], objectives: Sequence[Objective]) -> list[float]:
    """The objectives' values of a run. Raises UserError, naming metrics that the run has, for one without a value."""
    values = {one.name: number(summary, one.name) for one in objectives}
    for name, value in values.items():
        if value is None:
            raise UserError(_without(summary, name))
    return [value for value in values.values() if value is not None]


def _without(summary: Mapping[str, Any], name: str) -> str:
    if name in summary:
        return f"the run's {name} is {summary[name]}, not a number"
    numbers = [key for key in summary if number(summary, key) is not None]
    near = get_close_matches(name, numbers, n=3, cutoff=0.0)
    return f"the run's summary has no {name}: write hydra.sweeper.objective={' or '.join(near) or 'a metric it has'}"
