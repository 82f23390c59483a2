"""Scores of single items, for comparing arms on the same ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlaif.stages.common.measures.joining import cluster
from rlaif.stats import PairedTest
from rlaif.tracking.runs import Row, number

# Item id to (prompt, one score per seed).
SeedScores = Mapping[str, tuple[str, tuple[float, ...]]]
# Arms that share a smaller part of the smallest one's items measured different things.
_ENOUGH = 0.5


def tested_metric(name: str) -> str:
    """The metric that `name` is tested by: for alignment, the one that counts unread pairs as wrong.

    So all arms are tested on the same pairs, whichever each abstains from.
    """
    return "label/alignment_worst" if name == "label/alignment" else name


def seed_scores(tables: Sequence[Sequence[Row]], name: str) -> SeedScores:
    """Scores of metric `name` in each of `tables` (one per seed), for the items that all of them have.

    Empty if they share less than half of the smallest one's items: their mean would be that of another test.
    """
    per_seed = [
        {str(row["id"]): row for row in rows if "id" in row and number(row, name) is not None}
        for rows in tables
    ]
    first, *rest = per_seed
    shared = [key for key in first if all(key in rows for rows in rest)]
    if len(shared) < _ENOUGH * min(map(len, per_seed)):
        return {}
    return {
        key: (
            cluster(first[key]),
            tuple(float(rows[key][name]) for rows in per_seed),
        )
        for key in shared
    }


def seed_table(scores: SeedScores, keys: Sequence[str]) -> np.ndarray:
    """(S, n) scores of the items `keys`."""
    return np.array([scores[key][1] for key in keys]).T


def common_items(scores: Mapping[str, SeedScores]) -> list[tuple[str, str]]:
    """(id, prompt) of the items that all arms have; empty below half of the smallest arm's items.

    An id with different prompts in two arms is not the same item.
    """
    places = [{(key, prompt) for key, (prompt, _) in arm.items()} for arm in scores.values()]
    shared = set.intersection(*places)
    if len(shared) < _ENOUGH * min(map(len, places)):
        return []
    return [
        (key, prompt) for key, (prompt, _) in next(iter(scores.values())).items() if (key, prompt) in shared
    ]


def paired_row(test: PairedTest, sign: float = 1.0) -> dict[str, Any]:
    """A paired test as a row of a run's table; `sign` is -1 if it was made on negated scores."""
    low, high = sorted((sign * test.difference.low, sign * test.difference.high))
    return {
        "first": test.first,
        "second": test.second,
        "n": test.n,
        "ahead": test.ahead,
        "behind": test.behind,
        "difference": sign * test.difference.estimate,
        "difference_ci_low": low,
        "difference_ci_high": high,
        "mcnemar_p": test.mcnemar,
        "p": test.p_value,
        "p_holm": test.p_holm,
    }
