"""Temperature scaling: how much softer or sharper a model's log-odds must be to fit the observed outcomes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from rlaif.stats.intervals import FloatArray, as_floats, check_same_length

# Bounds of T, reached by data without a finite best T: separable, or anti-correlated with the odds.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e3


def fit_temperature(logits: Sequence[float] | FloatArray, p: Sequence[float] | FloatArray) -> float:
    """The T > 0 that maximises the likelihood of soft outcomes `p` (n,) under sigmoid(logits / T).

    The mean cross-entropy is convex in b = 1/T, so the root of its derivative, the mean of
    (sigmoid(b logit) - p) logit, is found. Clipped to [0.001, 1000]; NaN if all logits are 0, since any T fits then.
    Raises ValueError for lengths that differ, logits that are not finite or outcomes outside [0, 1].
    Source: Guo et al. 2017.
    """
    check_same_length(logits, p)
    x, y = as_floats(logits), as_floats(p)
    if not np.isfinite(x).all() or not ((y >= 0) & (y <= 1)).all():
        raise ValueError("logits must be finite and outcomes probabilities in [0, 1]")
    if not x.any():
        return math.nan

    def slope(log_b: float) -> float:
        return float(((expit(math.exp(log_b) * x) - y) * x).mean())

    low, high = -math.log(MAX_TEMPERATURE), -math.log(MIN_TEMPERATURE)
    if slope(low) >= 0:
        return MAX_TEMPERATURE
    if slope(high) <= 0:
        return MIN_TEMPERATURE
    return math.exp(-brentq(slope, low, high))
