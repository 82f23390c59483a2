"""What the reports share: joining by pair, agreement, intervals, and calibration that ignores which side is a."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlaif.records import Judgement, Pair, Preference
from rlaif.stats import Interval, brier_score, expected_calibration_error, proportion_interval

Scored = tuple[str, float]  # an item's prompt (the cluster of intervals) and its outcome in [0, 1]


def cluster(item: Mapping[str, Any]) -> str:
    """What a test item is resampled with: its group, else its prompt; an item of no prompt is on its own."""
    return str(item.get("group") or item.get("prompt_id") or item["id"])


def with_bounds(name: str, found: Interval) -> dict[str, float]:
    """The metric `name` and its interval, `<name>_ci_low` and `<name>_ci_high`."""
    return {name: found.estimate, f"{name}_ci_low": found.low, f"{name}_ci_high": found.high}


def rate_metrics(name: str, scored: Sequence[Scored]) -> dict[str, float]:
    """The mean outcome with its 95% interval, clustered by prompt."""
    return with_bounds(name, proportion_interval([y for _, y in scored], [prompt for prompt, _ in scored]))


def by_pair(pairs: Sequence[Pair], labels: Sequence[Preference | Judgement]) -> dict[str, Pair]:
    """Pairs by id; raises ValueError for a repeated id or a label whose pair is missing."""
    index = {pair.id: pair for pair in pairs}
    if len(index) != len(pairs):
        raise ValueError("pair ids repeat")
    for label in labels:
        if label.pair_id not in index:
            raise ValueError(f"no pair has the id {label.pair_id!r} of a label")
    return index


def agreement(p: float, target: float | None) -> float:
    """1 if p and target prefer the same side, 0 if not, 0.5 if p is undecided (the target must not be)."""
    if target is None or target == 0.5:
        raise ValueError("the target must prefer a side")
    return 0.5 if p == 0.5 else float((p > 0.5) == (target > 0.5))


def symmetric_calibration(p: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """ECE and Brier score of preferences `p` against `y`, both for the response that p prefers.

    Folding to the preferred side makes both independent of which response is called a. Otherwise, data sets that
    always list the chosen response first would have only one outcome, and ECE would measure sharpness instead of
    calibration. At p = 0.5 no side is preferred, and the outcome is 0.5 for ECE.
    """
    return expected_calibration_error(*folded(p, y)), brier_score(p, y)


def folded(p: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """`p` and `y` both for the side that p prefers: confidences in [0.5, 1] and their outcomes."""
    outcomes = [0.5 if v == 0.5 else (t if v > 0.5 else 1 - t) for v, t in zip(p, y, strict=True)]
    return [max(v, 1 - v) for v in p], outcomes
