"""One self-contained HTML file about run directories: verdict, tables, figures, samples, lineage, cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import jinja2

from rlaif.errors import UserError
from rlaif.figures.rows import latest_table, rate_texts
from rlaif.figures.svg import PALETTE, arm_key
from rlaif.io import write_text
from rlaif.report.comparison import ArmsTable, arms_verdict, recorded_arms, sweep_table
from rlaif.report.dashboard.layout import Layout, builtin_layout
from rlaif.report.dashboard.panels import Board, Material, draw
from rlaif.report.data import DataSection, data_section
from rlaif.report.lineage import NODE_HEIGHT, NODE_WIDTH, Graph, lineage_graph
from rlaif.report.markdown import csv_text
from rlaif.report.summary import merge_runs, proxy_and_judge, result_rows
from rlaif.report.sweep.table import SweepTable
from rlaif.report.verdict import verdict
from rlaif.report.web.assets import page_environment
from rlaif.stages.common.measures.markers import MARKERS
from rlaif.stages.eval.judge_tables import Grid, judge_grids, self_preference_grid
from rlaif.stages.label.section import LabelerSection, labeler_section
from rlaif.stages.rm.section import RewardModelSection, reward_model_section
from rlaif.study.claims.measure import CLAIM, claim_verdict
from rlaif.study.diagnosis_table import DiagnosisTable, diagnosis_table
from rlaif.study.labelers import LabelersTable, labelers_of, labelers_table, shown_pairs
from rlaif.study.sweeps import Sweep, sweep
from rlaif.study.verdict import Verdict
from rlaif.tracking import text
from rlaif.tracking.glossary import describe, names, table
from rlaif.tracking.runs import Row, RunRecord, Scalar, number

UNTESTED = Verdict("The arms are shown side by side: none was tested against another.", "none")
_OPEN_SAMPLES, _MAX_SAMPLES, _MAX_JUDGEMENTS, _CONFIG_COLUMNS = 2, 60, 12, 8


@dataclass(frozen=True)
class ReadingGroup:
    """Samples that one rule has chosen; `of` names the arm or the two policies of a comparison."""

    of: str
    rule: str
    why: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Content:
    """Everything that the template prints; figures are ready SVG, all else is escaped by the template.

    `beside`: tables too long for the page, which are written to files beside it, `file` and the table's name.
    """

    title: str
    file: str
    beside: Mapping[str, Sequence[Row]]
    board: Board
    verdict: Verdict
    runs: Sequence[RunRecord]
    cards: Sequence[tuple[str, str, str]]
    results: Sequence[Any]
    sweep: bool
    arms: ArmsTable
    arm_names: Sequence[str]
    claim: Row | None
    diagnosis: DiagnosisTable | None
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

    @property
    def arm_keys(self) -> list[tuple[str, str, str]]:
        """Each arm's mark in figures and tables, its name, and the name of its colour."""
        colours = chain((f"c{place}" for place in range(len(PALETTE))), repeat(""))
        return [(arm_key(name), name, colour) for name, colour in zip(self.arm_names, colours, strict=False)]


@cache
def _template() -> jinja2.Template:
    environment = page_environment()
    environment.globals.update(text=text, node_width=NODE_WIDTH, node_height=NODE_HEIGHT)
    environment.filters["arm_key"] = arm_key
    return environment.get_template("page.html.j2")


def render_report(
    runs: Sequence[RunRecord],
    output: Path,
    *,
    title: str,
    layout: Layout | None = None,
    jobs: SweepTable | None = None,
) -> Path:
    """Write the report on one path or on many arms to `output`, which is returned. `jobs`: those of a sweep.

    `layout` decides on its sections and panels; the default is conf/dashboard/ablation.yaml. Runs of different stages
    are one path; otherwise they are arms to compare. Raises UserError without runs.
    """
    if not runs:
        raise UserError("report: no finished run was found; run a stage first, or widen the selection")
    content = replace(page_content(runs, title, layout or builtin_layout(), output.stem), jobs=jobs)
    for name, rows in content.beside.items():
        write_text(output.with_name(f"{output.stem}_{name}.csv"), csv_text(rows))
    write_text(output, _template().render(page=content))
    return output


