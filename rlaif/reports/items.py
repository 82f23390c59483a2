"""Scores of single items, so that arms can be compared on the same ones."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from rlaif.reports.runs import Row, number

# Item id to (prompt, score).
Scores = Mapping[str, tuple[str, float]]
# Arms that share fewer of the smallest one's items measured different things.
_ENOUGH = 0.5


def item_scores(tables: Sequence[Sequence[Row]], name: str) -> Scores:
    """Scores of metric `name`, averaged over `tables` (one a seed), of the items that all of them have."""
    per_seed = [
        {str(row["id"]): row for row in rows if "id" in row and number(row, name) is not None}
        for rows in tables
    ]
    first, *rest = per_seed
    return {
        key: (str(row.get("prompt_id", key)), statistics.fmean(float(rows[key][name]) for rows in per_seed))
        for key, row in first.items()
        if all(key in rows for rows in rest)
    }


def common_items(scores: Mapping[str, Scores]) -> list[tuple[str, str]]:
    """(id, prompt) of the items that all arms have; empty below half of the smallest arm's items.

    An id whose prompt differs between the arms is another item.
    """
    places = [{(key, prompt) for key, (prompt, _) in arm.items()} for arm in scores.values()]
    shared = set.intersection(*places)
    if len(shared) < _ENOUGH * min(map(len, places)):
        return []
    return [
        (key, prompt) for key, (prompt, _) in next(iter(scores.values())).items() if (key, prompt) in shared
    ]
