"""Compares labelers on the same gold pairs: a ranking, ties with the best, and every pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table as RichTable
from rich.text import Text

from rlaif.stats import ALPHA, Interval, arm_interval, paired_tests
from rlaif.study.items import SeedScores, common_items, paired_row, seed_scores, seed_table
from rlaif.study.sweeps import group_runs
from rlaif.tracking.glossary import names
from rlaif.tracking.runs import Row, RunRecord, Scalar, interval, number
from rlaif.tracking.text import (
    FORMATS,
    MISSING,
    is_percent,
    metric_label,
    metric_range,
    metric_value,
    p_text,
    percent,
)

WORST, HALF = "label/alignment_worst", "label/alignment_half"
_TERMINAL_COLUMNS = 4
MOST_PAIRS = 600  # rows of tests on a page: all pairs of 35 arms
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class LabelerRow:
    """One labeler, as text; `tied`: not significantly below the best after Holm's correction."""

    name: str
    alignment: str
    interval: str
    cells: tuple[str, ...]
    p_holm: str
    best: bool
    tied: bool


@dataclass(frozen=True)
class PairRow:
    """Two labelers or other arms, as text. `counts`: items on which the first, and the second, does better."""

    first: str
    second: str
    difference: str
    interval: str
    counts: str
    mcnemar: str
    p: str
    p_holm: str
    tied: bool


@dataclass(frozen=True)
class LabelersTable:
    """Labelers, best first, with a column per metric that at least one of them has, and pairs.

    `tested`: how many pairs were tested, of which `pairs` has those that are shown.
    """

    metrics: tuple[str, ...]
    labelers: tuple[LabelerRow, ...]
    pairs: tuple[PairRow, ...]
    caption: str
    tested: int


def compare_labelers(
    items: Mapping[str, Sequence[Sequence[Row]]], summaries: Mapping[str, Mapping[str, Scalar]]
) -> tuple[Rows, Rows]:
    """Rows of the ranking and of the paired tests, as numbers; both empty if nothing can be compared.

    `items`: for each labeler, rows by gold pair, one list per seed (only as many seeds count as the labeler with the
    fewest has). A pair that a labeler could not read counts as wrong; `label/alignment_half` and `p_holm_half` say
    how it stands if such pairs count half. So no labeler chooses its test by what it abstains from.
    """
    worst, half = (
        _on_all({name: seed_scores(tables, metric) for name, tables in items.items()})
        for metric in (WORST, HALF)
    )
    if not worst.values:  # older runs' items lack these metrics
        worst = half = _on_all({name: seed_scores(t, "label/alignment") for name, t in items.items()})
    if not worst.values:
        return [], []
    tests = paired_tests(worst.values, worst.prompts)
    best = tests[0].first
    against = {test.second: test.p_holm for test in tests if test.first == best}
    halves = {
        other: test.p_holm
        for test in paired_tests(half.values, half.prompts)
        for one, other in ((test.first, test.second), (test.second, test.first))
        if one == best
    }
    ranking = []
    for name in (best, *against):
        found, other = (arm_interval(one.values[name], one.prompts) for one in (worst, half))
        row = {"labeler": name, "n": len(worst.prompts), "seeds": worst.seeds, **_bounded(WORST, found)}
        row |= {"p_holm": against.get(name), "best": name == best, **_bounded(HALF, other)}
        row |= {"p_holm_half": halves.get(name), "tied": name == best or against[name] >= ALPHA}
        own = {metric: number(summaries[name], metric) for metric in names("labelers") if metric != HALF}
        ranking.append(row | own)
    return ranking, [paired_row(test) for test in tests]


@dataclass(frozen=True)
class _OnAll:
    """Scores (S, n) by labeler on the pairs that all were asked about, and those pairs' prompts."""

    values: dict[str, np.ndarray]
    prompts: list[str]
    seeds: int


def _on_all(scores: Mapping[str, SeedScores]) -> _OnAll:
    """Empty with fewer than two labelers, or if they share too few pairs."""
    shared = common_items(scores) if len(scores) > 1 and all(scores.values()) else []
    if not shared:
        return _OnAll({}, [], 0)
    keys = [key for key, _ in shared]
    tables = {name: seed_table(one, keys) for name, one in scores.items()}
    seeds = min(map(len, tables.values()))
    return _OnAll({name: table[:seeds] for name, table in tables.items()}, [p for _, p in shared], seeds)


def _bounded(name: str, found: Interval) -> dict[str, float]:
    return {name: found.estimate, f"{name}_ci_low": found.low, f"{name}_ci_high": found.high}


