"""Lines of tables as text: a metric with its interval, policy against baseline, rates by bin."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlaif.figures import plots
from rlaif.stats import Interval
from rlaif.tracking.runs import Row, RunRecord, Scalar, interval, number
from rlaif.tracking.text import EN_DASH, metric_range, metric_value, percent, plain, signed

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


Summary = Mapping[str, Scalar]
Sides = tuple[str, str]
ROUGE: Sides = ("eval/rouge_l_policy", "eval/rouge_l_baseline")
LENGTH: Sides = ("eval/length_policy", "eval/length_baseline")
COPY: Sides = ("eval/copy_rate_policy", "eval/copy_rate_baseline")
EOS: Sides = ("eval/eos_rate_policy", "eval/eos_rate_baseline")
EMPTY: Sides = ("eval/empty_rate_policy", "eval/empty_rate_baseline")
REWARD: Sides = ("eval/reward_policy", "eval/reward_baseline")

EMPTY_LOSES = "they lose to any text"


@dataclass(frozen=True)
class ResultRow:
    """One line of the result table. `metric` is the summary's name, for the glossary."""

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


def single_row(summary: Summary, stage: str, name: str, label: str, note: str = "") -> list[ResultRow]:
    value = number(summary, name)
    if value is None:
        return []
    found = interval(summary, name)
    shown = metric_range(name, found.low, found.high) if found else ""
    return [ResultRow(stage, label, name, metric_value(name, value), shown, note)]


def versus_rows(summary: Summary, label: str, names: Sides, note: str = "") -> list[ResultRow]:
    policy, baseline = both_sides(summary, names)
    if policy is None:
        return []
    name = names[0].removesuffix("_policy")
    value = metric_value(name, policy)
    if baseline is None:
        return [ResultRow("Evaluation", label, names[0], value, note=note)]
    text = f"{value} vs {metric_value(name, baseline)}"
    gain = interval(summary, f"{name}_gain")
    if gain is None:
        return [ResultRow("Evaluation", label, names[0], text, note=note or "policy vs baseline")]
    shown = f"{signed(gain.low)} to {signed(gain.high)}"
    told = f"policy vs baseline: {signed(gain.estimate)} with its interval"
    return [ResultRow("Evaluation", label, names[0], text, shown, f"{told}; {note}" if note else told)]


def row_if_any(summary: Summary, name: str, label: str, note: str, stage: str = "Labels") -> list[ResultRow]:
    """A line for what is worth one only where it happened."""
    return single_row(summary, stage, name, label, note) if number(summary, name) else []
