"""Curves over training, over a factor of an experiment, and over the distance to the reference policy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from rlaif.figures.svg import INK, PALETTE, colours, drawn_once, legend, percent_axis, shorten, svg
from rlaif.tracking.glossary import describe
from rlaif.tracking.runs import Row, number, series
from rlaif.tracking.text import is_percent, metric_label


@dataclass(frozen=True)
class JudgedPoint:
    """A policy at its KL to the reference (nats): the proxy reward and the judge's win rate, if known."""

    label: str
    kl: float
    reward: float | None = None
    win_rate: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class CurvePoint:
    """A point of a curve, with its interval if there is one."""

    x: float
    value: float
    low: float | None = None
    high: float | None = None


def rising_pieces(steps: Sequence[float]) -> list[slice]:
    """The longest runs of rising steps, in order."""
    breaks = [i for i in range(1, len(steps)) if steps[i] <= steps[i - 1]]
    return [slice(start, end) for start, end in pairwise([0, *breaks, len(steps)])]


def _panel(axes: Axes, histories: Mapping[str, Sequence[Row]], name: str) -> None:
    for index, (label, history) in enumerate(histories.items()):
        steps, values = series(history, name)
        colour = PALETTE[index] if index < len(PALETTE) else "#c3cad1"
        style: dict[str, Any] = {"marker": "o", "markersize": 3} if len(steps) < 12 else {}
        # A comparison's history has its arms' fits one after another: one line each.
        for piece, fit in enumerate(rising_pieces(steps)):
            own = label if piece == 0 else None
            axes.plot(steps[fit], values[fit], color=colour, label=own, **style)
    axes.set_title(metric_label(name))
    axes.margins(x=0.03)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    if is_percent(name):
        percent_axis(axes.yaxis)


@drawn_once
def learning_curves(histories: Mapping[str, Sequence[Row]], names: Sequence[str], *, title: str) -> str:
    """Small multiples, one panel per metric over its steps; one colour per run (`histories`: label to rows)."""
    shown = [name for name in names if any(series(rows, name)[0] for rows in histories.values())]
    if not shown:
        return ""
    columns = 3 if len(shown) in (1, 2, 3, 5, 6, 9) else 4
    lines = math.ceil(len(shown) / columns)

    def draw(figure: Figure) -> None:
        for index, name in enumerate(shown):
            axes = figure.add_subplot(lines, columns, index + 1)
            _panel(axes, histories, name)
            if index >= len(shown) - columns:
                axes.set_xlabel("step")
        if len(histories) > 1:
            handles, labels = figure.axes[0].get_legend_handles_labels()
            ncols = min(3, len(labels))
            figure.legend(handles, list(map(shorten, labels)), loc="outside upper left", ncols=ncols)

    extra = 0.28 * math.ceil(len(histories) / 3) if len(histories) > 1 else 0.0
    return svg(draw, 10.6, 1.85 * lines + 0.25 + extra, title)


@drawn_once
def curves(
    panels: Mapping[str, Mapping[str, Sequence[CurvePoint]]], *, x_label: str, x_percent: bool, title: str
) -> str:
    """Metrics over x with 95% intervals: one panel per metric, one colour per named line in it.

    The points of a line are in the order of x. x is logarithmic if it spans more than a decade.
    """
    places = [point.x for lines in panels.values() for points in lines.values() for point in points]
    span = (min(places), max(places))
    logarithmic = span[0] > 0 and span[1] / span[0] > 10
    shade = colours([name for lines in panels.values() for name in lines])

    def draw(figure: Figure) -> None:
        for index, (metric, lines) in enumerate(panels.items()):
            axes = figure.add_subplot(1, len(panels), index + 1)
            for place, (name, points) in enumerate(lines.items()):
                side = 0.012 * (place - (len(lines) - 1) / 2)  # intervals of two lines side by side
                shifted = [(_beside(point.x, side, span, logarithmic=logarithmic), point) for point in points]
                _curve(axes, shifted, shade[name])
            axes.set_title(metric_label(metric))
            axes.set_xlabel(x_label)
            if is_percent(metric):
                percent_axis(axes.yaxis)
            if x_percent:
                percent_axis(axes.xaxis)
            elif logarithmic:
                _log_axis(axes, places)
        legend(figure, shade)

    room = 0.28 * math.ceil(len(shade) / 3) if len(shade) > 1 else 0.0
    return svg(draw, max(5.0, 4.6 * len(panels)), 3.2 + room, title)


def _beside(x: float, side: float, span: tuple[float, float], *, logarithmic: bool) -> float:
    """`x` moved by the fraction `side` of an axis from `span[0]` to `span[1]`."""
    low, high = span
    return x * (high / low) ** side if logarithmic else x + (high - low) * side


def _curve(axes: Axes, points: Sequence[tuple[float, CurvePoint]], colour: str) -> None:
    values = [point.value for _, point in points]
    axes.plot([place for place, _ in points], values, "o-", color=colour, markersize=5)
    for place, point in points:
        if point.low is not None and point.high is not None:
            axes.plot([place, place], [point.low, point.high], color=colour, linewidth=2, alpha=0.55)


def _log_axis(axes: Axes, places: Sequence[float]) -> None:
    """Ticks at the points themselves: with decades alone, repeatedly doubled values would have no numbers."""
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    ticks: list[float] = []
    for place in sorted(places):
        if not ticks or place > 1.3 * ticks[-1]:  # closer ones would overlap
            ticks.append(place)
    axes.set_xticks(ticks, [f"{tick:,.4g}" for tick in ticks])


