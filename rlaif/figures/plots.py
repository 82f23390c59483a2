"""Figures as inline SVG: text stays text, ids are unique per figure, nothing is fetched.

The palette is that of Okabe and Ito (distinguishable under the common forms of colour blindness).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlaif.figures.svg import (
    INK,
    MUTED,
    PALETTE,
    PAPER,
    colours,
    drawn_once,
    legend,
    mark,
    percent_axis,
    shorten,
    svg,
)
from rlaif.tracking.runs import Row
from rlaif.tracking.text import FORMATS, percent


@dataclass(frozen=True)
class ForestRow:
    """One line of a forest plot, drawn as a filled point (`mark` is `best`), a ring (`tied`) or plain (empty)."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    mark: str = ""


@drawn_once
def forest_plot(
    rows: Sequence[ForestRow],
    *,
    title: str,
    reference: float | None,
    percent: bool,
    axis_label: str,
    width: float,
) -> str:
    """Estimates with 95% intervals, first row on top; the line of no difference is at `reference`.

    `width` is in inches, as in matplotlib (96 pixels each on the page).
    """

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for position, row in enumerate(rows):
            estimate(axes, row, position, _told(row, percent=percent))
        if reference is not None:
            axes.axvline(reference, color=INK, linewidth=1, linestyle=(0, (3, 3)))
        axes.set_yticks(range(len(rows)), [shorten(row.label) for row in rows], color=INK)
        for row, words in zip(rows, axes.get_yticklabels(), strict=True):
            mark(words, row.label)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(axis_label)
        axes.margins(x=0.08)
        if percent:
            percent_axis(axes.xaxis)

    return svg(draw, width, 0.9 + 0.34 * len(rows), title)


def estimate(axes: Axes, row: ForestRow, position: int, tip: str) -> None:
    """One line of a forest plot; `tip` is told under the pointer."""
    colour = PALETTE[0] if row.mark in ("best", "tied") else MUTED
    if row.low is not None and row.high is not None:
        (bar,) = axes.plot([row.low, row.high], [position, position], color=colour, linewidth=2)
        mark(bar, row.label, tip=tip)
    face = PAPER if row.mark == "tied" else colour
    (dot,) = axes.plot([row.value], [position], "o", color=colour, markerfacecolor=face, markersize=7)
    mark(dot, row.label, tip=tip)


def _told(row: ForestRow, *, percent: bool) -> str:
    """What a point says under the pointer."""
    written = FORMATS["percent" if percent else "number"]
    known = row.low is not None and row.high is not None
    shown = f" ({written.range(row.low, row.high)})" if known else ""  # type: ignore[arg-type]
    return f"{row.label}: {written.value(row.value)}{shown}"


@dataclass(frozen=True)
class FrontierPoint:
    """A policy by two shares, each with its 95% interval: harmless questions answered, and harmless answers."""

    label: str
    answered: tuple[float, float, float]
    harmless: tuple[float, float, float]


@drawn_once
def frontier_plot(points: Sequence[FrontierPoint], *, title: str, arms: Sequence[str] = ()) -> str:
    """Harmless rate over the share of harmless questions answered: the upper right is better. Empty without points.

    Triples are (estimate, low, high) in [0, 1]; crosses are the intervals. The dashed line joins the policies that no
    other one beats on one axis without losing on the other.
    """
    if not points:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        shade = colours([point.label for point in points], arms)
        for point in points:
            _cross(axes, point, shade[point.label])
        places = {(point.answered[0], point.harmless[0]): point.label for point in points}
        for one, two in pairwise(undominated(list(places))):
            ends = zip(one, two, strict=True)
            (line,) = axes.plot(*ends, color=INK, linewidth=1, linestyle=(0, (3, 3)), zorder=0)
            mark(line, places[one], places[two])
        axes.set_xlabel("harmless questions answered (1 - refusal rate)")
        axes.set_ylabel("harmless answers")
        axes.margins(0.08)
        percent_axis(axes.xaxis)
        percent_axis(axes.yaxis)
        legend(figure, shade)

    room = 0.28 * math.ceil(len(points) / 3) if len(points) > 1 else 0.0
    return svg(draw, 6.4, 4.2 + room, title)


