"""One self-contained HTML file from run directories: verdict, tables, figures, samples, lineage, cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rlaif.errors import UserError
from rlaif.figures import curves, plots
from rlaif.figures.rows import latest_table
from rlaif.io import write_text
from rlaif.report.comparison import ArmsTable, arms_table, arms_verdict, sweep_table
from rlaif.report.curve import CurveTable, curve_figure, curve_table
from rlaif.report.data import DataSection, data_section
from rlaif.report.lineage import NODE_HEIGHT, NODE_WIDTH, Graph, lineage_graph
from rlaif.report.summary import merge_runs, proxy_and_judge, result_rows
from rlaif.report.verdict import verdict
from rlaif.stages.label.section import LabelerSection, labeler_section
from rlaif.stages.rm.section import RewardModelSection, reward_model_section
from rlaif.study.diagnosis_table import DiagnosisTable, diagnosis_table
from rlaif.study.labelers import LabelersTable, labelers_of, labelers_table
from rlaif.study.sweeps import Sweep, sweep
from rlaif.study.verdict import Verdict
from rlaif.tracking import text
from rlaif.tracking.glossary import describe, groups, names, table
from rlaif.tracking.runs import Row, RunRecord, Scalar, interval, number, series

UNTESTED = Verdict("The arms stand side by side: none was tested against another.", "none")
_OPEN_SAMPLES, _MAX_SAMPLES, _MAX_JUDGEMENTS, _MAX_CURVES, _MAX_COLUMNS = 2, 60, 12, 8, 6
_TRACKED = "Proxy and held-out measure on fixed prompts"


@dataclass(frozen=True)
class Content:
    """Everything that the template prints; figures are ready SVG, all else is escaped there."""

    title: str
    verdict: Verdict
    runs: Sequence[RunRecord]
    cards: Sequence[tuple[str, str, str]]
    results: Sequence[Any]
    sweep: bool
    arms: ArmsTable | None
    diagnosis: DiagnosisTable | None
    curve: Markup
    curve_table: CurveTable | None
    forest: Markup
    curves: Sequence[tuple[str, Markup]]
    proxy: Markup
    tracked: Markup
    data: DataSection | None
    labeler: LabelerSection | None
    labelers: LabelersTable | None
    reward_model: RewardModelSection | None
    samples: Mapping[str, Sequence[Row]]
    judgements: Sequence[Row]
    lineage: Graph | None
    costs: Sequence[tuple[str, str]]
    alerts: Sequence[tuple[str, Row]]
    config_rows: Sequence[tuple[str, Sequence[str]]]
    config_heads: Sequence[str]
    versions: Sequence[tuple[str, str]]
    glossary: Mapping[str, str]


def render_report(runs: Sequence[RunRecord], output: Path, *, title: str) -> Path:
    """Write the report of one path or of many arms to `output` and return it.

    Runs whose stages all differ are the stages of one path; otherwise they are arms to compare.
    Raises UserError without runs.
    """
    if not runs:
        raise UserError("report: no finished run was found; run a stage first, or widen the selection")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(text=text, node_width=NODE_WIDTH, node_height=NODE_HEIGHT)
    write_text(output, environment.get_template("page.html.j2").render(page=_content(runs, title)))
    return output


def _content(runs: Sequence[RunRecord], title: str) -> Content:
    single = len({run.stage for run in runs}) == len(runs)
    found = None if single else _sweep(runs)
    shown = list(runs) if found is None else list(next(iter(found.arms.values()))[:1])
    points = latest_table(runs, "curve")
    arms, raw = (sweep_table(found), found.rows) if found else (_arms(runs), latest_table(runs, "arms"))
    # What a comparison logs is one arm after the other: no history of anything.
    summary = merge_runs(shown)
    history = tuple(row for run in shown if not run.table("arms") for row in run.history)
    config = shown[-1].config
    groups: Mapping[str, Sequence[RunRecord]] = {"": list(runs)} if found is None else found.arms
    histories, judged = _by_arm(runs) if single and arms else _by_group(groups, single)
    heads, rows = _config(runs, groups, single)
    diagnosis = diagnosis_table(latest_table(runs, "diagnosis"))
    told = verdict(summary, config)
    if single and diagnosis:
        told = diagnosis.verdict
    elif arms or not single:
        compared = arms_verdict(arms) if arms else None
        told = replace(compared or UNTESTED, warnings=told.warnings)
    return Content(
        title=title,
        verdict=told,
        runs=runs,
        cards=proxy_and_judge(summary, history),
        results=result_rows(summary, history),
        sweep=found is not None,
        arms=arms,
        diagnosis=diagnosis,
        curve=Markup(curve_figure(points)),
        curve_table=curve_table(points),
        forest=Markup(_forest(arms, raw, summary)),
        curves=_curves(histories),
        proxy=Markup(_proxy(judged, histories)),
        tracked=Markup(curves.over_optimisation(histories, title=_TRACKED)),
        data=data_section(summary),
        labeler=labeler_section(shown, summary),
        labelers=labelers_table(*labelers_of(runs)),
        reward_model=reward_model_section(shown, summary),
        samples=_samples(shown),
        judgements=[row for run in shown for row in run.table("judgements")][:_MAX_JUDGEMENTS],
        lineage=lineage_graph(runs, shown),
        costs=_costs(runs, summary),
        alerts=[(run.id, alert) for run in runs for alert in run.alerts],
        config_rows=rows,
        config_heads=heads,
        versions=_versions(runs),
        glossary=glossary({name for run in runs for name in run.summary}),
    )


Histories = dict[str, tuple[Row, ...]]
Judged = dict[str, list[Mapping[str, Any]]]
"""Histories, and summaries of what was judged, by label."""


def _by_group(groups: Mapping[str, Sequence[RunRecord]], single: bool) -> tuple[Histories, Judged]:
    """Each group's history: of a job's runs one after the other, else of the group's first run."""
    shown = {label: group if single else group[:1] for label, group in groups.items()}
    histories = {label: tuple(row for run in runs for row in run.history) for label, runs in shown.items()}
    judged: Judged = {
        label: [merge_runs(group)] if single else [run.summary for run in group]
        for label, group in groups.items()
    }
    return histories, judged


