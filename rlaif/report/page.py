"""One self-contained HTML file about run directories: verdict, tables, figures, samples, lineage, cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rlaif.errors import UserError
from rlaif.figures import curves, plots
from rlaif.figures.rows import latest_table, rate_texts
from rlaif.io import write_text
from rlaif.report.comparison import ArmsTable, arms_verdict, recorded_arms, sweep_table
from rlaif.report.curve import CurveTable, curve_figure, curve_table
from rlaif.report.data import DataSection, data_section
from rlaif.report.frontier import frontier_figure
from rlaif.report.lineage import NODE_HEIGHT, NODE_WIDTH, Graph, lineage_graph
from rlaif.report.summary import merge_runs, proxy_and_judge, result_rows
from rlaif.report.sweep.table import SweepTable
from rlaif.report.verdict import verdict
from rlaif.stages.common.measures.markers import MARKERS
from rlaif.stages.eval.judge_tables import Grid, judge_grids, self_preference_grid
from rlaif.stages.label.section import LabelerSection, labeler_section
from rlaif.stages.rm.section import RewardModelSection, reward_model_section
from rlaif.study.claims.measure import CLAIM, claim_verdict
from rlaif.study.diagnosis_table import DiagnosisTable, diagnosis_table
from rlaif.study.labelers import LabelersTable, labelers_of, labelers_table
from rlaif.study.sweeps import Sweep, sweep
from rlaif.study.verdict import Verdict
from rlaif.tracking import text
from rlaif.tracking.glossary import describe, groups, names, table
from rlaif.tracking.runs import Row, RunRecord, Scalar, number, series

UNTESTED = Verdict("The arms are shown side by side: none was tested against another.", "none")
_OPEN_SAMPLES, _MAX_SAMPLES, _MAX_JUDGEMENTS, _MAX_CURVES, _MAX_COLUMNS = 2, 60, 12, 8, 6
_TRACKED = "Proxy and held-out measure on fixed prompts"


@dataclass(frozen=True)
class ReadingGroup:
    """Samples that one rule has chosen; `of` names the arm or the two policies of a comparison."""

    of: str
    rule: str
    why: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Content:
    """Everything that the template prints; figures are ready SVG, all else is escaped by the template."""

    title: str
    verdict: Verdict
    runs: Sequence[RunRecord]
    cards: Sequence[tuple[str, str, str]]
    results: Sequence[Any]
    sweep: bool
    arms: ArmsTable
    claim: Row | None
    diagnosis: DiagnosisTable | None
    curve: Markup
    curve_table: CurveTable | None
    forest: Markup
    frontier: Markup
    curves: Sequence[tuple[str, Markup]]
    proxy: Markup
    tracked: Markup
    data: DataSection | None
    labeler: LabelerSection | None
    labelers: LabelersTable | None
    reward_model: RewardModelSection | None
    by_length: Sequence[tuple[str, str, str, str]]
    judges: Sequence[Grid]
    self_preference: Grid | None
    samples: Mapping[str, Sequence[Row]]
    judgements: Sequence[Row]
    reading: Sequence[ReadingGroup]
    marks: Sequence[tuple[str, str]]
    lineage: Graph | None
    costs: Sequence[tuple[str, str]]
    alerts: Sequence[tuple[str, Row]]
    config_rows: Sequence[tuple[str, Sequence[str]]]
    config_heads: Sequence[str]
    versions: Sequence[tuple[str, str]]
    glossary: Mapping[str, str]
    jobs: SweepTable | None = None


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(text=text, node_width=NODE_WIDTH, node_height=NODE_HEIGHT)
    return environment.get_template("page.html.j2")


def render_report(
    runs: Sequence[RunRecord], output: Path, *, title: str, jobs: SweepTable | None = None
) -> Path:
    """Write the report on one path or on many arms to `output`, which is returned. `jobs`: those of a sweep.

    Runs of different stages are one path; otherwise they are arms to compare. Raises UserError without runs.
    """
    if not runs:
        raise UserError("report: no finished run was found; run a stage first, or widen the selection")
    write_text(output, _template().render(page=replace(_content(runs, title), jobs=jobs)))
    return output


def _content(runs: Sequence[RunRecord], title: str) -> Content:
    single = len({run.stage for run in runs}) == len(runs)
    found = None if single else _sweep(runs)
    shown = list(runs) if found is None else list(next(iter(found.arms.values()))[:1])
    points = latest_table(runs, "curve")
    arms = sweep_table(found) if found else recorded_arms(runs)
    raw = found.rows if found else latest_table(runs, "arms")
    summary = merge_runs(shown)
    # A comparison logs one arm after another, which is not the history of anything.
    history = tuple(row for run in shown if not run.table("arms") for row in run.history)
    config = shown[-1].config
    groups: Mapping[str, Sequence[RunRecord]] = {"": list(runs)} if found is None else found.arms
    histories, judged = _by_arm(runs) if single and arms else _by_group(groups, single)
    heads, rows = _config(runs, groups, single)
    diagnosis = diagnosis_table(latest_table(runs, "diagnosis"))
    first = verdict(summary, config)
    claim = next(iter(latest_table(runs, CLAIM)), None)
    if single and claim:
        first = replace(claim_verdict(claim), warnings=first.warnings)
    elif single and diagnosis:
        first = diagnosis.verdict
    elif arms or not single:
        first = replace(arms_verdict(arms) or UNTESTED, warnings=first.warnings)
    return Content(
        title=title,
        verdict=first,
        runs=runs,
        cards=proxy_and_judge(summary, history),
        results=result_rows(summary, history),
        sweep=found is not None,
        arms=arms,
        claim=claim,
        diagnosis=diagnosis,
        curve=Markup(curve_figure(points)),
        curve_table=curve_table(points),
        forest=Markup(_forest(arms, raw, summary)),
        frontier=Markup(frontier_figure(raw, summary)),
        curves=_curves(histories),
        proxy=Markup(_proxy(judged, histories)),
        tracked=Markup(curves.over_optimisation(histories, title=_TRACKED)),
        data=data_section(summary),
        labeler=labeler_section(shown, summary),
        labelers=labelers_table(*labelers_of(runs)),
        reward_model=reward_model_section(shown, summary),
        by_length=_by_length(shown),
        judges=judge_grids([latest_table(shown, name) for name in ("judges", "judge_agreement")]),
        self_preference=self_preference_grid(latest_table(runs, "self_preference")),
        samples=_samples(shown),
        judgements=[row for run in shown for row in run.table("judgements")][:_MAX_JUDGEMENTS],
        reading=_reading(shown),
        marks=list(MARKERS.items()),
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
"""Histories, and summaries of judged policies, by label."""


def _by_group(groups: Mapping[str, Sequence[RunRecord]], single: bool) -> tuple[Histories, Judged]:
    """Each group's history: that of a single path's runs one after another, else that of the group's first run."""
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
    values = {
        name: {number(run.summary, name) for run in runs}
        for name in (*names("page_ranked_by"), *names("page_ablation"))
    }
    main = next((name for name in names("page_ranked_by") if values[name] != {None}), None)
    if main is None:
        return None
    differing = [name for name in names("page_ablation") if len(values[name]) > 1 and name != main]
    return sweep(runs, [main, *differing][:_MAX_COLUMNS])


