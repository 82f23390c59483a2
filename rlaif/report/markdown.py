"""The tables of a comparison as Markdown, to be pasted into notes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rlaif.report.comparison import ArmsTable, arms_table
from rlaif.report.curve import curve_table
from rlaif.study.diagnosis_table import HEADS, diagnosis_table
from rlaif.tracking.runs import RunRecord
from rlaif.tracking.text import metric_label


def comparison_markdown(run: RunRecord) -> str:
    """What `stage=compare` found: diagnosis, arms, head-to-heads and the points of the curve."""
    arms = {str(row["arm"]): row for row in run.table("arms")}
    table = arms_table(arms, run.table("verdicts"), run.table("arm_tests"), run.table("controls"))
    parts = [f"# {run.name or run.id}"]
    diagnosis = diagnosis_table(run.table("diagnosis"))
    if diagnosis:
        parts += [
            "## Diagnosis",
            diagnosis.verdict.sentence,
            markdown_table(HEADS, diagnosis.rows),
            "## Arms",
        ]
    parts += [f"Control {control.arm}: {control.sentence}." for control in table.controls]
    parts.append(_arms(table))
    if table.caption:
        parts.append(table.caption)
    if table.verdicts:
        parts.append(_verdicts(table))
    curve = curve_table(run.table("curve"))
    if curve:
        parts += ["## Curve", markdown_table(curve.heads, curve.rows)]
    return "\n\n".join(parts) + "\n"


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A pipe table; a pipe or line break within a cell does not break it."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def _arms(table: ArmsTable) -> str:
    heads = ["arm", *(["seeds"] if table.repeated else []), *map(metric_label, table.metrics)]
    rows = []
    for row in table.arms:
        name = f"**{row.arm}**" if row.best else row.arm
        cells = [f"{value} ({shown})" if shown else value for value, shown in row.cells]
        tested = [row.p_holm, row.group] if table.tests else []
        rows.append([name, *([row.seeds] if table.repeated else []), *cells, *tested])
    return markdown_table([*heads, *(["Holm p", "group"] if table.tests else [])], rows)


def _verdicts(table: ArmsTable) -> str:
    heads = ("first", "second", "win rate", "at equal length", "n", "Holm p", "verdict")
    rows = [
        (
            duel.first,
            duel.second,
            duel.rate,
            duel.at_equal_length,
            duel.n,
            duel.p_holm,
            "undecided" if duel.tied else f"{duel.winner} wins",
        )
        for duel in table.verdicts
    ]
    return markdown_table(heads, rows)