@drawn_once
def proxy_vs_judge(
    paths: Mapping[str, Sequence[Row]],
    points: Sequence[JudgedPoint],
    *,
    title: str,
    x: str = "rl/kl",
    proxies: Sequence[str] = ("rl/reward", "rl/reward_held_out"),
    judge: str = "eval/win_rate",
) -> str:
    """Proxy reward over sqrt(KL) beside the judge's win rate over the same axis (Gao et al. 2022, figure 1).

    `paths`: label to history rows with the KL `x` and the first of `proxies`; `points`: judged policies, by the metric
    `judge`. Empty if neither has a KL. The dashed line is the second of `proxies`, the proxy on prompts that the reward
    model was not trained on. Without any proxy, as of policies that learnt from preferences, the judge stands alone.
    """
    dashes = proxies[1] if len(proxies) > 1 else None
    tracks = {label: track for label, rows in paths.items() if len(track := _track(rows, proxies[0], x)) > 1}
    usable = [point for point in points if point.kl >= 0]
    if not tracks and not usable:
        return ""

    rewarded = bool(tracks) or any(point.reward is not None for point in usable)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 2 if rewarded else 1, sharex=True, squeeze=False)[0]
        top, bottom = panels[0], panels[-1]
        shade = colours([*tracks, *(point.label for point in usable)])
        for label, track in tracks.items():
            top.plot(*zip(*track, strict=True), color=shade[label], label=label)
            if dashes is not None and (held_out := _track(paths[label], dashes, x)):
                top.plot(*zip(*held_out, strict=True), "--o", color=shade[label], markersize=4)
        for point in usable:
            _judged(top, bottom, point, shade[point.label])
        neutral = getattr(describe(judge), "neutral", None)
        if neutral is not None:
            bottom.axhline(neutral, color=INK, linewidth=1, linestyle=(0, (3, 3)))
        measured = dashes is not None and any(_track(paths[label], dashes, x) for label in tracks)
        dashed = " (dashed: on held-out prompts)" if measured else ""
        if rewarded:
            top.set_title(f"proxy: {_HEADINGS.get(proxies[0], metric_label(proxies[0]))}{dashed}")
        bottom.margins(y=0.15)
        bottom.set_title(f"judge: {_HEADINGS.get(judge, metric_label(judge))}")
        if is_percent(judge):
            percent_axis(bottom.yaxis)
        for axes in panels:
            axes.set_xlabel("√KL from the reference (√nats)")
            axes.set_xlim(left=0)
            axes.margins(0.06)
        legend(figure, shade)

    width = 9.4 if rewarded else 4.9
    return svg(draw, width, 3.0 + (0.25 if len(tracks) + len(usable) > 2 else 0), title)


_HEADINGS = {
    "rl/reward": "reward, before penalties and KL",
    "eval/win_rate": "win rate over the baseline",
    "rl/track_proxy": "proxy: reward, before penalties and KL",
    "rl/track_gold": "held-out measure",
}
"""Titles of panels that say more than the registry's label."""


@drawn_once
def over_metric(paths: Mapping[str, Sequence[Row]], x: str, names: Sequence[str], *, title: str) -> str:
    """Metrics over another one, a panel per metric; a KL is drawn as its square root (Gao et al. 2022, figure 1).

    `paths`: label to history rows; those with `x` and the metric count, in their order, since a policy's KL may fall
    again. Empty if there are none.
    """
    tracks = {
        name: {label: kept for label, rows in paths.items() if (kept := _measured(rows, x, name))}
        for name in names
    }
    shown = [name for name in names if tracks[name]]
    if not shown:
        return ""
    root, labels = is_kl(x), list(dict.fromkeys(label for name in shown for label in tracks[name]))

    def draw(figure: Figure) -> None:
        shade = colours(labels)
        for axes, name in zip(
            figure.subplots(1, len(shown), sharex=True, squeeze=False)[0], shown, strict=True
        ):
            for label, rows in tracks[name].items():
                for piece in rising_pieces(
                    [row["step"] for row in rows]
                ):  # arms in one history: one line each
                    places = [math.sqrt(max(row[x], 0.0)) if root else row[x] for row in rows[piece]]
                    axes.plot(
                        places, [row[name] for row in rows[piece]], "o-", color=shade[label], markersize=4
                    )
            axes.set_title(_HEADINGS.get(name, metric_label(name)))
            axes.set_xlabel("√KL from the reference (√nats)" if root else metric_label(x))
            axes.margins(0.06)
            if is_percent(name):
                percent_axis(axes.yaxis)
        legend(figure, shade)

    width = min(10.6, 4.7 * len(shown))
    return svg(draw, width, 3.0 + (0.25 if len(labels) > 2 else 0), title)


def is_kl(name: str) -> bool:
    """Whether the metric is a KL divergence, which plots draw as its square root."""
    return name.rpartition("/")[2] in ("kl", "track_kl")


def _measured(rows: Sequence[Row], x: str, name: str) -> list[Row]:
    return [
        {"step": place, **row}
        for place, row in enumerate(rows)
        if number(row, x) is not None and number(row, name) is not None
    ]


def _track(rows: Sequence[Row], name: str = "rl/reward", x: str = "rl/kl") -> list[tuple[float, float]]:
    rewards = dict(zip(*series(rows, name), strict=True))
    divergences = zip(*series(rows, x), strict=True)
    return [(math.sqrt(max(kl, 0.0)), rewards[step]) for step, kl in divergences if step in rewards]


def _judged(top: Axes, bottom: Axes, point: JudgedPoint, colour: str) -> None:
    x = math.sqrt(point.kl)
    if point.reward is not None:
        top.plot([x], [point.reward], "D", color=colour, markersize=6)
    if point.win_rate is not None:
        if point.low is not None and point.high is not None:
            bottom.plot([x, x], [point.low, point.high], color=colour, linewidth=2)
        bottom.plot([x], [point.win_rate], "D", color=colour, markersize=6)
