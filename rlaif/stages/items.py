"""Rows of single test items, whichever stages a path has: what the measures of its summary are means of."""

from __future__ import annotations

from typing import Any

from rlaif.stages import evaluate, label, reward_measures
from rlaif.stages.context import Context
from rlaif.stages.graph import Parents


def item_rows(ctx: Context, built: Parents) -> list[dict[str, Any]]:
    """One row for each gold pair of the labeler, test pair of the reward model and judged prompt in `built`."""
    rows: list[dict[str, Any]] = []
    if "label" in built:
        rows += label.item_rows(ctx, built["label"])
    if "rm" in built:
        rows += reward_measures.item_rows(built["rm"])
    if "eval" in built:
        rows += evaluate.item_rows(built["eval"])
    return rows