def _forest(arms: ArmsTable, rows: Sequence[Row], summary: Mapping[str, Scalar]) -> str:
    """The main metric by arm; without arms the path's own rates."""
    if arms.main:
        marks = {row.arm: "best" if row.best else "tied" if row.tied else "" for row in arms.arms}
        found = [_forest_row(str(row["arm"]), row, arms.main, marks[str(row["arm"])]) for row in rows]
        return _forest_svg([row for row in found if row], arms.main, "Main metric by arm")
    rates = [_forest_row(text.metric_label(name), summary, name, "best") for name in names("page_rates")]
    known = [row for row in rates if row and row.low is not None]
    return _forest_svg(known, "eval/win_rate", "Rates with 95% intervals")


def _forest_row(label: str, values: Row, name: str, mark: str) -> plots.ForestRow | None:
    value, low, high = (number(values, f"{name}{end}") for end in ("", "_ci_low", "_ci_high"))
    return None if value is None else plots.ForestRow(label, value, low, high, mark)


def _forest_svg(rows: Sequence[Any], name: str, title: str) -> str:
    if not rows:
        return ""
    metric, share = describe(name), text.is_percent(name)
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
        shown = longer[:_MAX_CURVES]
        if svg := curves.learning_curves(histories, shown, title=f"{title}: learning curves"):
            found.append((title, Markup(svg)))
    return found