def _by_arm(runs: Sequence[RunRecord]) -> tuple[Histories, Judged]:
    histories: dict[str, list[Row]] = {}
    for row in latest_table(runs, "arm_histories"):
        histories.setdefault(str(row["arm"]), []).append(row)
    judged: Judged = {str(row["arm"]): [row] for row in latest_table(runs, "arms")}
    return {label: tuple(rows) for label, rows in histories.items()}, judged


def _sweep(runs: Sequence[RunRecord]) -> Sweep | None:
    """The runs as arms, ranked by the first metric that one of them has; None without any."""
    present = [
        name for name in names("page_ablation") if len({number(run.summary, name) for run in runs}) > 1
    ]
    main = next(
        (n for n in names("page_ranked_by") if any(number(run.summary, n) is not None for run in runs)), None
    )
    if main is None:
        return None
    return sweep(runs, [main, *(name for name in present if name != main)][:_MAX_COLUMNS])


def _forest(arms: ArmsTable | None, rows: Sequence[Row], summary: Mapping[str, Scalar]) -> str:
    """The main metric by arm; without arms the path's own rates."""
    if arms is not None and arms.main:
        marks = {row.arm: "best" if row.best else "tied" if row.tied else "" for row in arms.arms}
        found = [_forest_row(str(row["arm"]), row, arms.main, marks[str(row["arm"])]) for row in rows]
        return _forest_svg([row for row in found if row], arms.main, "Main metric by arm")
    rates = [_forest_row(text.metric_label(name), summary, name, "best") for name in names("page_rates")]
    known = [row for row in rates if row and row.low is not None]
    return _forest_svg(known, "eval/win_rate", "Rates with 95% intervals")


def _forest_row(label: str, values: Row, name: str, mark: str) -> plots.ForestRow | None:
    value, found = number(values, name), interval(values, name)
    if value is None:
        return None
    low, high = (found.low, found.high) if found else (None, None)
    return plots.ForestRow(label, value, low, high, mark)


def _forest_svg(rows: Sequence[Any], name: str, title: str) -> str:
    if not rows:
        return ""
    share = text.is_percent(name)
    metric = describe(name)
    neutral = None if metric is None else metric.neutral
    label = text.metric_label(name) if title.startswith("Main") else "50% is chance, or no difference"
    return plots.forest_plot(rows, title=title, reference=neutral, percent=share, axis_label=label, width=8.4)


