"""Means over seeds and test items at once: both are samples, and either could have come out otherwise.

Every seed meets every item, so that neither is nested in the other. The squared standard error of the
grand mean is that of the seeds' means plus that of the items' means, which counts the noise of single
cells twice and thus errs on the safe side. Degrees of freedom are Satterthwaite's: with three seeds a
bootstrap over seeds has ten different draws and covers far too little, while Student's t knows it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from scipy.stats import t as student

from rlaif.stats.intervals import (
    FloatArray,
    Interval,
    check_same_length,
    cluster_codes,
    nan_interval,
    wilson_interval,
)


def as_table(values: Sequence[float] | Sequence[Sequence[float]] | FloatArray) -> FloatArray:
    """Values (n,) of one seed or (S, n) of several as float64 (S, n); raises ValueError for other shapes."""
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if table.ndim != 2:
        raise ValueError(f"expected values (items,) or (seeds, items), got shape {table.shape}")
    return table


def _standard_error(table: FloatArray, clusters: Sequence[Hashable]) -> tuple[float, float]:
    """Standard error of the mean of (S, n) with S >= 2, and its degrees of freedom (NaN for error 0)."""
    seeds = table.mean(axis=1).var(ddof=1) / len(table)
    codes, count = cluster_codes(clusters)
    # The mean is a ratio of sums over clusters of unequal sizes; this is its linear part.
    deviations = np.bincount(codes, weights=table.mean(axis=0) - table.mean(), minlength=count)
    items = (deviations**2).sum() * count / (count - 1) / len(codes) ** 2
    total = seeds + items
    if total == 0:
        return 0.0, math.nan
    freedom = total**2 / (seeds**2 / (len(table) - 1) + items**2 / (count - 1))
    return math.sqrt(total), float(freedom)


def _checked(
    values: Sequence[float] | Sequence[Sequence[float]] | FloatArray, clusters: Sequence[Hashable]
) -> FloatArray:
    table = as_table(values)
    check_same_length(table[0], clusters)
    if len(table) < 2:
        raise ValueError("the spread between seeds needs at least two of them")
    return table


def _mean_interval(table: FloatArray, clusters: Sequence[Hashable], level: float) -> Interval:
    n = table.shape[1]
    if n == 0 or not np.isfinite(table).all():
        return nan_interval(n)
    mean = float(table.mean())
    if cluster_codes(clusters)[1] < 2:
        return Interval(mean, math.nan, math.nan, n)
    error, freedom = _standard_error(table, clusters)
    half = float(student.ppf((1 + level) / 2, freedom)) * error if error else 0.0
    return Interval(mean, mean - half, mean + half, n)


def crossed_interval(
    values: Sequence[Sequence[float]] | FloatArray, clusters: Sequence[Hashable], *, level: float = 0.95
) -> Interval:
    """Interval of the mean of `values` (S, n), S >= 2 seeds on the same n items in `clusters` (n,).

    Outcomes that all lie in [0, 1] are a proportion: bounds stay there, and where neither seeds nor
    clusters spread, Wilson's with one trial a cluster speaks. `n` counts items. No items or a NaN among
    them give NaN throughout, a single cluster NaN bounds.
    Raises ValueError for fewer than two seeds and for lengths that differ.
    """
    table = _checked(values, clusters)
    found = _mean_interval(table, clusters, level)
    if math.isnan(found.low) or not ((table >= 0) & (table <= 1)).all():
        return found
    if found.low == found.high:
        trials = cluster_codes(clusters)[1]
        wilson = wilson_interval(found.estimate * trials, trials, level)
        return Interval(found.estimate, wilson.low, wilson.high, found.n)
    return Interval(found.estimate, max(0.0, found.low), min(1.0, found.high), found.n)


def crossed_difference(
    x: Sequence[Sequence[float]] | FloatArray,
    y: Sequence[Sequence[float]] | FloatArray,
    clusters: Sequence[Hashable],
) -> tuple[Interval, float]:
    """95% interval of mean(x - y) and its two-sided p-value; x, y (S, n) pair both seeds and items.

    Student's t on the difference; as in `paired_bootstrap`, p is never below 2 / 2^K of K clusters that
    differ. Without bounds (a NaN, no items, one cluster) and without any difference p is 1.
    Raises ValueError as `crossed_interval` does.
    """
    check_same_length(as_table(x), as_table(y))
    difference = _checked(as_table(x) - as_table(y), clusters)
    interval = _mean_interval(difference, clusters, 0.95)
    if math.isnan(interval.low) or not difference.any():
        return interval, 1.0
    error, freedom = _standard_error(difference, clusters)
    p = float(2 * student.sf(abs(interval.estimate) / error, freedom)) if error else 0.0
    codes, count = cluster_codes(clusters)
    differing = np.bincount(codes, weights=np.abs(difference).sum(axis=0), minlength=count) > 0
    return interval, min(1.0, max(p, 2.0 ** (1 - int(differing.sum()))))
