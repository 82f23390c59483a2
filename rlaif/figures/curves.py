"""Curves over training, over a factor of an experiment, and over the distance to the reference policy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from rlaif.figures.svg import INK, colours, drawn_once, legend, mark, percent_axis, svg
from rlaif.tracking.glossary import describe
from rlaif.tracking.runs import Row, number, series
from rlaif.tracking.text import is_percent, metric_label, metric_range, metric_value

MOST_POINTS = 200  # of a curve that is drawn


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
    arm: str = ""


def by_seed(rows: Sequence[Row]) -> list[list[Row]]:
    """A history's rows by their `seed`, in order; one list if they have none."""
    seeds: dict[Any, list[Row]] = {}
    for row in rows:
        seeds.setdefault(row.get("seed"), []).append(row)
    return list(seeds.values())


def thinned(values: Sequence[float], most: int = MOST_POINTS) -> list[int]:
    """Places of at most `most` values that show the same curve: its ends, and each stretch's lowest and highest."""
    if len(values) <= most:
        return list(range(len(values)))
    edges = np.linspace(1, len(values) - 1, most // 2).astype(int)
    kept = {0, len(values) - 1}
    for start, end in pairwise(edges.tolist()):
        stretch = range(start, max(end, start + 1))
        kept |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
    return sorted(kept)


def rising_pieces(steps: Sequence[float]) -> list[slice]:
    """The longest runs of rising steps, in order."""
    breaks = [i for i in range(1, len(steps)) if steps[i] <= steps[i - 1]]
    return [slice(start, end) for start, end in pairwise([0, *breaks, len(steps)])]


@dataclass(frozen=True)
class _Band:
    """A metric over steps: the mean of the seeds that have it at each step, the lowest and the highest."""

    steps: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def _band(seeds: Sequence[tuple[list[float], list[float]]]) -> _Band:
    """Over the steps that all seeds have."""
    tables = [dict(zip(*seed, strict=True)) for seed in seeds]
    steps = [step for step in tables[0] if all(step in table for table in tables)]
    columns = [[table[step] for table in tables] for step in steps]
    return _Band(steps, [sum(c) / len(c) for c in columns], list(map(min, columns)), list(map(max, columns)))


def _panel(axes: Axes, histories: Mapping[str, Sequence[Row]], name: str, shade: Mapping[str, str]) -> None:
    for label, history in histories.items():
        found = [one for rows in by_seed(history) if (one := series(rows, name))[0]]
        band = _band(found) if len(found) > 1 else None
        if band is not None and band.steps:
            _draw_band(axes, label, band, name, shade[label])
            continue
        # A comparison's history has its arms' fits one after another: one line each.
        for steps, values in found:
            for fit in rising_pieces(steps):
                _draw_line(axes, label, steps[fit], values[fit], name, shade[label])
    axes.set_title(metric_label(name))
    axes.margins(x=0.03)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    if is_percent(name):
        percent_axis(axes.yaxis)


def _draw_line(
    axes: Axes, label: str, steps: Sequence[float], values: Sequence[float], name: str, colour: str
) -> None:
    style: dict[str, Any] = {"marker": "o", "markersize": 3} if len(steps) < 12 else {}
    kept = thinned(values)
    (line,) = axes.plot([steps[i] for i in kept], [values[i] for i in kept], color=colour, **style)
    last = f"{metric_value(name, values[-1])} at step {steps[-1]:g}"
    mark(line, label, tip=f"{label}: {last}" if label else last, line=label)


def _draw_band(axes: Axes, label: str, band: _Band, name: str, colour: str) -> None:
    kept = thinned(band.mean)
    steps, mean, low, high = (
        [column[i] for i in kept] for column in (band.steps, band.mean, band.low, band.high)
    )
    mark(axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0), label)
    (line,) = axes.plot(steps, mean, color=colour)
    told = (
        f"{metric_value(name, mean[-1])} at step {steps[-1]:g}, seeds {metric_range(name, low[-1], high[-1])}"
    )
    mark(line, label, tip=f"{label}: {told}", line=label)


@drawn_once
def learning_curves(
    histories: Mapping[str, Sequence[Row]], names: Sequence[str], *, title: str, arms: Sequence[str] = ()
) -> str:
    """Small multiples, one panel per metric over its steps; one colour per run (`histories`: label to rows).

    Rows with a `seed` are several runs of one label: their mean, with a band from the lowest to the highest of them.
    """
    shown = [name for name in names if any(series(rows, name)[0] for rows in histories.values())]
    if not shown:
        return ""
    columns = 3 if len(shown) in (1, 2, 3, 5, 6, 9) else 4
    lines = math.ceil(len(shown) / columns)
    shade = colours(list(histories), arms)

    def draw(figure: Figure) -> None:
        for index, name in enumerate(shown):
            axes = figure.add_subplot(lines, columns, index + 1)
            _panel(axes, histories, name, shade)
            if index >= len(shown) - columns:
                axes.set_xlabel("step")
        legend(figure, shade)

    extra = 0.28 * math.ceil(min(len(histories), 8) / 3) if len(histories) > 1 else 0.0
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
                _curve(axes, shifted, shade[name], metric, name)
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


