"""Figures as inline SVG: text stays text, ids are unique per figure, nothing is fetched.

The palette is Okabe and Ito's (told apart under the common forms of colour blindness).
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from rlaif.tracking.runs import Row, number, series
from rlaif.tracking.text import is_percent, metric_label

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D", "#8B5A2B")
INK, MUTED, GRID = "#1f2933", "#6b7785", "#e4e8ec"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rlaif",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": "#b4bdc6",
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
}


@dataclass(frozen=True)
class ForestRow:
    """One line of a forest plot; `mark` is drawn full (`best`), ringed (`tied`) or plain (empty)."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    mark: str = ""


@dataclass(frozen=True)
class JudgedPoint:
    """A policy at a KL from its reference (nats): proxy reward and the judge's win rate, where known."""

    label: str
    kl: float
    reward: float | None = None
    win_rate: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class CurvePoint:
    """A point of a curve with its interval, where there is one."""

    x: float
    value: float
    low: float | None = None
    high: float | None = None


def _svg(draw: Callable[[Figure], None], width: float, height: float, alt: str) -> str:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        stream = io.StringIO()
        empty: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(stream, format="svg", metadata=empty, transparent=True)
    return _inline(stream.getvalue(), alt)


def _inline(text: str, alt: str) -> str:
    """Cut the XML header, make ids unique by content and let the figure scale with the page."""
    body = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    prefix = "f" + hashlib.sha256((alt + body).encode()).hexdigest()[:8]
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = body.replace("url(#", f"url(#{prefix}-").replace('href="#', f'href="#{prefix}-')
    head, rest = body.split(">", 1)
    box = re.search(r'viewBox="[^"]+"', head)
    points = re.search(r'width="([\d.]+)pt"', head)
    assert box is not None and points is not None
    name = escape(alt, quote=True)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} '
        f'role="img" aria-label="{name}" '
        f'style="width:100%;max-width:{float(points[1]) * 4 / 3:.0f}px;height:auto"'
    )
    return f"{opening}>{rest}".strip()


def _percent_axis(axis: Any) -> None:
    """Whole percents only: a tick at 62.5% would print as a wrong number."""
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))


def _shorten(label: str, limit: int = 46) -> str:
    return label if len(label) <= limit else label[: limit - 1] + "…"


def forest_plot(
    rows: Sequence[ForestRow],
    *,
    title: str,
    reference: float | None,
    percent: bool,
    axis_label: str,
    width: float,
) -> str:
    """Estimates with 95% intervals, first row on top; `reference` draws the line of no difference.

    `width` in inches, as matplotlib counts (96 pixels each on the page).
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
        axes.set_yticks(range(len(rows)), [_shorten(row.label) for row in rows], color=INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(axis_label)
        axes.margins(x=0.08)
        if percent:
            _percent_axis(axes.xaxis)

    return _svg(draw, width, 0.9 + 0.34 * len(rows), title)


def rates_by_bin(
    bins: Sequence[str], lines: Mapping[str, Sequence[ForestRow]], *, title: str, axis_label: str
) -> str:
    """Rates with 95% intervals over ordered bins, one colour a line; a row's `label` is its bin.

    The dashed line is 50%. Empty when no line has a row.
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
        _percent_axis(axes.yaxis)
        figure.legend(loc="outside upper left", ncols=len(drawn))

    return _svg(draw, 4.2, 3.4, title)


def rising_pieces(steps: Sequence[float]) -> list[slice]:
    """The longest runs of rising steps, in order."""
    breaks = [i for i in range(1, len(steps)) if steps[i] <= steps[i - 1]]
    return [slice(start, end) for start, end in pairwise([0, *breaks, len(steps)])]


def _panel(axes: Axes, histories: Mapping[str, Sequence[Row]], name: str) -> None:
    for index, (label, history) in enumerate(histories.items()):
        steps, values = series(history, name)
        colour = PALETTE[index] if index < len(PALETTE) else "#c3cad1"
        style: dict[str, Any] = {"marker": "o", "markersize": 3} if len(steps) < 12 else {}
        # The fits of a comparison's arms follow each other in one history: a line each.
        for piece, fit in enumerate(rising_pieces(steps)):
            own = label if piece == 0 else None
            axes.plot(steps[fit], values[fit], color=colour, label=own, **style)
    axes.set_title(metric_label(name))
    axes.margins(x=0.03)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    if is_percent(name):
        _percent_axis(axes.yaxis)


