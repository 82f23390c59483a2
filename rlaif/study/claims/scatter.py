"""How much the arms of finished experiments scattered over items and seeds: what the next one can be planned by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np

from rlaif.stats.effects.power import Components, components, pooled
from rlaif.study.items import common_items, seed_scores, seed_table, tested_metric
from rlaif.tracking.glossary import describe
from rlaif.tracking.runs import Row, RunRecord

SCATTER = "scatter"
PLANNED = ("label/alignment", "rm/accuracy", "rm/gold_accuracy", "eval/win_rate")
"""What is kept of every comparison that measures it, whatever its own tests are on."""
ITEMS = "items"
ARMS, ALONE = "arms", "alone"
"""What was compared: two arms on a metric, or one arm's metric with its neutral value, such as a win rate with 50%."""


def scatter_rows(
    items: Mapping[str, Sequence[Sequence[Row]]], metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """A row per metric of single items and pair of arms, and per arm where the metric has a neutral value.

    Arms that share what the metric is measured on say nothing about differences, and seeds that do nothing about seeds.
    """
    rows = []
    for metric in metrics:
        scores = {arm: seed_scores(tables, tested_metric(metric)) for arm, tables in items.items()}
        known = {arm: own for arm, own in scores.items() if own}
        for first, second in combinations(known, 2):
            if shared := common_items({first: known[first], second: known[second]}):
                keys, clusters = [key for key, _ in shared], [prompt for _, prompt in shared]
                x, y = (seed_table(known[arm], keys) for arm in (first, second))
                rows.append(_row(metric, ARMS, x - y, clusters))
        neutral = getattr(describe(metric), "neutral", None)
        for own in known.values() if neutral is not None else ():
            table, clusters = seed_table(own, list(own)), [prompt for prompt, _ in own.values()]
            rows.append(_row(metric, ALONE, table - neutral, clusters))
    return [row for row in rows if row]


def _row(metric: str, kind: str, differences: np.ndarray, clusters: Sequence[str]) -> dict[str, Any]:
    """The components of differences (S, n); empty if nothing differs, or too little is known."""
    if (differences == differences[0]).all():
        differences = differences[:1]
    found = components(differences, clusters) if differences.any() else None
    return {} if found is None else {"metric": metric, "kind": kind, **asdict(found)}


def known_scatter(runs: Sequence[RunRecord], metric: str) -> dict[str, tuple[Components, int]]:
    """By kind, the pooled components of the metric's comparisons in `runs`, and how many there were.

    Runs of one path have no arms, but their items compare the policy with its baseline. What a later run repeats to
    the last digit, since it reused it, counts once.
    """
    rows = [
        row for run in runs for row in (*run.table(SCATTER), *_own(run, metric)) if row["metric"] == metric
    ]
    once = {tuple(row.values()): row for row in rows}.values()
    kinds = {kind: [_components(row) for row in once if row["kind"] == kind] for kind in (ARMS, ALONE)}
    return {kind: (pooled(found), len(found)) for kind, found in kinds.items() if found}


def _own(run: RunRecord, metric: str) -> list[dict[str, Any]]:
    rows = run.table(ITEMS)
    return scatter_rows({"": [rows]}, [metric]) if any(tested_metric(metric) in row for row in rows) else []


def _components(row: Row) -> Components:
    names = ("seeds", "items", "cells", "seed_freedom", "item_freedom")
    return Components(*(float(row[name]) if row[name] is not None else float("nan") for name in names))
