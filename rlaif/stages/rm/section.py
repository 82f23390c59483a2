"""What the report says about a reward model: accuracy, length, calibration, disagreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from rlaif.figures import plots
from rlaif.figures.rows import (
    ResultRow,
    Summary,
    between,
    by_confidence,
    latest_table,
    rate_texts,
    table_rows,
)
from rlaif.tracking.glossary import table
from rlaif.tracking.runs import Row, RunRecord, number
from rlaif.tracking.text import p_text, plain

_HALVES = {"low": "agree more", "high": "agree less"}


@dataclass(frozen=True)
class RewardBin:
    """One bin in text: accuracy against the model's labels, and against gold."""

    name: str
    n: str
    accuracy: str
    accuracy_range: str
    gold_n: str
    gold: str
    gold_range: str


@dataclass(frozen=True)
class BinTable:
    """Accuracy by bin; `gold` says whether any bin has gold pairs."""

    title: str
    head: str
    caption: str
    rows: tuple[RewardBin, ...]
    gold: bool


@dataclass(frozen=True)
class RewardModelSection:
    """What the page shows of a reward model. `facts` are grouped by their `stage`; figures have captions."""

    facts: tuple[ResultRow, ...]
    tables: tuple[BinTable, ...]
    figures: tuple[tuple[Markup, str], ...]


def reward_model_section(runs: Sequence[RunRecord], summary: Summary) -> RewardModelSection | None:
    """The section of the reward model behind `runs` (one path; `summary` merged); None without one."""
    confidence = latest_table(runs, "rm_confidence")
    figures = (
        (
            _reliability(latest_table(runs, "rm_reliability")),
            "On the dashed line, 80% of the labels agree with a preference that the rewards put at 80%.",
        ),
        (
            by_confidence(confidence, {"on its labels": "accuracy", "on gold": "gold_accuracy"}),
            "Where the labeler wavered, its label is hard to predict, and gold need not follow it.",
        ),
    )
    section = RewardModelSection(
        tuple(table_rows(table("reward_model"), summary, _notes(summary))),
        tuple(table for table in _tables(runs, confidence) if table.rows),
        tuple((Markup(svg), caption) for svg, caption in figures if svg),
    )
    return section if any((section.facts, section.tables, section.figures)) else None


def _notes(summary: Summary) -> dict[str, str]:
    count, p = number(summary, "rm/n"), number(summary, "rm/length_only_p_value")
    return {
        "rm/accuracy": f"{plain(count)} held-out pairs",
        "rm/length_only_gap": "" if p is None else f"paired test by prompt, {p_text(p)}",
    }


def _tables(runs: Sequence[RunRecord], confidence: Sequence[Row]) -> tuple[BinTable, ...]:
    lengths, halves = latest_table(runs, "rm_length"), latest_table(runs, "rm_disagreement")
    return (
        _table(
            "By confidence of the label",
            "|p − 0.5|",
            "p is the label, over both orders where it has two.",
            {between(row): row for row in confidence},
        ),
        _table(
            "By length of the preferred response",
            "Preferred is",
            "Preferred by the label, or by gold. Similar: at most 10% of the longer one apart (tokens).",
            {str(row["bin"]): row for row in lengths},
        ),
        _table(
            "By disagreement of the ensemble",
            "Members",
            "Halves of the held-out pairs, at the median disagreement.",
            {_HALVES[row["bin"]]: row for row in halves},
        ),
    )


def _table(title: str, head: str, caption: str, rows: Mapping[str, Row]) -> BinTable:
    shown = tuple(
        RewardBin(name, *rate_texts(row, "n", "accuracy"), *rate_texts(row, "gold_n", "gold_accuracy"))
        for name, row in rows.items()
    )
    return BinTable(title, head, caption, shown, any(number(row, "gold_n") for row in rows.values()))


def _reliability(rows: Sequence[Row]) -> str:
    curves: dict[str, list[Row]] = {}
    for row in rows:
        curves.setdefault(str(row["curve"]), []).append(row)
    return plots.reliability_plot(curves, title="Reward model: reliability")


def reward_model_notes(summary: Summary) -> dict[str, str]:
    """The result table's notes on the reward model's metrics."""
    count, p = number(summary, "rm/n"), number(summary, "rm/length_only_p_value")
    notes = {} if p is None else {"rm/length_only_accuracy": f"against the reward model: {p_text(p)}"}
    source = summary.get("rm/gold_source")
    notes |= (
        {"rm/gold_accuracy": f"{source} people" if source == "simulated" else str(source)} if source else {}
    )
    return notes | ({"rm/accuracy": f"{plain(count)} held-out pairs"} if count else {})
