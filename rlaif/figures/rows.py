"""Lines of tables as text: metrics with their intervals, policy against baseline, rates by bin."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from rlaif.figures import plots
from rlaif.stats import Interval
from rlaif.tracking.glossary import Shown
from rlaif.tracking.runs import Row, RunRecord, Scalar, interval, number
from rlaif.tracking.text import EN_DASH, metric_range, metric_value, percent, plain, signed


def latest_table(runs: Sequence[RunRecord], name: str) -> list[Row]:
    """The table from the last run that has it: later stages of a path repeat earlier tables."""
    return next((rows for run in reversed(runs) if (rows := run.table(name))), [])


def between(row: Row) -> str:
    """The bin's edges."""
    return f"{row['low']:g}{EN_DASH}{row['high']:g}"


def rate_texts(row: Row, count: str, rate: str) -> tuple[str, str, str]:
    """How many items the bin has, its rate in percent and the rate's interval (empty without one)."""
    found = interval(row, rate)
    shown = f"{100 * found.low:.1f}{EN_DASH}{100 * found.high:.1f}%" if found else ""
    return plain(number(row, count)), percent(number(row, rate)), shown


def by_confidence(rows: Sequence[Row], rates: Mapping[str, str]) -> str:
    """The plot of rates over bins of |p - 0.5|; `rates`: each line's title and column."""
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


Summary = Mapping[str, Scalar]
Sides = tuple[str, str]
ROUGE: Sides = ("eval/rouge_l_policy", "eval/rouge_l_baseline")
LENGTH: Sides = ("eval/length_policy", "eval/length_baseline")
REWARD: Sides = ("eval/reward_policy", "eval/reward_baseline")


@dataclass(frozen=True)
class ResultRow:
    """One line of the result table. `metric` is its name in the summary, for the glossary."""

    stage: str
    label: str
    metric: str
    value: str
    interval: str = ""
    note: str = ""


def change_text(change: Interval) -> str:
    """A change with its interval, if it has one."""
    if math.isnan(change.low):
        return signed(change.estimate)
    return f"{signed(change.estimate)}, 95% interval {signed(change.low)} to {signed(change.high)}"


def both_sides(summary: Summary, names: Sides) -> tuple[float | None, float | None]:
    """A measure of the policy and of the baseline."""
    return number(summary, names[0]), number(summary, names[1])


def table_rows(
    shown: Iterable[Shown],
    summary: Summary,
    notes: Mapping[str, str],
    own: Mapping[str, tuple[str, str] | None] = MappingProxyType({}),
) -> list[ResultRow]:
    """One line per measured metric, in the table's order.

    `notes` replace those of the table. `own` are the value and note of lines that a stage writes itself, None for one
    that it leaves out.
    """
    rows: list[ResultRow | None] = []
    for one in shown:
        if one.name not in own:
            row = (_versus_row if one.versus else _row)(one, summary, notes.get(one.name, one.note))
            rows.append(row)
        elif written := own[one.name]:
            rows.append(ResultRow(one.group, one.label, one.name, written[0], note=written[1]))
    return [row for row in rows if row is not None]


def _row(shown: Shown, summary: Summary, note: str) -> ResultRow | None:
    value, name = number(summary, shown.name), shown.name
    if value is None or (shown.if_any and not value):
        return None
    found = interval(summary, name)
    bounds = metric_range(name, found.low, found.high) if found else ""
    return ResultRow(shown.group, shown.label, name, metric_value(name, value), bounds, note)


def _versus_row(shown: Shown, summary: Summary, note: str) -> ResultRow | None:
    base = shown.name.removesuffix("_policy")
    policy, baseline = both_sides(summary, (shown.name, f"{base}_baseline"))
    if policy is None or (shown.if_any and not (policy or baseline)):
        return None
    row = ResultRow(shown.group, shown.label, shown.name, metric_value(shown.name, policy), note=note)
    if baseline is None:
        return row
    row = replace(row, value=f"{row.value} vs {metric_value(shown.name, baseline)}")
    gain = interval(summary, f"{base}_gain")
    if gain is None:
        return replace(row, note=note or "policy vs baseline")
    words = f"policy vs baseline: {metric_value(f'{base}_gain', gain.estimate)} with its interval"
    bounds = metric_range(f"{base}_gain", gain.low, gain.high)
    return replace(row, interval=bounds, note=f"{words}; {note}" if note else words)
