"""Whether a series rises: the slope over all of it, not the difference of its ends."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import linregress
from scipy.stats import t as student

from rlaif.stats.intervals import FloatArray, Interval, as_floats, nan_interval

MIN_POINTS = 4


def linear_trend(values: Sequence[float] | FloatArray, *, level: float = 0.95) -> Interval:
    """The change from the first to the last of `values` (n,) along their least-squares line, with its interval.

    By Student's t of the slope. Fewer than four points have NaN bounds, fewer than two NaN throughout.
    """
    series = as_floats(values)
    n = len(series)
    if n < 2 or not np.isfinite(series).all():
        return nan_interval(n)
    fit, span = linregress(np.arange(n), series), n - 1
    change = float(fit.slope) * span
    if n < MIN_POINTS:
        return Interval(change, math.nan, math.nan, n)
    half = float(student.ppf((1 + level) / 2, n - 2)) * float(fit.stderr) * span
    return Interval(change, change - half, change + half, n)
