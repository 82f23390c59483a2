"""The panels of the page: what a layout draws of the runs at hand, and what it leaves out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from markupsafe import Markup

from rlaif.figures import arms as arm_plots
from rlaif.figures import curves, plots
from rlaif.report.comparison import ArmsTable
from rlaif.report.curve import CurveTable, curve_figure, curve_table
from rlaif.report.dashboard.layout import Layout, Panel, Section
from rlaif.report.frontier import frontier_figure
from rlaif.stages.eval.judge_tables import Grid
from rlaif.tracking.runs import Row, Scalar, interval, number, series
from rlaif.tracking.text import metric_label, metric_range, metric_value

Summary = Mapping[str, Scalar]
_MOST_LINES, _MOST_CURVES = 60, 40  # arms of a forest plot, and of curves; tables and points have all
_OF_ARMS = ("arms", "table", "parallel", "scatter")
_FRONTIER = (
    "To the right: harmless questions that get an answer, by how answers open. Upwards: answers to the task's "
    "prompts that the judge, shown one at a time, calls harmless. The upper right is better; a policy that "
    "refuses everything is at the upper left. Crosses are 95% intervals. The dashed line joins the policies that "
    "no other one beats on one axis without losing on the other."
)
_PROXY = (
    "The further the policy moves from the reference, the more the proxy can be gamed: if the reward climbs on "
    "the left while the win rate on the right stays or falls, that is over-optimisation. Diamonds are judged "
    "policies."
)
_BAND = "Lines are means over an arm's seeds, bands go from the lowest seed to the highest."
_THINNED = (
    f"Of more than {curves.MOST_POINTS} points of a curve, the lowest and the highest of each of "
    f"{curves.MOST_POINTS // 2} stretches are drawn."
)


@dataclass(frozen=True)
class Material:
    """What panels are drawn from.

    `arms`: rows with `arm` and its summary, the best first; none for a single path, whose summary is `summary`.
    `histories` and `judged` (summaries of judged policies): by label. `points`: those of the experiment's curve.
    `table_of`: the table of arms with given columns; `table` is the one with all, whose `main` is the tested metric.
    """

    arms: Sequence[Row]
    summary: Summary
    histories: Mapping[str, Sequence[Row]]
    judged: Mapping[str, Sequence[Summary]]
    points: Sequence[Row]
    table: ArmsTable
    table_of: Callable[[Sequence[str]], ArmsTable]

    @property
    def few(self) -> tuple[Mapping[str, Sequence[Row]], str]:
        """The histories of as many arms as curves can show, the first ones, and a sentence if these are not all."""
        if len(self.histories) <= _MOST_CURVES:
            return self.histories, ""
        shown = dict(islice(self.histories.items(), _MOST_CURVES))
        return shown, f"The first {_MOST_CURVES} of {len(self.histories)} arms."

    @property
    def order(self) -> Sequence[str]:
        """The arms' names, by which they have their colours; none for a single path."""
        return [str(row["arm"]) for row in self.arms]

    @property
    def summaries(self) -> Sequence[Row | Summary]:
        """Those of the arms, or of the single path."""
        return self.arms or [self.summary]


@dataclass(frozen=True)
class Shown:
    """A panel as the page prints it: one of a figure, a table of arms or a grid, with what is measured of it."""

    panel: Panel
    measured: tuple[str, ...]
    figure: Markup = Markup()
    caption: str = ""
    arms: ArmsTable | None = None
    grid: Grid | None = None
    points: CurveTable | None = None

    def __bool__(self) -> bool:
        return bool(self.figure or self.arms or self.grid)


@dataclass(frozen=True)
class ShownSection:
    """A section of the page: its panels, or one of the page's own parts."""

    name: str
    title: str
    panels: tuple[Shown, ...]
    part: str | None


@dataclass(frozen=True)
class Board:
    """The page's sections, what they are drawn from, and sentences on panels and metrics that are left out."""

    sections: tuple[ShownSection, ...]
    left_out: tuple[str, ...]
    material: Material


def draw(layout: Layout, material: Material) -> Board:
    """The sections that have something to show, and sentences about what they leave out."""
    sections: list[ShownSection] = []
    shown: list[Shown] = []
    empty: list[tuple[str, Shown]] = []
    for section in layout.sections:
        drawn = [_DRAW[panel.kind](panel, material) for panel in section.panels]
        kept = tuple(one for one in drawn if one)
        shown += kept
        empty += [(_name(one.panel, section), one) for one in drawn if not one]
        if kept or section.part:
            sections.append(ShownSection(section.name, section.title, kept, section.part))
    return Board(tuple(sections), tuple(_left_out(shown, empty, len(material.arms))), material)


def _name(panel: Panel, section: Section) -> str:
    alone = section.title if len(section.panels) == 1 else f"{section.title} ({panel.name})"
    return panel.title or alone


