"""Alarms of RL on histories worked by hand: each fires where it should, once, and says with which numbers."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest

from rlaif.options.training import AlarmLimits
from rlaif.stages.rl.alarm_rules import alarms

LIMITS = AlarmLimits(window=2, kl=10.0, entropy=0.5, explained_variance=-1.0, eos_rate=0.2, length=2.0)
OFF = AlarmLimits(window=2, kl=None, entropy=None, explained_variance=None, eos_rate=None, length=None)
CALM = {
    "rl/kl": 1.0,
    "rl/entropy": 2.0,
    "rl/value_loss": 0.3,
    "rl/explained_variance": 0.4,
    "rl/eos_rate": 0.9,
    "rl/response_length": 10.0,
}


def _history(name: str, values: list[float]) -> list[dict[str, float]]:
    return [{**CALM, f"rl/{name}": value} for value in values]


# title, metric, values, iteration at which the mean of two passes the limit, numbers that are told
CASES = [
    ("KL runaway", "kl", [0.0, 2.0, 9.0, 11.1, 50.0], 3, "10.1 nats"),
    ("entropy collapse", "entropy", [2.0, 1.6, 1.0, 0.9, 0.1], 3, "2.000 to 0.950"),
    ("value divergence", "explained_variance", [0.0, 0.5, -2.0, -1.0, 0.4], 3, "-1.50"),
    ("value divergence", "value_loss", [0.1, 0.1, 0.1, math.nan, 0.1], 3, "value loss was nan"),
    ("EOS loss", "eos_rate", [0.9, 0.9, 0.6, 0.7, 0.7], 3, "90% to 65%"),
    ("length drift", "response_length", [10.0, 30.0, 8.0, 34.0, 8.0], 3, "longer, from 10.0 to 21.0"),
    ("length drift", "response_length", [10.0, 4.0, 7.0, 2.0, 8.0], 3, "shorter, from 10.0 to 4.5"),
]


@pytest.mark.parametrize(("title", "metric", "values", "iteration", "told"), CASES)
def test_an_alarm_fires_where_the_mean_passes_its_limit(title, metric, values, iteration, told) -> None:
    history = _history(metric, values)
    (alarm,) = alarms(history, LIMITS)
    assert (alarm.title, alarm.iteration) == (title, iteration)
    assert told in alarm.text and f"At iteration {iteration} " in alarm.text
    assert alarms(history[:iteration], LIMITS) == [], "not before"
    # Mutation: the last value alone, and a window that reaches back to the start, disagree somewhere.
    assert [alarms(_history(c[1], c[2]), replace(LIMITS, window=1)) for c in CASES] != [
        alarms(_history(c[1], c[2]), LIMITS) for c in CASES
    ]


def test_every_alarm_has_a_limit_that_switches_it_off() -> None:
    names = {field.name for field in fields(AlarmLimits)} - {"window"}
    fired = {
        name
        for name in names
        for _, metric, values, *_ in CASES
        if alarms(_history(metric, values), replace(OFF, **{name: getattr(LIMITS, name)}))
    }
    assert fired == names
    assert all(alarms(_history(metric, values), OFF) == [] for _, metric, values, *_ in CASES)


def test_each_kind_fires_once_and_in_its_order() -> None:
    history = [dict(CALM) for _ in range(8)]
    for row in history[4:]:
        row["rl/kl"] = 99.0
    for row in history[2:]:
        row["rl/eos_rate"] = 0.1
    found = alarms(history, LIMITS)
    assert [(alarm.title, alarm.iteration) for alarm in found] == [("EOS loss", 2), ("KL runaway", 4)]
    for end in range(len(history)):
        assert alarms(history[:end], LIMITS) == [alarm for alarm in found if alarm.iteration < end]


def test_a_calm_or_short_history_fires_nothing() -> None:
    assert alarms([], LIMITS) == alarms([CALM] * 9, LIMITS) == []
    wild = {**CALM, "rl/kl": 1e6, "rl/eos_rate": 0.0}
    assert alarms([CALM, wild], LIMITS) == [], "one iteration after the start is no window of two"
    assert len(alarms([CALM, wild, wild], LIMITS)) == 2


def test_nan_sets_alarms_off_and_constant_returns_do_not() -> None:
    for name, title in (("kl", "KL runaway"), ("entropy", "entropy collapse"), ("eos_rate", "EOS loss")):
        assert [a.title for a in alarms(_history(name, [1.0, math.nan, 1.0]), LIMITS)] == [title]
    assert alarms(_history("explained_variance", [math.nan] * 4), LIMITS) == []
    assert len(alarms(_history("explained_variance", [0.0, math.nan, -3.0]), LIMITS)) == 1


def test_without_a_critic_there_is_no_value_to_diverge() -> None:
    bare = {k: v for k, v in CALM.items() if k not in ("rl/value_loss", "rl/explained_variance")}
    assert alarms([bare] * 5, LIMITS) == []
