"""What the report says about a labeler: biases, confidence, length, cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from rich.table import Table
from rich.text import Text

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
from rlaif.tracking.glossary import describe, table
from rlaif.tracking.runs import Row, RunRecord, number
from rlaif.tracking.text import metric_range, p_text, percent, plain

_CONSTRUCTION = "label/alignment_*"


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
    """What the page shows of a labeler. `facts` are grouped by their `stage`; figures have captions."""

    facts: tuple[ResultRow, ...]
    confidence: tuple[BinRow, ...]
    lengths: tuple[BinRow, ...]
    subsets: tuple[BinRow, ...]
    figures: tuple[tuple[Markup, str], ...]


def labeler_section(runs: Sequence[RunRecord], summary: Summary) -> LabelerSection | None:
    """The section of the labeler behind `runs` (one path; `summary` merged); None without any labels."""
    confidence, lengths = latest_table(runs, "label_confidence"), latest_table(runs, "label_length")
    reliability = plots.reliability_plot({"": latest_table(runs, "reliability")}, title="Reliability")
    rates = {"alignment": "alignment", "verdict flips with the order": "flip_rate"}
    figures = (
        (
            by_confidence(confidence, rates),
            "If confidence means something, alignment rises with it and flips fall.",
        ),
        (reliability, "On the dashed line, a preference given as 80% is right 80% of the time."),
        (
            _by_construction(summary),
            "Share of constructed pairs on which the labeler agrees, by how their worse response was made.",
        ),
    )
    section = LabelerSection(
        tuple(table_rows(table("labeler"), summary, _notes(summary))),
        tuple(_bin_row(between(row), row) for row in confidence),
        tuple(_bin_row(str(row["bin"]), row) for row in lengths),
        tuple(_bin_row(str(row["subset"]), row) for row in latest_table(runs, "label_subsets")),
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
        "label/alignment": f"{plain(of('alignment_n'))} gold pairs{_by_whom(summary)}{unread}",
        "label/alignment_constructed": "a check of competence: one response was made to be worse",
        "label/first_position_rate": "50% is no bias" + ("" if p is None else f"; binomial {p_text(p)}"),
        "label/longer_rate": f"gold: {percent(of('gold_longer_rate'))} of the same {plain(of('verbosity_n'))} pairs",
        "label/tokens_in": f"{plain(cached)} of them from cache" if cached else "",
        "label/usd": f"tokens estimated for {percent(estimated)} of the calls" if estimated else "",
        "label/pairs_per_s": f"{plain(reused)} judgements reused" if reused else "",
    }


def _bin_row(name: str, row: Row) -> BinRow:
    return BinRow(name, *rate_texts(row, "n", "alignment"), *rate_texts(row, "flip_n", "flip_rate"))


def _by_construction(summary: Summary) -> str:
    rows = []
    for name in sorted(summary):
        metric, value = describe(name), number(summary, name)
        if metric is not None and metric.name == _CONSTRUCTION and value is not None:
            bounds = number(summary, f"{name}_ci_low"), number(summary, f"{name}_ci_high")
            count = number(summary, f"{name}_n")
            kind = name.removeprefix("label/alignment_").replace("_", " ")
            label = f"{kind} (n = {plain(count)})" if count else kind
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


def label_notes(summary: Summary) -> dict[str, str]:
    """The result table's notes on the labels' metrics."""
    notes, count = {}, number(summary, "label/alignment_n")
    if count:
        notes["label/alignment"] = f"{gold_words(summary)}, n = {plain(count)}"
    if number(summary, "label/failed_rate"):
        notes["label/failed_rate"] = "labeler.retry=failed asks them again"
    reused, estimated = number(summary, "label/reused"), number(summary, "label/usage_estimated")
    cost = f"US dollars; {plain(reused)} answers reused at no cost" if reused else "US dollars"
    guessed = f"; tokens estimated for {percent(estimated)} of the calls" if estimated else ""
    return notes | {"label/usd": f"{cost}{guessed}"}


_GOLD = {
    "human": "against people's preferences",
    "simulated": "against simulated people",
    "constructed": "against how the pairs were made",
}


def _by_whom(summary: Summary) -> str:
    return f", {gold_words(summary)}" if summary.get("label/gold_source") else ""


def gold_words(summary: Summary, stage: str = "label") -> str:
    """Whose verdicts the gold of a stage is, in words."""
    source = str(summary.get(f"{stage}/gold_source") or "")
    return _GOLD.get(source, f"against gold ({source})" if source else "against gold")


def subset_table(rows: Sequence[Row]) -> Table | None:
    """Alignment by subset for the terminal; None without subsets."""
    if not rows:
        return None
    view = Table(title="Alignment by subset", header_style="bold")
    view.add_column("subset", overflow="fold")
    for column in ("pairs read", "alignment", "95% interval"):
        view.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        cells = _bin_row(str(row["subset"]), row)
        view.add_row(Text(cells.name), f"{cells.n} of {row['pairs']}", cells.alignment, cells.alignment_range)
    return view


def label_lines(summary: Summary) -> dict[str, None]:
    """Leaves out the cost of a labeler that costs nothing and had nothing to reuse."""
    return {} if number(summary, "label/usd") or number(summary, "label/reused") else {"label/usd": None}