def _left_out(shown: Sequence[Shown], empty: Sequence[tuple[str, Shown]], arms: int) -> Iterable[str]:
    """Panels without any value, panels that need several arms, and metrics that no run has of those shown."""
    single = [title for title, one in empty if one.panel.kind in _OF_ARMS and arms < 2]
    known = [title for title, one in empty if title not in single and one.panel.kind != "curve"]
    alike = [title for title, one in empty if title in known and _complete(one)]
    unmeasured = [title for title in known if title not in alike]
    lacking = [name for one in shown for name in one.panel.names if name not in one.measured]
    if unmeasured:
        yield f"Panels left out, since no run has their metrics: {'; '.join(unmeasured)}."
    if single:
        yield f"Panels left out, since they compare arms: {'; '.join(single)}."
    if alike:
        yield f"Panels left out, since no two arms differ on the horizontal axis: {'; '.join(alike)}."
    if lacking:
        yield f"Metrics left out, since no run has them: {', '.join(dict.fromkeys(lacking))}."


def _complete(one: Shown) -> bool:
    return one.panel.kind == "scatter" and len(one.measured) == len(one.panel.names)


def _in_summary(names: Iterable[str], summaries: Iterable[Summary]) -> tuple[str, ...]:
    found = list(summaries)
    return tuple(name for name in names if any(number(one, name) is not None for one in found))


def _in_history(
    names: Iterable[str], histories: Mapping[str, Sequence[Row]], least: int = 1
) -> tuple[str, ...]:
    """The metrics of which a history has at least so many values."""
    return tuple(
        name for name in names if any(len(series(rows, name)[0]) >= least for rows in histories.values())
    )


def _over(material: Material) -> str:
    return " over seeds and test items" if material.table.repeated else ""


def _arms(panel: Panel, material: Material) -> Shown:
    table = material.table_of(panel.metrics)
    return Shown(panel, _in_summary(panel.metrics, material.summaries), arms=table if table else None)


def _table(panel: Panel, material: Material) -> Shown:
    measured = _in_summary(panel.metrics, material.summaries)
    if not material.arms or not measured:
        return Shown(panel, measured)
    return Shown(panel, measured, grid=values_grid(panel, measured, material))


def values_grid(panel: Panel, measured: Sequence[str], material: Material) -> Grid:
    """The panel's values with their intervals: a row per arm, or one for the single path."""
    named = [(str(row["arm"]), row) for row in material.arms] or [("this run", material.summary)]
    rows = tuple(((label, ""), *(_cell(row, name) for name in measured)) for label, row in named)
    heads = ("Arm" if material.arms else "Run", *map(metric_label, measured))
    return Grid(panel.title, panel.note, heads, rows, 1)


def _cell(row: Row | Summary, name: str) -> tuple[str, str]:
    found = interval(row, name)
    return metric_value(name, number(row, name)), metric_range(name, found.low, found.high) if found else ""


def _forest(panel: Panel, material: Material) -> Shown:
    measured = _in_summary(panel.metrics, material.summaries)
    if not material.arms:
        return Shown(panel, measured, Markup(_rates(panel, material.summary)), panel.note)
    table = material.table
    marks = {row.arm: "best" if row.best else "tied" if row.tied else "" for row in table.arms}
    listed = material.arms[:_MOST_LINES]
    columns = {
        name: [
            row
            for one in listed
            if (
                row := _estimate(
                    str(one["arm"]), one, name, marks.get(one["arm"], "") if name == table.main else ""
                )
            )
        ]
        for name in panel.metrics
    }
    svg = arm_plots.forest_grid(columns, title=panel.title or "Estimates by arm")
    tested = " Filled point: best arm; ring: not told apart from it." if table.main in measured else ""
    some = f" The first {len(listed)} of {len(material.arms)} arms; the table has all."
    bars = (
        f"Bars are 95% intervals{_over(material)}.{tested}{some if len(listed) < len(material.arms) else ''}"
    )
    return Shown(panel, measured, Markup(svg), _told(panel, bars))


def _rates(panel: Panel, summary: Summary) -> str:
    """A single path's metrics below each other, as far as they have intervals."""
    rows = [_estimate(metric_label(name), summary, name, "best") for name in panel.metrics]
    known = [row for row in rows if row is not None and row.low is not None]
    if not known:
        return ""
    label = "50% is chance, or no difference"
    return plots.forest_plot(
        known, title="Rates with 95% intervals", reference=0.5, percent=True, axis_label=label, width=8.4
    )


def _estimate(label: str, values: Row | Summary, name: str, mark: str) -> plots.ForestRow | None:
    value, low, high = (number(values, f"{name}{end}") for end in ("", "_ci_low", "_ci_high"))
    return None if value is None else plots.ForestRow(label, value, low, high, mark)


def _parallel(panel: Panel, material: Material) -> Shown:
    measured = _in_summary(panel.metrics, material.summaries)
    svg = ""
    if len(material.arms) > 1 and len(measured) > 1:
        listed = material.arms[:_MOST_CURVES]
        rows = {str(row["arm"]): [number(row, name) for name in measured] for row in listed}
        title = panel.title or "Arms across metrics"
        svg = arm_plots.parallel_plot(rows, measured, title=title, arms=material.order)
    scales = "A line per arm; each axis goes from its lowest value to its highest, whatever their distance."
    if len(material.arms) > _MOST_CURVES:
        scales += f" The first {_MOST_CURVES} of {len(material.arms)} arms."
    return Shown(panel, measured, Markup(svg), _told(panel, scales))