def _cross(axes: Axes, point: FrontierPoint, colour: str) -> None:
    (x, left, right), (y, low, high) = point.answered, point.harmless
    for xs, ys in (([left, right], [y, y]), ([x, x], [low, high])):
        (bar,) = axes.plot(xs, ys, color=colour, linewidth=1.6, alpha=0.6)
        mark(bar, point.label)
    written = FORMATS["percent"]
    answered, harmless = (
        f"{written.value(value)} ({written.range(start, end)})"
        for value, start, end in (point.answered, point.harmless)
    )
    (dot,) = axes.plot([x], [y], "o", color=colour, markersize=7)
    mark(dot, point.label, tip=f"{point.label}: answered {answered}, harmless {harmless}")


def undominated(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of points (x, y), those than which no other is at least as high in both and higher in one, in the order of x."""
    return sorted(
        {(x, y) for x, y in points if not any(u >= x and v >= y and (u > x or v > y) for u, v in points)}
    )


@drawn_once
def rates_by_bin(
    bins: Sequence[str], lines: Mapping[str, Sequence[ForestRow]], *, title: str, axis_label: str
) -> str:
    """Rates with 95% intervals over ordered bins, one colour per line; a row's `label` is its bin.

    The dashed line is 50%. Empty if no line has a row.
    """
    drawn = {name: rows for name, rows in lines.items() if rows}
    if not drawn:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, (name, rows) in enumerate(drawn.items()):
            shift = 0.08 * (index - (len(drawn) - 1) / 2)  # intervals of two lines side by side
            places = [bins.index(row.label) + shift for row in rows]
            axes.plot(places, [row.value for row in rows], "-", color=PALETTE[index])
            for place, row in zip(places, rows, strict=True):
                if row.low is not None and row.high is not None:
                    axes.plot([place, place], [row.low, row.high], color=PALETTE[index], linewidth=2)
                (dot,) = axes.plot([place], [row.value], "o", color=PALETTE[index])
                mark(dot, tip=f"{name}, {_told(row, percent=True)}")
            axes.plot([], [], "o-", color=PALETTE[index], label=name)
        axes.axhline(0.5, color=INK, linewidth=1, linestyle=(0, (3, 3)))
        axes.set_xticks(range(len(bins)), bins)
        axes.set(xlim=(-0.4, len(bins) - 0.6), ylim=(-0.02, 1.02), xlabel=axis_label)
        percent_axis(axes.yaxis)
        figure.legend(loc="outside upper left", ncols=len(drawn))

    return svg(draw, 4.2, 3.4, title)


@drawn_once
def reliability_plot(curves: Mapping[str, Sequence[Row]], *, title: str) -> str:
    """Observed frequency over predicted probability; a point's area grows with its bin's count.

    `curves`: name to bins, rows with `mean_predicted` and `mean_observed` in [0, 1] and `n`. Bins without
    items and curves without bins are left out; names are shown if there are two curves or more.
    """
    drawn: dict[str, list[Row]] = {}
    for name, row in ((name, row) for name, bins in curves.items() for row in bins):
        if row.get("n") and row.get("mean_predicted") is not None:
            drawn.setdefault(name, []).append(row)
    if not drawn:
        return ""
    largest = max(float(row["n"]) for rows in drawn.values() for row in rows)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (3, 3)))
        for colour, (name, rows) in zip(PALETTE, drawn.items()):
            xs, ys = [row["mean_predicted"] for row in rows], [row["mean_observed"] for row in rows]
            axes.plot(xs, ys, color=colour, linewidth=1.2, label=name)
            for x, y, row in zip(xs, ys, rows, strict=True):
                dot = axes.scatter([x], [y], s=20 + 120 * float(row["n"]) / largest, color=colour)
                said = f"predicted {percent(x)}, observed {percent(y)}, n = {row['n']}"
                mark(dot, tip=f"{name}: {said}" if name else said)
        limits = (-0.02, 1.02)
        axes.set(xlim=limits, ylim=limits, xlabel="predicted", ylabel="observed", aspect="equal")
        percent_axis(axes.xaxis)
        percent_axis(axes.yaxis)
        if len(drawn) > 1:
            figure.legend(loc="outside upper left", ncols=len(drawn))

    return svg(draw, 3.6, 3.4, title)