def _proxy(judged: Judged, histories: Histories) -> str:
    points = []
    for label, summary in ((label, one) for label, own in judged.items() for one in own):
        kl, rate = number(summary, "eval/kl", "rl/kl"), number(summary, "eval/win_rate")
        if kl is not None and rate is not None:
            ends = (number(summary, f"eval/win_rate_ci_{end}") for end in ("low", "high"))
            points.append(curves.JudgedPoint(label, max(kl, 0.0), number(summary, "rl/reward"), rate, *ends))
    return curves.proxy_vs_judge(histories, points, title="Proxy reward and judge over the square root of KL")


def _by_length(runs: Sequence[RunRecord]) -> list[tuple[str, str, str, str]]:
    """How the policy's response compares in length, the number of comparisons, the win rate and its interval."""
    rows = latest_table(runs, "win_rate_by_length")
    return [(str(row["bin"]), *rate_texts(row, "n", "win_rate")) for row in rows]


def _samples(runs: Sequence[RunRecord]) -> dict[str, list[Row]]:
    """`first`: a few wins, losses and ties; `rest`: the others, up to a bound."""
    rows = [row for run in runs for row in run.table("samples") if {"policy", "policy_response"} & set(row)]
    first: list[Row] = []
    for outcome in ("win", "loss", "tie"):
        first += [row for row in rows if row.get("outcome") == outcome][:_OPEN_SAMPLES]
    first = first or rows[:_OPEN_SAMPLES]
    chosen = set(map(id, first))
    rest = [row for row in rows if id(row) not in chosen]
    return {"first": first, "rest": rest[: _MAX_SAMPLES - len(first)]}


def _reading(runs: Sequence[RunRecord]) -> list[ReadingGroup]:
    """The samples that the runs' rules have chosen, by rule."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for name in ("reading_arms", "reading_policy", "reading_labels"):
        for row in latest_table(runs, name):
            groups.setdefault((str(row.get("of", "")), str(row["rule"]), str(row["why"])), []).append(row)
    return [ReadingGroup(*key, rows) for key, rows in groups.items()]


def _costs(runs: Sequence[RunRecord], summary: Mapping[str, Scalar]) -> list[tuple[str, str]]:
    """The time and disk space of the artifacts that these runs built themselves, and the labeler's tokens."""
    rows = {row.digest: row for run in runs for row in run.lineage if not row.reused}
    seconds = math.fsum(row.seconds or 0 for row in rows.values())
    stored = math.fsum(row.bytes or 0 for row in rows.values())
    costs = [("Built here", f"{len(rows)} artifacts in {text.duration(seconds)}")] if rows else []
    if stored:
        costs.append(("Stored", text.size(stored)))
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
    keys = sorted({key for one in flat for key in one if not key.startswith(("paths", "hydra"))})
    rows = [(key, [one.get(key, text.MISSING) for one in flat]) for key in keys]
    if not single:
        rows = [(key, values) for key, values in rows if len(set(values)) > 1]
    return list(chosen), rows


def _versions(runs: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Versions; all of them if the runs disagree."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for key, value in _flatten(run.versions).items():
            if value not in found.setdefault(key, []):
                found[key].append(value)
    return [(key, ", ".join(values)) for key, values in sorted(found.items())]


def glossary(names: Iterable[str]) -> dict[str, str]:
    """Metric name to formula, unit and range; names that the glossary does not know are left out."""
    return {
        name: f"{entry.formula}; unit: {entry.unit}; range: {entry.range}"
        for name in names
        if (entry := describe(name))
    }
