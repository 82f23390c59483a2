"""The tables of a comparison as Markdown, for pasting into notes, and long ones as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from rlaif.report.comparison import ArmsTable, recorded_arms, with_range
from rlaif.report.curve import curve_table
from rlaif.stages.eval.judge_tables import self_preference_grid
from rlaif.study.diagnosis_table import HEADS, diagnosis_table
from rlaif.tracking.runs import Row, RunRecord
from rlaif.tracking.text import metric_label


def comparison_markdown(run: RunRecord) -> str:
    """What `stage=compare` found: diagnosis, arms, head-to-heads and the points of the curve."""
    table = recorded_arms([run])
    parts = [f"# {run.name or run.id}"]
    diagnosis = diagnosis_table(run.table("diagnosis"))
    if diagnosis:
        checks = markdown_table(HEADS, diagnosis.rows)
        parts += ["## Diagnosis", diagnosis.verdict.sentence, checks, "## Arms"]
    parts += [f"Control {control.arm}: {control.sentence}." for control in table.controls]
    parts.append(arms_markdown(table))
    if table.caption:
        parts.append(table.caption)
    if table.verdicts:
        parts.append(_verdicts(table))
    preferred = self_preference_grid(run.table("self_preference"))
    if preferred:
        cells = [[with_range(value, below) for value, below in row] for row in preferred.rows]
        parts += [f"## {preferred.title}", markdown_table(preferred.heads, cells), preferred.caption]
    curve = curve_table(run.table("curve"))
    if curve:
        parts += ["## Curve", markdown_table(curve.heads, curve.rows)]
    return "\n\n".join(parts) + "\n"


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A pipe table; pipes and line breaks in its cells are escaped."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)


def csv_text(rows: Sequence[Row]) -> str:
    """Rows as CSV with the columns of the first one; numbers have six digits."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), extrasaction="ignore", restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
        for row in rows
    )
    return stream.getvalue()


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def arms_markdown(table: ArmsTable) -> str:
    """The table of arms with intervals, the best arm in bold."""
    heads = ["arm", *(["seeds"] if table.repeated else []), *map(metric_label, table.metrics)]
    rows = []
    for row in table.arms:
        name = f"**{row.arm}**" if row.best else row.arm
        cells = [with_range(value, shown) for value, shown in row.cells]
        tested = [row.p_holm, row.group] if table.tests else []
        rows.append([name, *([row.seeds] if table.repeated else []), *cells, *tested])
    return markdown_table([*heads, *(["Holm p", "group"] if table.tests else [])], rows)


def _verdicts(table: ArmsTable) -> str:
    heads = ("first", "second", "win rate", "at equal length", "n", "Holm p", "verdict")
    rows = [
        (duel.first, duel.second, duel.rate, duel.at_equal_length, duel.n, duel.p_holm, duel.outcome)
        for duel in table.verdicts
    ]
    return markdown_table(heads, rows)
