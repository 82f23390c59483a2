"""Agreement and calibration of probabilistic judgements."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from rlaif.stats.intervals import FloatArray, as_floats, check_same_length


def cohen_kappa(x: Sequence[Hashable], y: Sequence[Hashable]) -> float:
    """Cohen's kappa of two raters' labels (n,) of the same items.

    (observed - expected) / (1 - expected) agreement, expected from each rater's own label shares.
    NaN for no items or when both raters only ever give the same single label.
    """
    check_same_length(x, y)
    if len(x) == 0:
        return math.nan
    n = len(x)
    observed = sum(a == b for a, b in zip(x, y, strict=True)) / n
    x_list, y_list = list(x), list(y)
    expected = sum(x_list.count(label) * y_list.count(label) for label in set(x_list)) / n**2
    return math.nan if expected == 1 else (observed - expected) / (1 - expected)


@dataclass(frozen=True)
class ReliabilityBin:
    """One bin of a reliability diagram: `n` predictions in [low, high), the last bin closed."""

    low: float
    high: float
    n: int
    mean_predicted: float
    mean_observed: float


def _probabilities(
    p: Sequence[float] | FloatArray, y: Sequence[float] | FloatArray
) -> tuple[FloatArray, FloatArray]:
    check_same_length(p, y)
    predicted, observed = as_floats(p), as_floats(y)
    for values in (predicted, observed):
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError("predictions and outcomes must be probabilities in [0, 1]")
    return predicted, observed


def reliability_bins(
    p: Sequence[float] | FloatArray, y: Sequence[float] | FloatArray, bins: int = 10
) -> list[ReliabilityBin]:
    """Equal-width bins of predictions `p` (n,) against outcomes `y` (n,), soft or hard; no empty bins."""
    predicted, observed = _probabilities(p, y)
    # Rounded first: 1 - 0.2 and 0.8 must not fall on two sides of an edge.
    index = np.minimum(np.round(predicted * bins, 9).astype(int), bins - 1)
    rows = []
    for b in range(bins):
        inside = index == b
        if inside.any():
            means = float(predicted[inside].mean()), float(observed[inside].mean())
            rows.append(ReliabilityBin(b / bins, (b + 1) / bins, int(inside.sum()), *means))
    return rows


def expected_calibration_error(
    p: Sequence[float] | FloatArray, y: Sequence[float] | FloatArray, bins: int = 10
) -> float:
    """Mean over items of |mean predicted - mean observed| of the item's bin; NaN for no items."""
    rows = reliability_bins(p, y, bins)
    total = sum(row.n for row in rows)
    return (
        sum(row.n * abs(row.mean_predicted - row.mean_observed) for row in rows) / total
        if total
        else math.nan
    )


def brier_score(p: Sequence[float] | FloatArray, y: Sequence[float] | FloatArray) -> float:
    """Mean squared difference of predictions and outcomes, both (n,) in [0, 1]; NaN for no items."""
    predicted, observed = _probabilities(p, y)
    return float(((predicted - observed) ** 2).mean()) if len(predicted) else math.nan
