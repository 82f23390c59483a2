"""Agreement and calibration of probabilistic judgements."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from rlaif.stats.intervals import FloatArray, as_floats, check_same_length

Numbers = Sequence[float] | FloatArray


def cohen_kappa(x: Sequence[Hashable], y: Sequence[Hashable]) -> float:
    """Cohen's kappa of two raters' labels (n,) for the same items.

    (observed - expected) / (1 - expected) agreement, expected from each rater's label shares.
    NaN for no items or if both raters always give the same single label.
    """
    check_same_length(x, y)
    n = len(x)
    if n == 0:
        return math.nan
    observed = sum(a == b for a, b in zip(x, y, strict=True)) / n
    of_x, of_y = Counter(x), Counter(y)
    expected = sum(count * of_y[label] for label, count in of_x.items()) / n**2
    return math.nan if expected == 1 else (observed - expected) / (1 - expected)


@dataclass(frozen=True)
class ReliabilityBin:
    """One bin of a reliability diagram: `n` predictions in [low, high), the last bin closed."""

    low: float
    high: float
    n: int
    mean_predicted: float
    mean_observed: float


def _probabilities(p: Numbers, y: Numbers) -> tuple[FloatArray, FloatArray]:
    check_same_length(p, y)
    predicted, observed = as_floats(p), as_floats(y)
    for values in (predicted, observed):
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError("predictions and outcomes must be probabilities in [0, 1]")
    return predicted, observed


def reliability_bins(p: Numbers, y: Numbers, bins: int = 10) -> list[ReliabilityBin]:
    """Equal-width bins of predictions `p` (n,) against outcomes `y` (n,), soft or hard; no empty bins."""
    predicted, observed = _probabilities(p, y)
    # Rounded first: 1 - 0.2 and 0.8 must not fall on different sides of an edge.
    index = np.minimum(np.round(predicted * bins, 9).astype(int), bins - 1)
    rows = []
    for b in range(bins):
        inside = index == b
        if inside.any():
            means = float(predicted[inside].mean()), float(observed[inside].mean())
            rows.append(ReliabilityBin(b / bins, (b + 1) / bins, int(inside.sum()), *means))
    return rows


def expected_calibration_error(p: Numbers, y: Numbers, bins: int = 10) -> float:
    """Mean over items of |mean predicted - mean observed| in the item's bin; NaN for no items."""
    gaps = [row.n * abs(row.mean_predicted - row.mean_observed) for row in reliability_bins(p, y, bins)]
    return sum(gaps) / len(p) if gaps else math.nan


def brier_score(p: Numbers, y: Numbers) -> float:
    """Mean squared difference between predictions and outcomes, both (n,) in [0, 1]; NaN for no items."""
    predicted, observed = _probabilities(p, y)
    return float(((predicted - observed) ** 2).mean()) if len(predicted) else math.nan