def page_content(runs: Sequence[RunRecord], title: str, layout: Layout, file: str = "report") -> Content:
    """What a page, or a W&B report, says of `runs`; `file` is the page's name without its ending."""
    single = len({run.stage for run in runs}) == len(runs)
    found = None if single else _sweep(runs)
    shown = list(runs) if found is None else list(next(iter(found.arms.values()))[:1])
    arms = sweep_table(found) if found else recorded_arms(runs)
    summary = merge_runs(shown)
    # A comparison logs one arm after another, which is not the history of anything.
    history = tuple(row for run in shown if not run.table("arms") for row in run.history)
    config = shown[-1].config
    groups: Mapping[str, Sequence[RunRecord]] = {"": list(runs)} if found is None else found.arms
    histories, judged = _by_arm(runs) if single and arms else _by_group(groups, single)
    heads, rows = _config(runs, groups, single)
    labelers, labeler_pairs = labelers_of(runs)
    tests = found.tests if found else latest_table(runs, "arm_tests")
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
        file=file,
        board=draw(layout, _material(runs, found, arms, summary, histories, judged)),
        verdict=first,
        runs=runs,
        cards=proxy_and_judge(summary, history),
        results=result_rows(summary, history),
        sweep=found is not None,
        arms=arms,
        arm_names=[row.arm for row in arms.arms],
        beside={
            name: all_pairs
            for name, all_pairs in (("pairs", tests), ("labeler_pairs", labeler_pairs))
            if len(shown_pairs(all_pairs)) < len(all_pairs)
        },
        claim=claim,
        diagnosis=diagnosis,
        data=data_section(summary),
        labeler=labeler_section(shown, summary),
        labelers=labelers_table(labelers, labeler_pairs),
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


def _material(
    runs: Sequence[RunRecord],
    found: Sweep | None,
    arms: ArmsTable,
    summary: Mapping[str, Scalar],
    histories: Histories,
    judged: Judged,
) -> Material:
    def table_of(columns: Sequence[str]) -> ArmsTable:
        return recorded_arms(runs, columns) if found is None else sweep_table(found, columns)

    rows = found.rows if found else latest_table(runs, "arms")
    return Material(rows, summary, histories, judged, latest_table(runs, "curve"), arms, table_of)


Histories = dict[str, tuple[Row, ...]]
Judged = dict[str, list[Mapping[str, Any]]]
"""Histories, and summaries of judged policies, by label."""


def _by_group(groups: Mapping[str, Sequence[RunRecord]], single: bool) -> tuple[Histories, Judged]:
    """Each group's history: that of a single path's runs one after another, else those of its runs, by `seed`."""
    histories = {
        label: tuple(
            row if single else {**row, "seed": place}
            for place, run in enumerate(group)
            for row in run.history
        )
        for label, group in groups.items()
    }
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
    ranking = names("page_ranked_by")
    main = next(
        (name for name in ranking if any(number(run.summary, name) is not None for run in runs)), None
    )
    return None if main is None else sweep(runs, [main])


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
    """Column heads and rows: the whole configuration of one path, or the keys that differ between arms.

    Many arms are rows, and their keys columns.
    """
    chosen = {"value": runs[-1]} if single else {label: group[0] for label, group in groups.items()}
    flat = [_flatten(run.config) for run in chosen.values()]
    keys = sorted({key for one in flat for key in one if not key.startswith(("paths", "hydra", "dashboard"))})
    rows = [(key, [one.get(key, text.MISSING) for one in flat]) for key in keys]
    if not single:
        rows = [(key, values) for key, values in rows if len(set(values)) > 1]
    if len(chosen) <= _CONFIG_COLUMNS or not rows:
        return ["Key", *chosen], rows
    columns = zip(*(values for _, values in rows), strict=True)
    return ["Arm", *(key for key, _ in rows)], list(zip(chosen, map(list, columns), strict=True))


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