def learning_curves(histories: Mapping[str, Sequence[Row]], names: Sequence[str], *, title: str) -> str:
    """Small multiples, one panel a metric over its steps; one colour a run (`histories`: label to rows)."""
    shown = [name for name in names if any(series(rows, name)[0] for rows in histories.values())]
    if not shown:
        return ""
    columns = 3 if len(shown) in (1, 2, 3, 5, 6) else 4
    lines = math.ceil(len(shown) / columns)

    def draw(figure: Figure) -> None:
        for index, name in enumerate(shown):
            axes = figure.add_subplot(lines, columns, index + 1)
            _panel(axes, histories, name)
            if index >= len(shown) - columns:
                axes.set_xlabel("step")
        if len(histories) > 1:
            handles, labels = figure.axes[0].get_legend_handles_labels()
            figure.legend(
                handles,
                [_shorten(text) for text in labels],
                loc="outside upper left",
                ncols=min(3, len(labels)),
            )

    extra = 0.28 * math.ceil(len(histories) / 3) if len(histories) > 1 else 0.0
    return _svg(draw, 10.6, 1.85 * lines + 0.25 + extra, title)


def curves(
    panels: Mapping[str, Mapping[str, Sequence[CurvePoint]]], *, x_label: str, x_percent: bool, title: str
) -> str:
    """Metrics over x with 95% intervals: a panel for each metric, a colour for each named line in it.

    Points of a line come in the order of x. x is logarithmic where it spans more than a decade.
    """
    places = [point.x for lines in panels.values() for points in lines.values() for point in points]
    span = (min(places), max(places))
    logarithmic = span[0] > 0 and span[1] / span[0] > 10
    colours = _colours([name for lines in panels.values() for name in lines])

    def draw(figure: Figure) -> None:
        for index, (metric, lines) in enumerate(panels.items()):
            axes = figure.add_subplot(1, len(panels), index + 1)
            for place, (name, points) in enumerate(lines.items()):
                side = 0.012 * (place - (len(lines) - 1) / 2)  # intervals of two lines side by side
                shifted = [(_beside(point.x, side, span, logarithmic=logarithmic), point) for point in points]
                _curve(axes, shifted, colours[name])
            axes.set_title(metric_label(metric))
            axes.set_xlabel(x_label)
            if is_percent(metric):
                _percent_axis(axes.yaxis)
            if x_percent:
                _percent_axis(axes.xaxis)
            elif logarithmic:
                _log_axis(axes, places)
        if len(colours) > 1:
            _legend(figure, colours)

    legend = 0.28 * math.ceil(len(colours) / 3) if len(colours) > 1 else 0.0
    return _svg(draw, max(5.0, 4.6 * len(panels)), 3.2 + legend, title)


def _beside(x: float, side: float, span: tuple[float, float], *, logarithmic: bool) -> float:
    """`x` moved by the share `side` of an axis from `span[0]` to `span[1]`."""
    low, high = span
    return x * (high / low) ** side if logarithmic else x + (high - low) * side


def _curve(axes: Axes, points: Sequence[tuple[float, CurvePoint]], colour: str) -> None:
    values = [point.value for _, point in points]
    axes.plot([place for place, _ in points], values, "o-", color=colour, markersize=5)
    for place, point in points:
        if point.low is not None and point.high is not None:
            axes.plot([place, place], [point.low, point.high], color=colour, linewidth=2, alpha=0.55)


def _log_axis(axes: Axes, places: Sequence[float]) -> None:
    """Ticks at the points themselves: decades alone would leave a doubling ladder without numbers."""
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    ticks: list[float] = []
    for place in sorted(places):
        if not ticks or place > 1.3 * ticks[-1]:  # closer ones would print over each other
            ticks.append(place)
    axes.set_xticks(ticks, [f"{tick:,.4g}" for tick in ticks])


def proxy_vs_judge(paths: Mapping[str, Sequence[Row]], points: Sequence[JudgedPoint], *, title: str) -> str:
    """Proxy reward over sqrt(KL) above the judge's win rate over the same axis (Gao et al. 2023, figure 1).

    `paths`: label to history rows with `rl/kl` and `rl/reward`; `points`: judged policies. Empty when
    neither has a KL. Dashed beside the proxy is the one on prompts that the reward model was not trained on.
    """
    tracks = {label: _track(rows) for label, rows in paths.items()}
    tracks = {label: track for label, track in tracks.items() if len(track) > 1}
    usable = [point for point in points if point.kl >= 0]
    if not tracks and not usable:
        return ""

    def draw(figure: Figure) -> None:
        top, bottom = figure.subplots(1, 2, sharex=True)
        colours = _colours([*tracks, *(point.label for point in usable)])
        for label, track in tracks.items():
            top.plot(*zip(*track, strict=True), color=colours[label], label=label)
            if held_out := _track(paths[label], "rl/reward_held_out"):
                top.plot(*zip(*held_out, strict=True), "--o", color=colours[label], markersize=4)
        for point in usable:
            _judged(top, bottom, point, colours[point.label])
        bottom.axhline(0.5, color=INK, linewidth=1, linestyle=(0, (3, 3)))
        measured = any(_track(paths[label], "rl/reward_held_out") for label in tracks)
        dashed = " (dashed: on held-out prompts)" if measured else ""
        top.set_title(f"proxy: reward, before penalties and KL{dashed}")
        bottom.margins(y=0.15)
        bottom.set_title("judge: win rate over the baseline")
        _percent_axis(bottom.yaxis)
        for axes in (top, bottom):
            axes.set_xlabel("√KL from the reference (√nats)")
            axes.set_xlim(left=0)
            axes.margins(0.06)
        if len(colours) > 1:
            _legend(figure, colours)

    return _svg(draw, 9.4, 3.0 + (0.25 if len(tracks) + len(usable) > 2 else 0), title)


