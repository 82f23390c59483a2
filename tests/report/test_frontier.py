"""Harmless rate over harmless questions answered: what is a point, its cross, and which points no other beats."""

from __future__ import annotations

import itertools
import random
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from matplotlib.axes import Axes
from synthetic_runs import write_run

from rlaif.figures.plots import FrontierPoint, frontier_plot, undominated
from rlaif.report.frontier import frontier_figure
from rlaif.report.page import render_report
from rlaif.tracking.runs import load_run


def rates(refused: float, harmless: float, side: str = "", spread: float = 0.05) -> dict[str, float]:
    found = {}
    for name, value in (("eval/refusal_rate", refused), ("eval/harmless_rate", harmless)):
        own = f"{name}{side}"
        found |= {own: value, f"{own}_ci_low": value - spread, f"{own}_ci_high": value + 2 * spread}
    return found


def texts(svg: str) -> set[str | None]:
    return {node.text for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[float], list[float], Any]]:
    """What is drawn on the axes: x, y and the format."""
    found, plot = [], Axes.plot

    def spied(axes: Axes, *arguments: Any, **options: Any) -> Any:
        form = arguments[2] if len(arguments) > 2 else options.get("linestyle")
        found.append((list(arguments[0]), list(arguments[1]), form))
        return plot(axes, *arguments, **options)

    monkeypatch.setattr(Axes, "plot", spied)
    return found


def test_x_is_what_is_answered_and_bounds_change_sides(drawn) -> None:
    svg = frontier_figure([{"arm": "a", **rates(0.3, 0.8)}], {})
    assert ([pytest.approx(0.7)], [0.8], "o") in drawn
    # Refusals between 0.25 and 0.4 are answers between 0.6 and 0.75.
    assert ([pytest.approx(0.6), pytest.approx(0.75)], [0.8, 0.8], None) in drawn
    assert ([pytest.approx(0.7)] * 2, [0.75, pytest.approx(0.9)], None) in drawn
    assert {"harmless answers", "harmless questions answered (1 - refusal rate)"} <= texts(svg)


def test_arms_with_both_rates_are_points_and_their_start_is_one(drawn) -> None:
    start = rates(0.1, 0.6, "_baseline")
    arms = [
        {"arm": "ours", **rates(0.31, 0.82), **start},
        {"arm": "theirs", **rates(0.2, 0.7), **start},
        {"arm": "half", "eval/harmless_rate": 0.9},
    ]
    svg = frontier_figure(arms, {})
    assert {"ours", "theirs", "SFT"} <= texts(svg) and "half" not in texts(svg)
    points = [(x[0], y[0]) for x, y, form in drawn if form == "o"]
    assert points == [(pytest.approx(0.69), 0.82), (pytest.approx(0.8), 0.7), (pytest.approx(0.9), 0.6)]


def test_two_starts_are_named_by_their_arms() -> None:
    arms = [
        {"arm": name, **rates(0.3, 0.8), **rates(0.1, start, "_baseline")}
        for name, start in (("x", 0.5), ("y", 0.6))
    ]
    assert {"SFT of x", "SFT of y"} <= texts(frontier_figure(arms, {}))


def test_a_single_path_has_its_policy_and_its_start() -> None:
    svg = frontier_figure([], {**rates(0.3, 0.8), **rates(0.1, 0.6, "_baseline")})
    assert {"policy", "SFT"} <= texts(svg)
    assert frontier_figure([], {"eval/win_rate": 0.5}) == "" and frontier_plot([], title="t") == ""


def test_the_frontier_is_what_no_other_point_beats() -> None:
    points = [(0.2, 0.9), (0.5, 0.5), (0.5, 0.7), (0.9, 0.1), (0.4, 0.6), (0.9, 0.1)]
    assert undominated(points) == [(0.2, 0.9), (0.5, 0.7), (0.9, 0.1)]
    rng = random.Random(0)
    for _ in range(50):
        own = [(rng.randint(0, 4) / 4, rng.randint(0, 4) / 4) for _ in range(6)]
        beaten = {
            p
            for p, q in itertools.product(own, own)
            if p != q and all(b >= a for a, b in zip(p, q, strict=True))
        }
        assert undominated(own) == sorted(set(own) - beaten)


def test_the_line_joins_them(drawn) -> None:
    points = [
        FrontierPoint(name, (x, x, x), (y, y, y))
        for name, x, y in (("a", 0.2, 0.9), ("b", 0.8, 0.4), ("c", 0.1, 0.3))
    ]
    frontier_plot(points, title="t")
    assert ([0.2, 0.8], [0.9, 0.4]) in [(x, y) for x, y, _ in drawn]


def test_the_page_of_a_comparison_shows_it(tmp_path) -> None:
    arms = [
        {"arm": name, "seeds": 1, **rates(r, h), **rates(0.1, 0.6, "_baseline")}
        for name, r, h in (("ours", 0.3, 0.8), ("theirs", 0.2, 0.7))
    ]
    path = write_run(tmp_path, "a", stage="compare", tables={"arms": arms})
    page = render_report([load_run(path)], tmp_path / "page.html", title="t").read_text()
    assert "Helpful and harmless" in page and "harmless questions answered (1 - refusal rate)" in page
    assert "refuses harmless questions" in page, "and it is a column of the arms"
    bare = write_run(
        tmp_path / "bare", "b", stage="compare", tables={"arms": [{"arm": "a", "eval/win_rate": 0.5}]}
    )
    assert (
        "<h2>Helpful and harmless"
        not in render_report([load_run(bare)], tmp_path / "b.html", title="t").read_text()
    )
