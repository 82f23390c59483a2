"""Figures are drawn once for the same data, and anew for any other."""

from __future__ import annotations

import math

import pytest

from rlaif.figures import svg as module
from rlaif.figures.curves import learning_curves
from rlaif.figures.plots import reliability_plot
from rlaif.figures.svg import drawn_once
from rlaif.stats import Interval


@pytest.fixture
def counted():
    """A plot of anything, and the list of what it has drawn."""
    drawn: list[object] = []

    @drawn_once
    def plot(value: object, *, title: str) -> str:
        drawn.append(value)
        return f"{title} {value!r} {len(drawn)}"

    return plot, drawn


def test_equal_data_are_drawn_once(counted) -> None:
    plot, drawn = counted
    row = {"rl/reward": 0.5, "rl/kl": math.nan}
    first = plot([row, Interval(0.5, 0.25, 0.75, 3)], title="a")
    assert plot([dict(row), Interval(0.5, 0.25, 0.75, 3)], title="a") == first and len(drawn) == 1
    for other in (
        [row, Interval(0.5, 0.25, 0.75, 4)],
        [{**row, "rl/kl": 0.0}, Interval(0.5, 0.25, 0.75, 3)],
        [{**row, "rl/reward": 0.5000000001}, Interval(0.5, 0.25, 0.75, 3)],
    ):
        assert plot(other, title="a") != first
    assert plot([row, Interval(0.5, 0.25, 0.75, 3)], title="b").startswith("b") and len(drawn) == 5


def test_changed_data_are_drawn_anew(counted) -> None:
    """The same list, longer than before: what is told by identity would be an old figure."""
    plot, drawn = counted
    rows = [1]
    plot(rows, title="a")
    rows.append(2)
    assert "[1, 2]" in plot(rows, title="a") and len(drawn) == 2


def test_what_is_only_an_address_is_not_remembered(counted) -> None:
    plot, drawn = counted
    thing = object()
    assert plot(thing, title="a") != plot(thing, title="a") and len(drawn) == 2


def test_not_all_figures_are_kept(counted) -> None:
    plot, drawn = counted
    for value in range(module._KEPT + 1):
        plot(value, title="a")
        plot(0, title="a")
    assert len(drawn) == module._KEPT + 1, "what is in use stays"
    plot(1, title="a")
    assert len(drawn) == module._KEPT + 2, "the longest unused one has gone"


def test_the_plots_remember(monkeypatch) -> None:
    history = {"run": [{"step": i, "rl/kl": 0.1 * i} for i in range(5)]}
    first = learning_curves(history, ["rl/kl"], title="curves, drawn once")
    monkeypatch.setattr("rlaif.figures.curves.svg", None)
    assert learning_curves(history, ["rl/kl"], title="curves, drawn once") == first and "<svg" in first
    with pytest.raises(TypeError):
        learning_curves({"run": history["run"][:-1]}, ["rl/kl"], title="curves, drawn once")
    assert hasattr(reliability_plot, "__wrapped__")