def over_optimisation(paths: Mapping[str, Sequence[Row]], *, title: str) -> str:
    """What a tracker measured on fixed prompts over sqrt(KL): proxy reward beside the held-out measure.

    `paths`: label to history rows, of which those with `rl/track_kl` count, in their order: a policy may come
    back. Empty where nothing was tracked. (Gao et al. 2022, figure 1.)
    """
    tracks = {
        label: [row for row in rows if number(row, "rl/track_kl") is not None]
        for label, rows in paths.items()
    }
    tracks = {label: rows for label, rows in tracks.items() if rows}
    if not tracks:
        return ""

    def draw(figure: Figure) -> None:
        colours = _colours(list(tracks))
        panels = (
            ("rl/track_proxy", "proxy: reward, before penalties and KL"),
            ("rl/track_gold", "held-out measure"),
        )
        for axes, (name, heading) in zip(figure.subplots(1, 2, sharex=True), panels, strict=True):
            for label, rows in tracks.items():
                for piece in rising_pieces(
                    [row["step"] for row in rows]
                ):  # a line each for arms in one history
                    places = [math.sqrt(max(row["rl/track_kl"], 0.0)) for row in rows[piece]]
                    values = [row[name] for row in rows[piece]]
                    axes.plot(places, values, "o-", color=colours[label], markersize=4)
            axes.set_title(heading)
            axes.set_xlabel("√KL from the reference (√nats)")
            axes.margins(0.06)
        if len(colours) > 1:
            _legend(figure, colours)

    return _svg(draw, 9.4, 3.0 + (0.25 if len(tracks) > 2 else 0), title)


def _track(rows: Sequence[Row], name: str = "rl/reward") -> list[tuple[float, float]]:
    rewards = dict(zip(*series(rows, name), strict=True))
    divergences = zip(*series(rows, "rl/kl"), strict=True)
    return [(math.sqrt(max(kl, 0.0)), rewards[step]) for step, kl in divergences if step in rewards]


def _judged(top: Axes, bottom: Axes, point: JudgedPoint, colour: str) -> None:
    x = math.sqrt(point.kl)
    if point.reward is not None:
        top.plot([x], [point.reward], "D", color=colour, markersize=6)
    if point.win_rate is not None:
        if point.low is not None and point.high is not None:
            bottom.plot([x, x], [point.low, point.high], color=colour, linewidth=2)
        bottom.plot([x], [point.win_rate], "D", color=colour, markersize=6)


def _colours(labels: Sequence[str]) -> dict[str, str]:
    unique = list(dict.fromkeys(labels))
    return {
        label: PALETTE[index] if index < len(PALETTE) else "#c3cad1" for index, label in enumerate(unique)
    }


def _legend(figure: Figure, colours: Mapping[str, str]) -> None:
    shown = list(colours)[: len(PALETTE)]
    handles = [matplotlib.lines.Line2D([], [], color=colours[label], marker="o") for label in shown]
    figure.legend(
        handles, [_shorten(label) for label in shown], loc="outside upper left", ncols=min(3, len(shown))
    )


def reliability_plot(curves: Mapping[str, Sequence[Row]], *, title: str) -> str:
    """Observed frequency over predicted probability; area of a point grows with its bin's count.

    `curves`: name to bins, rows with `mean_predicted` and `mean_observed` in [0, 1] and `n`. Bins without
    items and curves without bins are left out; names are written where there are two curves or more.
    """
    full = {
        name: [row for row in bins if row.get("n") and row.get("mean_predicted") is not None]
        for name, bins in curves.items()
    }
    drawn = {name: rows for name, rows in full.items() if rows}
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
        axes.set(
            xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="predicted", ylabel="observed", aspect="equal"
        )
        _percent_axis(axes.xaxis)
        _percent_axis(axes.yaxis)
        if len(drawn) > 1:
            figure.legend(loc="outside upper left", ncols=len(drawn))

    return _svg(draw, 3.6, 3.4, title)
