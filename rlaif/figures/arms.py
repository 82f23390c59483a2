"""Arms beside each other: estimates with intervals, one metric over another, and lines across several metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlaif.figures.plots import ForestRow, estimate
from rlaif.figures.svg import (
    EDGE,
    INK,
    PALETTE,
    colours,
    drawn_once,
    legend,
    mark,
    percent_axis,
    shorten,
    svg,
)
from rlaif.stats import Interval
from rlaif.tracking.glossary import describe
from rlaif.tracking.text import is_percent, metric_label, metric_range, metric_value

_ACROSS = 3  # metrics beside each other


@dataclass(frozen=True)
class ArmPoint:
    """An arm's values of two metrics, with their 95% intervals if there are any."""

    label: str
    x: float
    y: float
    x_interval: Interval | None = None
    y_interval: Interval | None = None


@drawn_once
def forest_grid(columns: Mapping[str, Sequence[ForestRow]], *, title: str) -> str:
    """Estimates with 95% intervals: a column per metric, a line per arm, the same arms in each. Empty without any.

    The dashed line is the metric's value of chance or of no difference, if the registry has one.
    """
    drawn = {name: rows for name, rows in columns.items() if rows}
    if not drawn:
        return ""
    labels = list(dict.fromkeys(row.label for rows in drawn.values() for row in rows))
    across = min(_ACROSS, len(drawn))
    down = math.ceil(len(drawn) / across)

    def draw(figure: Figure) -> None:
        for index, (name, rows) in enumerate(drawn.items()):
            axes = figure.add_subplot(down, across, index + 1)
            _estimates(axes, name, {labels.index(row.label): row for row in rows})
            shown = list(map(shorten, labels)) if index % across == 0 else [""] * len(labels)
            axes.set_yticks(range(len(labels)), shown, color=INK)
            for label, words in zip(labels, axes.get_yticklabels(), strict=True):
                mark(words, label)
            axes.set_ylim(len(labels) - 0.4, -0.6)

    width = 8.4 if across == 1 else 10.6
    return svg(draw, width, down * (0.9 + 0.34 * len(labels)), title)


def _estimates(axes: Axes, name: str, rows: Mapping[int, ForestRow]) -> None:
    metric = describe(name)
    for position, row in rows.items():
        known = None if row.low is None or row.high is None else Interval(row.value, row.low, row.high, 0)
        estimate(axes, row, position, f"{row.label}: {_told(name, row.value, known)}")
    if metric is not None and metric.neutral is not None:
        axes.axvline(metric.neutral, color=INK, linewidth=1, linestyle=(0, (3, 3)))
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(metric_label(name))
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    if is_percent(name):
        percent_axis(axes.xaxis)


def _told(name: str, value: float, known: Interval | None) -> str:
    """A metric with its interval, as it is told under the pointer."""
    shown = f" ({metric_range(name, known.low, known.high)})" if known else ""
    return f"{metric_label(name)} {metric_value(name, value)}{shown}"


@drawn_once
def scatter_plot(
    panels: Mapping[str, Sequence[ArmPoint]], *, x: str, title: str, arms: Sequence[str] = ()
) -> str:
    """Metrics over the metric `x`: a panel each, a point per arm, crosses for 95% intervals. Empty without any.

    `arms`: all of the page, so that each has one colour in all of its figures.
    """
    drawn = {name: points for name, points in panels.items() if points}
    if not drawn:
        return ""
    shade = colours([point.label for points in drawn.values() for point in points], arms)

    def draw(figure: Figure) -> None:
        for index, (name, points) in enumerate(drawn.items()):
            axes = figure.add_subplot(1, len(drawn), index + 1)
            for point in points:
                _cross(axes, point, shade[point.label], (x, name))
            axes.set_title(metric_label(name))
            axes.set_xlabel(metric_label(x))
            axes.margins(0.08)
            for axis, metric in ((axes.xaxis, x), (axes.yaxis, name)):
                axis.set_major_locator(MaxNLocator(4))
                if is_percent(metric):
                    percent_axis(axis)
        legend(figure, shade)

    room = 0.28 * math.ceil(min(len(shade), len(PALETTE)) / 3) if len(shade) > 1 else 0.0
    return svg(draw, max(5.0, min(10.6, 4.7 * len(drawn))), 3.2 + room, title)


def _cross(axes: Axes, point: ArmPoint, colour: str, names: tuple[str, str]) -> None:
    across, upwards = point.x_interval, point.y_interval
    if across is not None:
        (bar,) = axes.plot(
            [across.low, across.high], [point.y, point.y], color=colour, linewidth=1.6, alpha=0.6
        )
        mark(bar, point.label)
    if upwards is not None:
        (bar,) = axes.plot(
            [point.x, point.x], [upwards.low, upwards.high], color=colour, linewidth=1.6, alpha=0.6
        )
        mark(bar, point.label)
    (dot,) = axes.plot([point.x], [point.y], "o", color=colour, markersize=7)
    told = _told(names[0], point.x, across), _told(names[1], point.y, upwards)
    mark(dot, point.label, tip=f"{point.label}: {', '.join(told)}")


@drawn_once
def parallel_plot(
    rows: Mapping[str, Sequence[float | None]],
    names: Sequence[str],
    *,
    title: str,
    arms: Sequence[str] = (),
) -> str:
    """A line per arm across the metrics `names`, each on an axis from its lowest value below to its highest on top.

    `rows`: label to values, in the order of `names`; a line breaks where an arm lacks a metric. Empty if none has two.
    """
    drawn = {label: row for label, row in rows.items() if sum(value is not None for value in row) > 1}
    if not drawn:
        return ""
    ends = [_ends([row[place] for row in drawn.values()]) for place in range(len(names))]

    def draw(figure: Figure) -> None:
        axes, shade = figure.add_subplot(), colours(list(drawn), arms)
        for label, row in drawn.items():
            heights = [
                math.nan if value is None else _height(value, *ends[place]) for place, value in enumerate(row)
            ]
            (line,) = axes.plot(range(len(names)), heights, "o-", color=shade[label], markersize=5)
            known = [
                _told(name, value, None) for name, value in zip(names, row, strict=True) if value is not None
            ]
            mark(line, label, tip=f"{label}: {', '.join(known)}")
        for place, (name, (low, high)) in enumerate(zip(names, ends, strict=True)):
            axes.axvline(place, color=EDGE, linewidth=1, zorder=0)
            axes.annotate(metric_value(name, high), (place, 1), (4, 6), textcoords="offset points")
            if high > low:
                axes.annotate(metric_value(name, low), (place, 0), (4, -12), textcoords="offset points")
        axes.set_xticks(range(len(names)), list(map(metric_label, names)), color=INK)
        axes.set(yticks=[], xlim=(-0.2, len(names) - 0.6), ylim=(-0.14, 1.16))
        axes.grid(visible=False)
        axes.spines[["left", "bottom"]].set_visible(False)
        legend(figure, shade)

    room = 0.28 * math.ceil(min(len(drawn), len(PALETTE)) / 3) if len(drawn) > 1 else 0.0
    return svg(draw, min(10.6, 3.4 * len(names)), 2.9 + room, title)


def _ends(values: Sequence[float | None]) -> tuple[float, float]:
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else (0.0, 0.0)


def _height(value: float, low: float, high: float) -> float:
    """The place between the axis's ends, 1 on top; of equal values, on top."""
    return (value - low) / (high - low) if high > low else 1.0
