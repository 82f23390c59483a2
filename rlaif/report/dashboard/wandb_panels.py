"""The panels of a layout as W&B draws them, in its workspaces and its reports alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import wandb_workspaces.reports.v2 as wr

from rlaif.io.hashing import digest
from rlaif.report.dashboard.layout import Layout, Panel, Section
from rlaif.tracking.text import lower_is_better, metric_label
from rlaif.tracking.wandb_run import axis_of

TABLES: Mapping[str, str] = {
    "samples": "tables/samples",
    "judgements": "tables/judgements",
    "reading": "tables/reading_policy",
}
"""The table that a run logs of a part of the page."""
_WIDTH, _HEIGHT = 24, 7  # of a report's grid, and of a panel in it
_ACROSS = 3


def panels_of(section: Section, panels: Sequence[Panel]) -> list[Any]:
    """What W&B draws of `panels` of the section: each metric once as bars, however many panels show its values."""
    bars: set[str] = set()
    ordered = sorted(panels, key=lambda panel: panel.kind in ("arms", "table"))  # the ones that fill in last
    drawn = [one for panel in ordered for one in _PANELS[panel.kind](panel, bars)]
    if table := TABLES.get(section.part or ""):
        drawn.append(wr.WeavePanelSummaryTable(table_name=table))
    return _placed(section.name, drawn)


def columns_of(layout: Layout) -> list[str]:
    """The metrics of the layout's tables of arms: the columns beside a run's name."""
    tables = (panel for panel in layout.panels if panel.kind == "arms")
    return [f"summary:{name}" for name in dict.fromkeys(name for panel in tables for name in panel.metrics)]


def _placed(section: str, drawn: Sequence[Any]) -> list[Any]:
    """Side by side, with an id that is the same each time: a specification differs only where its layout does."""
    width = _WIDTH // _ACROSS
    for place, one in enumerate(drawn):
        down, across = divmod(place, _ACROSS)
        one.layout = wr.Layout(x=across * width, y=down * _HEIGHT, w=width, h=_HEIGHT)
        one._id = digest([section, place, type(one).__name__], 11)
    return list(drawn)


def _summary(name: str | None) -> Any:
    return wr.SummaryMetric(str(name))


def _bars(panel: Panel, drawn: set[str]) -> Iterable[Any]:
    for name in panel.metrics:
        if name not in drawn:
            drawn.add(name)
            yield wr.BarPlot(title=metric_label(name), metrics=[_summary(name)], orientation="h")


def _parallel(panel: Panel, _: set[str]) -> Iterable[Any]:
    columns = [
        wr.ParallelCoordinatesPlotColumn(
            _summary(name), display_name=metric_label(name), inverted=lower_is_better(name) or None
        )
        for name in panel.metrics
    ]
    yield wr.ParallelCoordinatesPlot(title=panel.title or None, columns=columns)


def _scatter(panel: Panel, _: set[str]) -> Iterable[Any]:
    for name in panel.metrics:
        yield _over(str(panel.x), name)


def _over(x: str, y: str) -> Any:
    return wr.ScatterPlot(title=f"{metric_label(y)} over {metric_label(x)}", x=_summary(x), y=_summary(y))


def _frontier(panel: Panel, _: set[str]) -> Iterable[Any]:
    yield _over(*panel.metrics)


def _proxy(panel: Panel, _: set[str]) -> Iterable[Any]:
    title = f"{metric_label(panel.metrics[0])} over {metric_label(str(panel.x))}"
    yield wr.LinePlot(title=title, x=panel.x, y=list(panel.metrics))
    yield _over(str(panel.judge_x), str(panel.judge))


def _curves(panel: Panel, _: set[str]) -> Iterable[Any]:
    for name in panel.metrics:
        axis = panel.x or axis_of(name)
        over = f" over {metric_label(panel.x)}" if panel.x else ""
        yield wr.LinePlot(title=f"{metric_label(name)}{over}", x=axis, y=[name])


def _curve(panel: Panel, _: set[str]) -> Iterable[Any]:
    """The experiment's own curve is a table of the comparison, not a metric of runs."""
    return ()


_PANELS: Mapping[str, Callable[[Panel, set[str]], Iterable[Any]]] = {
    "arms": _bars,
    "table": _bars,
    "forest": _bars,
    "parallel": _parallel,
    "scatter": _scatter,
    "frontier": _frontier,
    "proxy_vs_judge": _proxy,
    "curves": _curves,
    "curve": _curve,
}
