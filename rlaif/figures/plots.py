"""Figures as inline SVG: text stays text, ids are unique per figure, nothing is fetched.

The palette is that of Okabe and Ito (distinguishable under the common forms of colour blindness).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from rlaif.figures.svg import INK, MUTED, PALETTE, drawn_once, percent_axis, shorten, svg
from rlaif.tracking.runs import Row


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
            colour = PALETTE[0] if row.mark in ("best", "tied") else MUTED
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [position, position], color=colour, linewidth=2)
            face = "white" if row.mark == "tied" else colour
            axes.plot([row.value], [position], "o", color=colour, markerfacecolor=face, markersize=7)
        if reference is not None:
            axes.axvline(reference, color=INK, linewidth=1, linestyle=(0, (3, 3)))
        axes.set_yticks(range(len(rows)), [shorten(row.label) for row in rows], color=INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(axis_label)
        axes.margins(x=0.08)
        if percent:
            percent_axis(axes.xaxis)

    return svg(draw, width, 0.9 + 0.34 * len(rows), title)


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
            axes.plot(places, [row.value for row in rows], "o-", color=PALETTE[index], label=name)
            for place, row in zip(places, rows, strict=True):
                if row.low is not None and row.high is not None:
                    axes.plot([place, place], [row.low, row.high], color=PALETTE[index], linewidth=2)
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
            axes.scatter(xs, ys, s=[20 + 120 * float(row["n"]) / largest for row in rows], color=colour)
        limits = (-0.02, 1.02)
        axes.set(xlim=limits, ylim=limits, xlabel="predicted", ylabel="observed", aspect="equal")
        percent_axis(axes.xaxis)
        percent_axis(axes.yaxis)
        if len(drawn) > 1:
            figure.legend(loc="outside upper left", ncols=len(drawn))

    return svg(draw, 3.6, 3.4, title)
