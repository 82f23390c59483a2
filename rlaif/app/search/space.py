"""The words of a command as Optuna's search space: Hydra's sweep grammar, one distribution per key."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from rlaif.errors import UserError

LOG = "log"
Point = dict[str, Any]
"""A value for each key of the space."""


@dataclass(frozen=True)
class Space:
    """`fixed`: the words that every trial has. `knobs`: Optuna's distribution for each key that is searched."""

    fixed: tuple[str, ...]
    knobs: Mapping[str, BaseDistribution]

    def words(self, point: Mapping[str, Any]) -> list[str]:
        """The point as words of a command, by which the same values are read again."""
        return [f"{key}={written(point[key], knob)}" for key, knob in self.knobs.items()]

    def grid(self) -> list[Point]:
        """Every combination, the last key fastest. Raises UserError for a key with infinitely many values."""
        values = [_values(key, knob) for key, knob in self.knobs.items()]
        return [dict(zip(self.knobs, combination)) for combination in itertools.product(*values)]

    @property
    def described(self) -> dict[str, str]:
        """Each distribution as text, which differs if and only if the distribution does."""
        return {key: repr(knob) for key, knob in self.knobs.items()}


def read_space(overrides: Sequence[Override]) -> Space:
    """The fixed words and the distributions of parsed `overrides`; of a key's, the last counts.

    Raises UserError if nothing is searched, and for a word that gives no distribution.
    """
    last = {override.get_key_element(): override for override in overrides}
    fixed = [str(one.input_line) for one in last.values() if not one.is_sweep_override()]
    knobs = {key: _knob(key, one) for key, one in last.items() if one.is_sweep_override()}
    if not knobs:
        raise UserError(
            "hydra/sweeper=optuna has nothing to search: write KEY=interval(A,B), KEY=range(A,B) or KEY=choice(A,B)"
        )
    return Space(tuple(fixed), knobs)


def written(value: Any, knob: BaseDistribution) -> str:
    """A value as Hydra reads it; steps of a tenth are written as such, not as sums of binary fractions."""
    stepped = isinstance(knob, FloatDistribution) and knob.step is not None
    return f"{value:.12g}" if stepped else repr(value) if isinstance(value, float) else str(value)


def _knob(key: str, override: Override) -> BaseDistribution:
    sweep: Any = override.value()
    tags = set(getattr(sweep, "tags", ()))
    if unknown := sorted(tags - {LOG}):
        raise UserError(f"{key} has the tag {unknown[0]}, which is not known: write tag(log, ...), or no tag")
    try:
        if isinstance(sweep, IntervalSweep):
            return _of_interval(sweep, log=LOG in tags)
        if isinstance(sweep, RangeSweep):
            return _of_range(sweep, log=LOG in tags)
    except ValueError as error:  # Optuna's, as for an interval whose ends are the wrong way round
        raise UserError(f"{key}={override.get_value_string()} cannot be searched: {error}") from None
    if tags:
        raise UserError(f"{key} is a choice, which has no logarithm: write tag(log, interval(A,B))")
    choices = list(dict.fromkeys(override.sweep_string_iterator()))
    if not choices:
        raise UserError(f"{key}={override.get_value_string()} has no value: write KEY=choice(A,B)")
    return CategoricalDistribution(choices)


def _of_interval(sweep: IntervalSweep, *, log: bool) -> BaseDistribution:
    """All numbers from `start` to `end`, both included; whole numbers if the interval is cast to int."""
    low, high = sweep.start, sweep.end
    assert low is not None and high is not None
    if log and low <= 0:
        raise ValueError(f"the logarithm of {low:g} does not exist, write an interval above 0")
    whole = isinstance(low, int) and isinstance(high, int)
    make: Callable[..., BaseDistribution] = IntDistribution if whole else FloatDistribution
    return make(low, high, log=log)


def _of_range(sweep: RangeSweep, *, log: bool) -> BaseDistribution:
    """Hydra's range, whose `stop` is not part of it; in ascending order, whatever its own."""
    values = sorted(sweep.range())
    if not values:
        raise ValueError("the range is empty, write its end after its start")
    step = abs(sweep.step)
    if log and step != 1:
        raise ValueError("a logarithmic range has steps of 1, write tag(log, int(interval(A,B)))")
    if all(isinstance(value, int) for value in values):
        return IntDistribution(values[0], values[-1], log=log, step=int(step))
    # The last value as Optuna forms it: a sum of steps that misses it by rounding would lose it.
    return FloatDistribution(values[0], round(values[0] + step * (len(values) - 1), 12), step=step)


def _values(key: str, knob: BaseDistribution) -> list[Any]:
    if isinstance(knob, CategoricalDistribution):
        return list(knob.choices)
    if isinstance(knob, IntDistribution):
        return list(range(knob.low, knob.high + 1, knob.step))
    if isinstance(knob, FloatDistribution) and knob.step is not None:
        count = round((knob.high - knob.low) / knob.step) + 1
        return [knob.low + index * knob.step for index in range(count)]
    raise UserError(
        f"hydra.sweeper.sampler=grid cannot try all values of {key}: write a range or a choice, or sampler=tpe"
    )
