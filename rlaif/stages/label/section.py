"""What the report says of a labeler: biases, confidence, length, cost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from rlaif.figures import plots
from rlaif.figures.rows import (
    EMPTY_LOSES,
    ResultRow,
    Summary,
    between,
    by_confidence,
    fact_rows,
    latest_table,
    rate_texts,
    row_if_any,
    single_row,
)
from rlaif.tracking.runs import Row, RunRecord, number
from rlaif.tracking.text import metric_range, p_text, percent, plain

_CONSTRUCTION = re.compile(r"label/alignment_(?P<name>.+?)$")
_PART = re.compile(r"_(ci_low|ci_high|n|worst|best)$")
FACTS = (
    ("Agreement", "label/alignment", "alignment"),
    ("Agreement", "label/kappa", "Cohen's kappa"),
    ("Position", "label/same_position_rate", "verdict follows the position"),
    ("Position", "label/first_position_rate", "prefers what is shown first"),
    ("Calibration", "label/ece", "ECE"),
    ("Calibration", "label/brier", "Brier score"),
    ("Length", "label/longer_rate", "prefers the longer response"),
    ("Length", "label/verbosity_gap", "verbosity gap"),
    ("Length", "label/length_gap", "preferred minus other"),
    ("Answers", "label/choice_mass", "probability on the choices"),
    ("Answers", "label/unparsed_rate", "unparsed"),
    ("Answers", "label/failed_rate", "calls that failed"),
    ("Answers", "label/empty_rate", "decided by an empty response"),
    ("Cost", "label/tokens_in", "tokens read"),
    ("Cost", "label/tokens_out", "tokens written"),
    ("Cost", "label/usd", "US dollars"),
    ("Cost", "label/pairs_per_s", "pairs a second"),
)


@dataclass(frozen=True)
class BinRow:
    """One bin in text: `flip` is the share of pairs whose verdict changes with the order."""

    name: str
    n: str
    alignment: str
    alignment_range: str
    flip_n: str
    flip: str
    flip_range: str


@dataclass(frozen=True)
class LabelerSection:
    """What the page shows of a labeler. `facts`: grouped by their `stage`; figures with their captions."""

    facts: tuple[ResultRow, ...]
    confidence: tuple[BinRow, ...]
    lengths: tuple[BinRow, ...]
    figures: tuple[tuple[Markup, str], ...]


def labeler_section(runs: Sequence[RunRecord], summary: Summary) -> LabelerSection | None:
    """The section of the labeler behind `runs` (one path; `summary` merged); None without any labels."""
    confidence, lengths = latest_table(runs, "label_confidence"), latest_table(runs, "label_length")
    reliability = plots.reliability_plot({"": latest_table(runs, "reliability")}, title="Reliability")
    figures = (
        (
            by_confidence(
                confidence, {"alignment": "alignment", "verdict flips with the order": "flip_rate"}
            ),
            "Where confidence means something, alignment rises with it and flips fall.",
        ),
        (reliability, "On the dashed line, a stated preference of 80% is right 80% of the time."),
        (
            _by_construction(summary),
            "Share of gold pairs on which the labeler agrees, by how they were made.",
        ),
    )
    section = LabelerSection(
        fact_rows(FACTS, summary, _notes(summary)),
        tuple(_bin_row(between(row), row) for row in confidence),
        tuple(_bin_row(str(row["bin"]), row) for row in lengths),
        tuple((Markup(svg), caption) for svg, caption in figures if svg),
    )
    return section if any((section.facts, confidence, lengths, section.figures)) else None


def _notes(summary: Summary) -> dict[str, str]:
    def of(name: str) -> float | None:
        return number(summary, f"label/{name}")

    worst, best, p = of("alignment_worst"), of("alignment_best"), of("position_p_value")
    cached, reused, estimated = of("tokens_cached"), of("reused"), of("usage_estimated")
    unread = ""
    if worst is not None and best is not None and worst < best:
        unread = f"; {metric_range('label/alignment', worst, best)} if all unread ones were wrong or right"
    return {
        "label/alignment": f"{plain(of('alignment_n'))} gold pairs{unread}",
        "label/kappa": "0 is chance",
        "label/same_position_rate": "of the pairs shown in both orders",
        "label/first_position_rate": "50% is no bias" + ("" if p is None else f"; binomial {p_text(p)}"),
        "label/brier": "0.25 is a coin",
        "label/longer_rate": f"gold: {percent(of('gold_longer_rate'))} of the same {plain(of('verbosity_n'))} pairs",
        "label/verbosity_gap": "labeler minus gold",
        "label/length_gap": "characters, all pairs",
        "label/choice_mass": "of the next token; too little of it is unparsed",
        "label/empty_rate": "no one is asked: it loses to any text",
        "label/tokens_in": f"{plain(cached)} of them from cache" if cached else "",
        "label/usd": f"tokens estimated for {percent(estimated)} of the calls" if estimated else "",
        "label/pairs_per_s": f"{plain(reused)} judgements reused" if reused else "",
    }


def _bin_row(name: str, row: Row) -> BinRow:
    return BinRow(name, *rate_texts(row, "n", "alignment"), *rate_texts(row, "flip_n", "flip_rate"))


def _by_construction(summary: Summary) -> str:
    rows = []
    for name in sorted(summary):
        match, value = _CONSTRUCTION.match(name), number(summary, name)
        if match and value is not None and not _PART.search(name):
            bounds = number(summary, f"{name}_ci_low"), number(summary, f"{name}_ci_high")
            count = number(summary, f"{name}_n")
            label = match["name"].replace("_", " ") + (f" (n = {plain(count)})" if count else "")
            rows.append(plots.ForestRow(label, value, *bounds))
    if not rows:
        return ""
    return plots.forest_plot(
        rows,
        title="By kind of gold pair",
        reference=0.5,
        percent=True,
        axis_label="labeler alignment; 50% is guessing",
        width=4.2,
    )


def label_rows(summary: Summary) -> list[ResultRow]:
    count = number(summary, "label/alignment_n")
    note = f"with gold preferences, n = {plain(count)}" if count else "with gold preferences"
    return [
        *row_if_any(summary, "sample/empty_rate", "empty responses sampled", EMPTY_LOSES),
        *single_row(summary, "Labels", "label/alignment", "labeler alignment", note),
        *single_row(
            summary, "Labels", "label/same_position_rate", "same position in both orders", "position bias"
        ),
        *single_row(
            summary, "Labels", "label/choice_mass", "probability on the choices", "of the next token, mean"
        ),
        *single_row(summary, "Labels", "label/unparsed_rate", "unparsed"),
        *single_row(summary, "Labels", "label/failed_rate", "failed calls", _retry_note(summary)),
        *row_if_any(
            summary, "label/empty_rate", "empty response in the pair", "it loses to any text; no one is asked"
        ),
        *row_if_any(summary, "label/asked_again", "asked again", "answers"),
        *_cost_rows(summary),
    ]


def _retry_note(summary: Summary) -> str:
    return "labeler.retry=failed asks them again" if number(summary, "label/failed_rate") else ""


def _cost_rows(summary: Summary) -> list[ResultRow]:
    """Nothing for a labeler that neither costs money nor had anything to reuse."""
    reused = number(summary, "label/reused")
    if not number(summary, "label/usd") and not reused:
        return []
    note = f"US dollars; {plain(reused)} answers reused at no cost" if reused else "US dollars"
    estimated = number(summary, "label/usage_estimated")
    if estimated:
        note += f"; tokens estimated for {percent(estimated)} of the calls"
    return single_row(summary, "Labels", "label/usd", "cost of this run", note)