def _scatter(panel: Panel, material: Material) -> Shown:
    assert panel.x is not None
    measured, svg = _in_summary(panel.names, material.summaries), ""
    if len({number(row, panel.x) for row in material.arms} - {None}) > 1:
        points = {name: _points(panel.x, name, material.arms) for name in panel.metrics}
        title = panel.title or "Arms by two metrics"
        svg = arm_plots.scatter_plot(points, x=panel.x, title=title, arms=material.order)
    return Shown(panel, measured, Markup(svg), _told(panel, f"Crosses are 95% intervals{_over(material)}."))


def _points(x: str, y: str, arms: Sequence[Row]) -> list[arm_plots.ArmPoint]:
    return [
        arm_plots.ArmPoint(str(row["arm"]), across, up, interval(row, x), interval(row, y))
        for row in arms
        if (across := number(row, x)) is not None and (up := number(row, y)) is not None
    ]


def _frontier(panel: Panel, material: Material) -> Shown:
    measured = _in_summary(panel.names, material.summaries)
    seeds = "Intervals are over seeds and prompts." if material.table.repeated else ""
    svg = frontier_figure(material.arms, material.summary, material.order)
    return Shown(panel, measured, Markup(svg), _told(panel, f"{_FRONTIER} {seeds}".rstrip()))


def _proxy(panel: Panel, material: Material) -> Shown:
    assert panel.x is not None and panel.judge is not None and panel.judge_x is not None
    histories, some = material.few
    svg = curves.proxy_vs_judge(
        histories,
        _judged(panel, material),
        title="Proxy reward and judge over the square root of KL",
        x=panel.x,
        proxies=panel.metrics,
        judge=panel.judge,
        arms=material.order,
    )
    measured = {
        *_in_history((panel.x, *panel.metrics), material.histories),
        *_in_summary((panel.judge, panel.judge_x), (one for own in material.judged.values() for one in own)),
    }
    seeds = "Seeds have a curve each."
    more = f" Curves: {some[0].lower()}{some[1:]}" if some else ""
    text = (f"{_PROXY} {seeds}" if material.table.repeated else _PROXY) + more
    found = tuple(name for name in panel.names if name in measured)
    return Shown(panel, found, Markup(svg), _told(panel, text))


def _judged(panel: Panel, material: Material) -> list[curves.JudgedPoint]:
    """The judged policies: at the KL of the evaluation, else at the last one of RL."""
    points = []
    for label, summary in ((label, one) for label, own in material.judged.items() for one in own):
        kl, rate = (
            number(summary, str(panel.judge_x), str(panel.x)),
            number(summary, str(panel.judge)),
        )
        if kl is not None and rate is not None:
            ends = (number(summary, f"{panel.judge}_ci_{end}") for end in ("low", "high"))
            proxy = number(summary, panel.metrics[0])
            points.append(curves.JudgedPoint(label, max(kl, 0.0), proxy, rate, *ends))
    return points


def _curves(panel: Panel, material: Material) -> Shown:
    """Learning curves of metrics with more than one value, or metrics over another one."""
    histories, some = material.few
    arms = material.order
    if panel.x is not None:
        title = panel.title or metric_label(panel.x)
        svg = curves.over_metric(histories, panel.x, panel.metrics, title=title, arms=arms)
        told = _told(panel, some) if some else panel.note
        return Shown(panel, _in_history(panel.names, histories), Markup(svg), told)
    measured = _in_history(panel.metrics, histories, least=2)
    title = f"{panel.title}: learning curves" if panel.title else "Learning curves"
    svg = curves.learning_curves(histories, measured, title=title, arms=arms)
    seeds = any(len(curves.by_seed(rows)) > 1 for rows in histories.values())
    longest = max((len(rows) for own in histories.values() for rows in curves.by_seed(own)), default=0)
    parts = (some, _BAND if seeds else "", _THINNED if longest > curves.MOST_POINTS else "")
    return Shown(panel, measured, Markup(svg), " ".join(filter(None, (panel.note, *parts))))


def _curve(panel: Panel, material: Material) -> Shown:
    bars = f"Bars are 95% intervals{_over(material)}."
    return Shown(
        panel,
        (),
        Markup(curve_figure(material.points)),
        _told(panel, bars),
        points=curve_table(material.points),
    )


def _told(panel: Panel, text: str) -> str:
    return f"{panel.note} {text}" if panel.note else text


_DRAW: Mapping[str, Callable[[Panel, Material], Shown]] = {
    "arms": _arms,
    "table": _table,
    "forest": _forest,
    "parallel": _parallel,
    "scatter": _scatter,
    "frontier": _frontier,
    "proxy_vs_judge": _proxy,
    "curves": _curves,
    "curve": _curve,
}
