"""What the sections on labeler and reward model share: facts with notes, and rates by bin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlaif.reports import plots
from rlaif.reports.runs import Row, RunRecord, Scalar, interval, number
from rlaif.reports.summary import ResultRow
from rlaif.reports.text import EN_DASH, metric_range, metric_value, percent, plain

Fact = tuple[str, str, str]  # group, metric, label


def latest_table(runs: Sequence[RunRecord], name: str) -> list[Row]:
    """The table of the last run that has it: later stages of a path repeat the tables before them."""
    return next((rows for run in reversed(runs) if (rows := run.table(name))), [])


def fact_rows(
    facts: Sequence[Fact], summary: Mapping[str, Scalar], notes: Mapping[str, str]
) -> tuple[ResultRow, ...]:
    """A line for each fact that was measured, with its interval and note where there are any."""
    rows = []
    for group, name, label in facts:
        value, found = number(summary, name), interval(summary, name)
        if value is not None:
            shown = metric_range(name, found.low, found.high) if found else ""
            rows.append(ResultRow(group, label, name, metric_value(name, value), shown, notes.get(name, "")))
    return tuple(rows)


def between(row: Row) -> str:
    """The bin's edges."""
    return f"{row['low']:g}{EN_DASH}{row['high']:g}"


def rate_texts(row: Row, count: str, rate: str) -> tuple[str, str, str]:
    """How many items the bin has, its rate in percent and the rate's interval (empty without one)."""
    found = interval(row, rate)
    shown = f"{100 * found.low:.1f}{EN_DASH}{100 * found.high:.1f}%" if found else ""
    return plain(number(row, count)), percent(number(row, rate)), shown


def by_confidence(rows: Sequence[Row], rates: Mapping[str, str]) -> str:
    """The plot of rates over bins of |p - 0.5|; `rates`: the line's title to its column."""
    labels = [between(row) for row in rows]
    lines = {
        title: [
            plots.ForestRow(label, value, number(row, f"{name}_ci_low"), number(row, f"{name}_ci_high"))
            for label, row in zip(labels, rows, strict=True)
            if (value := number(row, name)) is not None
        ]
        for title, name in rates.items()
    }
    return plots.rates_by_bin(labels, lines, title="By confidence", axis_label="|p − 0.5|")
