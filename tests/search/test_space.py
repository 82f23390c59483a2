"""Hydra's words as Optuna's distributions, against distributions worked out by hand, and back."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from rlaif.app.search.space import read_space, written
from rlaif.errors import UserError


def _space(*words: str):
    return read_space(OverridesParser.create().parse_overrides(list(words)))


@pytest.mark.parametrize(
    "value, expected",
    [
        ("interval(0,1)", FloatDistribution(0.0, 1.0)),
        ("interval(-2.5,1e2)", FloatDistribution(-2.5, 100.0)),
        ("tag(log,interval(1e-5,1e-3))", FloatDistribution(1e-5, 1e-3, log=True)),
        ("int(interval(1,8))", IntDistribution(1, 8)),
        ("tag(log, int(interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("int(tag(log, interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("range(1,4)", IntDistribution(1, 3)),  # the end of a range is not part of it, that of an interval is
        ("range(0,10,3)", IntDistribution(0, 9, step=3)),
        ("range(4,1,-1)", IntDistribution(2, 4)),
        ("tag(log,range(1,9))", IntDistribution(1, 8, log=True)),
        ("range(0,1,0.25)", FloatDistribution(0.0, 0.75, step=0.25)),
        (
            "range(0.1,0.4,0.1)",
            FloatDistribution(0.1, 0.4, step=0.1),
        ),  # as Hydra's own grid has it: see below
        ("choice(base,cot)", CategoricalDistribution(("base", "cot"))),
        ("base,cot,base", CategoricalDistribution(("base", "cot"))),
        ("1,2.5,null,true", CategoricalDistribution(("1", "2.5", "null", "True"))),
        ("choice([a,b],[])", CategoricalDistribution(("[a,b]", "[]"))),
    ],
)
def test_a_word_is_the_distribution_that_it_says(value, expected) -> None:
    space = _space(f"x.y={value}", "stage=rm")
    assert space.knobs == {"x.y": expected} and space.fixed == ("stage=rm",)


def test_the_last_word_of_a_key_counts_and_what_is_fixed_stays() -> None:
    """As when the command line follows a file's words."""
    space = _space("stage=rm", "rm.lr=interval(0,1)", "+a.b='x y'", "~c", "rm.n=range(1,3)", "rm.lr=0.5")
    assert space.fixed == ("stage=rm", "rm.lr=0.5", "+a.b='x y'", "~c")
    assert space.knobs == {"rm.n": IntDistribution(1, 2)}


@pytest.mark.parametrize(
    "value, drawn, text",
    [
        ("tag(log,interval(1e-7,1e-3))", 3.210987654321099e-05, "3.210987654321099e-05"),
        ("interval(0,1)", 0.1 + 0.2, "0.30000000000000004"),
        ("range(0.1,0.5,0.1)", 0.1 + 2 * 0.1, "0.3"),
        ("range(1,4)", 2, "2"),
        ("choice('a b',c)", "'a b'", "'a b'"),
        ("null,1", "null", "null"),
    ],
)
def test_a_value_is_written_as_hydra_reads_it(value, drawn, text) -> None:
    space = _space(f"x={value}")
    (word,) = space.words({"x": drawn})
    assert word == f"x={text}"
    again = OverridesParser.create().parse_override(word).value()
    meant = {"null": None, "'a b'": "a b"}.get(str(drawn), drawn)
    assert again == (pytest.approx(meant) if isinstance(meant, float) else meant)
    if isinstance(drawn, float) and "range" not in value:
        assert again == drawn, "to the last bit: the same command must find the same artifact"


def test_a_grid_is_every_combination_the_last_key_fastest() -> None:
    space = _space("a=choice(x,y)", "b=range(1,3)", "c=range(0,1,0.5)")
    points = [(p["a"], p["b"], p["c"]) for p in space.grid()]
    assert points == [(a, b, c) for a in ("x", "y") for b in (1, 2) for c in (0.0, 0.5)]


@pytest.mark.parametrize(
    "value", ["range(0.1,0.4,0.1)", "range(0,1,0.3)", "range(7,0,-3)", "range(-1,1,0.125)"]
)
def test_a_range_has_the_values_of_hydras_own_grid(value) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"x={value}"])
    values = [point["x"] for point in read_space([override]).grid()]
    assert values == pytest.approx(sorted(override.sweep_iterator()))


@pytest.mark.parametrize(
    "words, said",
    [
        (["stage=rm"], "nothing to search: write KEY=interval"),
        (["x=interval(2,1)"], r"x=interval\(2,1\) cannot be searched"),
        (["x=tag(log,interval(0,1))"], "logarithm of 0 does not exist, write an interval above 0"),
        (["x=tag(log,range(1,9,2))"], "steps of 1, write tag"),
        (["x=tag(log,choice(1,2))"], "x is a choice, which has no logarithm"),
        (["x=tag(ln,interval(1,2))"], "tag ln, which is not known: write tag"),
        (["x=range(3,1)"], "the range is empty"),
    ],
)
def test_what_cannot_be_searched_is_told_in_a_sentence(words, said) -> None:
    with pytest.raises(UserError, match=said):
        _space(*words)


def test_a_grid_of_an_interval_is_refused() -> None:
    with pytest.raises(UserError, match="sampler=grid cannot try all values of x: write a range or a choice"):
        _space("x=interval(0,1)").grid()


def test_steps_are_written_without_rounding_noise() -> None:
    knob = FloatDistribution(0.0, 0.7, step=0.1)
    assert [written(0.1 * k, knob) for k in range(8)] == [
        "0",
        "0.1",
        "0.2",
        "0.3",
        "0.4",
        "0.5",
        "0.6",
        "0.7",
    ]