def _curves(histories: Mapping[str, Sequence[Row]]) -> list[tuple[str, Markup]]:
    found = []
    for title in groups("curves"):
        longer = [
            name
            for name in names("curves", title)
            if any(len(series(rows, name)[0]) > 1 for rows in histories.values())
        ]
        svg = curves.learning_curves(histories, longer[:_MAX_CURVES], title=f"{title}: learning curves")
        if svg:
            found.append((title, Markup(svg)))
    return found


def _proxy(judged: Judged, histories: Histories) -> str:
    points = []
    for label, summaries in judged.items():
        for summary in summaries:
            kl, win = number(summary, "eval/kl", "rl/kl"), interval(summary, "eval/win_rate")
            if kl is None or number(summary, "eval/win_rate") is None:
                continue
            reward, rate = number(summary, "rl/reward"), number(summary, "eval/win_rate")
            low, high = (win.low, win.high) if win else (None, None)
            points.append(curves.JudgedPoint(label, max(kl, 0.0), reward, rate, low, high))
    return curves.proxy_vs_judge(histories, points, title="Proxy reward and judge over the square root of KL")


def _samples(runs: Sequence[RunRecord]) -> dict[str, list[Row]]:
    """`first`: a few wins, losses and ties; `rest`: the others, up to a bound."""
    rows = [
        row for run in runs for row in run.table("samples") if "policy" in row or "policy_response" in row
    ]
    first: list[Row] = []
    for outcome in ("win", "loss", "tie"):
        first += [row for row in rows if row.get("outcome") == outcome][:_OPEN_SAMPLES]
    if not first:
        first = rows[:_OPEN_SAMPLES]
    chosen = {id(row) for row in first}
    rest = [row for row in rows if id(row) not in chosen]
    return {"first": first, "rest": rest[: _MAX_SAMPLES - len(first)]}


def _costs(runs: Sequence[RunRecord], summary: Mapping[str, Scalar]) -> list[tuple[str, str]]:
    """Work of the artifacts that these runs built themselves, and the labeler's tokens."""
    rows = {row.digest: row for run in runs for row in run.lineage if not row.reused}
    built, stored = [row.seconds for row in rows.values()], [row.bytes for row in rows.values()]
    costs = (
        [("Built here", f"{len(rows)} artifacts in {text.duration(math.fsum(filter(None, built)))}")]
        if rows
        else []
    )
    if any(stored):
        costs.append(("Stored", text.size(math.fsum(filter(None, stored)))))
    for one in table("costs"):
        value = number(summary, one.name)
        if value is not None:
            costs.append((f"{one.group}: {one.label}", text.metric_value(one.name, value)))
    return costs


def _flatten(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        pairs = [_flatten(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items()]
        return {key: item for part in pairs for key, item in part.items()}
    return {prefix: str(value)} if prefix else {}


def _config(
    runs: Sequence[RunRecord], groups: Mapping[str, Sequence[RunRecord]], single: bool
) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Column heads and rows: the whole configuration of one path, or the keys that differ between arms."""
    chosen = {"value": runs[-1]} if single else {label: group[0] for label, group in groups.items()}
    flat = [_flatten(run.config) for run in chosen.values()]
    keys = [
        key
        for key in dict.fromkeys(key for one in flat for key in one)
        if not key.startswith(("paths", "hydra"))
    ]
    rows = [(key, [one.get(key, text.MISSING) for one in flat]) for key in sorted(keys)]
    if not single:
        rows = [(key, values) for key, values in rows if len(set(values)) > 1]
    return list(chosen), rows


def _versions(runs: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Versions; where the runs disagree, all of them."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for key, value in _flatten(run.versions).items():
            if value not in found.setdefault(key, []):
                found[key].append(value)
    return [(key, ", ".join(values)) for key, values in sorted(found.items())]


def _arms(runs: Sequence[RunRecord]) -> ArmsTable | None:
    """The tables of `stage=compare`, where a run has them."""
    arms = {str(row["arm"]): row for run in runs for row in run.table("arms") if "arm" in row}
    verdicts = [row for run in runs for row in run.table("verdicts")]
    if not arms and not verdicts:
        return None
    return arms_table(arms, verdicts, latest_table(runs, "arm_tests"), latest_table(runs, "controls"))


def glossary(names: Iterable[str]) -> dict[str, str]:
    """Metric name to formula, unit and range; names that the glossary does not know are left out."""
    found = {name: describe(name) for name in names}
    return {
        name: f"{entry.formula}; unit: {entry.unit}; range: {entry.range}"
        for name, entry in found.items()
        if entry
    }