def _curve(
    axes: Axes, points: Sequence[tuple[float, CurvePoint]], colour: str, metric: str, name: str
) -> None:
    """Points and their intervals, which belong to an arm each, and what joins two of them, which belongs to both."""
    for (x, one), (u, two) in pairwise(points):
        (line,) = axes.plot([x, u], [one.value, two.value], color=colour)
        mark(line, one.arm, two.arm)
    for place, point in points:
        shown = ""
        if point.low is not None and point.high is not None:
            (bar,) = axes.plot([place, place], [point.low, point.high], color=colour, linewidth=2, alpha=0.55)
            mark(bar, point.arm)
            shown = f" ({metric_range(metric, point.low, point.high)})"
        (dot,) = axes.plot([place], [point.value], "o", color=colour, markersize=5)
        what = point.arm or name
        mark(dot, point.arm, tip=f"{what}: {metric_value(metric, point.value)}{shown}" if what else "")


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
    arms: Sequence[str] = (),
) -> str:
    """Proxy reward over sqrt(KL) beside the judge's win rate over the same axis (Gao et al. 2022, figure 1).

    `paths`: label to history rows with the KL `x` and the first of `proxies`; `points`: judged policies, by the metric
    `judge`. Empty if neither has a KL. The dashed line is the second of `proxies`, the proxy on prompts that the reward
    model was not trained on. Without any proxy, as of policies that learnt from preferences, the judge stands alone.
    Seeds of a label are a line each.
    """
    dashes = proxies[1] if len(proxies) > 1 else None
    tracks = {
        label: seeds
        for label, rows in paths.items()
        if (seeds := [seed for seed in by_seed(rows) if len(_track(seed, proxies[0], x)) > 1])
    }
    usable = [point for point in points if point.kl >= 0]
    if not tracks and not usable:
        return ""

    rewarded = bool(tracks) or any(point.reward is not None for point in usable)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 2 if rewarded else 1, sharex=True, squeeze=False)[0]
        top, bottom = panels[0], panels[-1]
        shade = colours([*tracks, *(point.label for point in usable)], arms)
        for label, rows in ((label, rows) for label, seeds in tracks.items() for rows in seeds):
            _path(top, label, _track(rows, proxies[0], x), shade[label])
            if dashes is not None and (held_out := _track(rows, dashes, x)):
                (line,) = top.plot(*zip(*held_out, strict=True), "--o", color=shade[label], markersize=4)
                mark(line, label, line=f"{label}, held-out prompts".removeprefix(", "))
        for point in usable:
            _judged(top, bottom, point, shade[point.label], (proxies[0], judge))
        neutral = getattr(describe(judge), "neutral", None)
        if neutral is not None:
            bottom.axhline(neutral, color=INK, linewidth=1, linestyle=(0, (3, 3)))
        seeds = [rows for own in tracks.values() for rows in own]
        measured = dashes is not None and any(_track(rows, dashes, x) for rows in seeds)
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
def over_metric(
    paths: Mapping[str, Sequence[Row]], x: str, names: Sequence[str], *, title: str, arms: Sequence[str] = ()
) -> str:
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
        shade = colours(labels, arms)
        panels = figure.subplots(1, len(shown), sharex=True, squeeze=False)[0]
        for axes, name in zip(panels, shown, strict=True):
            for label, rows in (
                (label, rows) for label, own in tracks[name].items() for rows in by_seed(own)
            ):
                for piece in rising_pieces([row["step"] for row in rows]):  # arms in one history: a line each
                    places = [math.sqrt(max(row[x], 0.0)) if root else row[x] for row in rows[piece]]
                    values = [row[name] for row in rows[piece]]
                    (line,) = axes.plot(places, values, "o-", color=shade[label], markersize=4)
                    mark(line, label, line=label)
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


def _path(axes: Axes, label: str, track: Sequence[tuple[float, float]], colour: str) -> None:
    """The proxy of one run over its path."""
    kept = [track[place] for place in thinned([reward for _, reward in track])]
    (line,) = axes.plot(*zip(*kept, strict=True), color=colour)
    mark(line, label, line=label)


def _judged(top: Axes, bottom: Axes, point: JudgedPoint, colour: str, names: tuple[str, str]) -> None:
    """The point's proxy and judgement, which are the metrics `names`."""
    proxy, judge = names
    x, name = math.sqrt(point.kl), f"{point.label}: " if point.label else ""
    if point.reward is not None:
        (dot,) = top.plot([x], [point.reward], "D", color=colour, markersize=6)
        mark(
            dot,
            point.label,
            tip=f"{name}{metric_label(proxy)} {metric_value(proxy, point.reward)}, √KL {x:.3g}",
        )
    if point.win_rate is not None:
        shown = ""
        if point.low is not None and point.high is not None:
            (bar,) = bottom.plot([x, x], [point.low, point.high], color=colour, linewidth=2)
            mark(bar, point.label)
            shown = f" ({metric_range(judge, point.low, point.high)})"
        (dot,) = bottom.plot([x], [point.win_rate], "D", color=colour, markersize=6)
        value = f"{metric_label(judge)} {metric_value(judge, point.win_rate)}{shown}"
        mark(dot, point.label, tip=f"{name}{value}, √KL {x:.3g}")