def labelers_of(runs: Sequence[RunRecord]) -> tuple[Rows, Rows]:
    """`compare_labelers` on the labelers behind `runs`: the latest comparison's own, or one per label artifact.

    Runs that differ only in what comes after the labels share their labeler; its seeds are averaged.
    """
    for run in reversed(runs):
        if ranking := run.table("labelers"):
            return list(map(dict, ranking)), list(map(dict, run.table("labeler_tests")))
    labels = ((next((r.digest for r in run.lineage if r.kind == "label"), ""), run) for run in reversed(runs))
    first = {digest: run for digest, run in labels if digest}
    chosen = list(reversed(first.values()))
    if len(chosen) < 2:
        return [], []
    groups = group_runs(chosen)
    items = {name: [run.table("items") for run in group] for name, group in groups.items()}
    return compare_labelers(items, {name: group[0].summary for name, group in groups.items()})


def labelers_table(ranking: Sequence[Row], pairs: Sequence[Row]) -> LabelersTable | None:
    """The rows as text; None without a ranking."""
    if not ranking:
        return None
    metrics = tuple(n for n in names("labelers") if any(number(row, n) is not None for row in ranking))
    count, family = number(ranking[0], "n"), len(pairs)
    tied = ", ".join(str(row["labeler"]) for row in ranking if row.get("tied") and not row.get("best"))
    verdict = f"not told apart from the best: {tied}" if tied else "the best differs from every other"
    seeds = number(ranking[0], "seeds") or 1
    over = f" and {seeds:.0f} seeds" if seeds > 1 else ""
    caption = (
        f"On the same {count:.0f} gold pairs{over}, those that a labeler could not read counted as wrong (in the "
        f"next column as half right); {verdict}. p: exact McNemar, or Student's t over whole prompts if prompts "
        f"repeat, a labeler was undecided or seeds differ; Holm over {family:,} pair{'s' if family > 1 else ''} of "
        "labelers, 5% level."
    )
    rows = tuple(_labeler_row(row, metrics) for row in ranking)
    return LabelersTable(metrics, rows, tuple(map(pair_row, shown_pairs(pairs))), caption, len(pairs))


def _labeler_row(row: Row, metrics: Sequence[str]) -> LabelerRow:
    found, p = interval(row, WORST), number(row, "p_holm")
    return LabelerRow(
        str(row["labeler"]),
        percent(number(row, WORST)),
        metric_range(WORST, found.low, found.high) if found else "",
        tuple(metric_value(name, number(row, name)) for name in metrics),
        bare_p(p),
        bool(row.get("best")),
        bool(row.get("tied")),
    )


def shown_pairs(tests: Sequence[Row]) -> Sequence[Row]:
    """The rows of paired tests that a page lists: all of them, or of very many the best arm's, which stand first."""
    return (
        tests if len(tests) <= MOST_PAIRS else [test for test in tests if test["first"] == tests[0]["first"]]
    )


def pair_row(row: Row) -> PairRow:
    """A paired test's row (`study.items.paired_row`) as text; shares differ by points."""
    written = FORMATS["points" if is_percent(str(row.get("metric", WORST))) else "signed"]
    gap, low, high = (number(row, f"difference{end}") for end in ("", "_ci_low", "_ci_high"))
    adjusted = number(row, "p_holm")
    return PairRow(
        str(row["first"]),
        str(row["second"]),
        MISSING if gap is None else written.value(gap),
        "" if low is None or high is None else written.range(low, high),
        f"{row['ahead']} : {row['behind']}",
        bare_p(number(row, "mcnemar_p")),
        bare_p(number(row, "p")),
        bare_p(adjusted),
        adjusted is None or adjusted >= ALPHA,
    )


def bare_p(value: float | None) -> str:
    """`p_text` without the `p`, which is in the column's head."""
    return p_text(value).removeprefix("p ").removeprefix("= ")


def terminal_labelers(table: LabelersTable) -> RichTable:
    """The ranking for the terminal; `*` marks the best labeler, `=` those tied with it."""
    view = RichTable(title="Labelers", caption=table.caption, header_style="bold")
    view.add_column("")
    view.add_column("labeler", overflow="fold")
    view.add_column("alignment", justify="right", no_wrap=True)
    for name in table.metrics[:_TERMINAL_COLUMNS]:
        view.add_column(metric_label(name, "labelers"), justify="right")
    view.add_column("Holm p", justify="right", no_wrap=True)
    for row in table.labelers:
        mark = "*" if row.best else "=" if row.tied else ""
        alignment = f"{row.alignment}\n({row.interval})" if row.interval else row.alignment
        view.add_row(mark, Text(row.name), alignment, *row.cells[:_TERMINAL_COLUMNS], row.p_holm)
    return view
