"""Confidence intervals of means and proportions."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from statsmodels.stats.proportion import proportion_confint

FloatArray = npt.NDArray[np.float64]
# Resamples handled at once: bounds memory at (this many) x (number of clusters).
_CHUNK = 256


@dataclass(frozen=True)
class Interval:
    """A point estimate with its confidence bounds; `n` is the number of items behind it."""

    estimate: float
    low: float
    high: float
    n: int


def nan_interval(n: int) -> Interval:
    """An interval that says that nothing can be said."""
    return Interval(math.nan, math.nan, math.nan, n)


def as_floats(values: Sequence[float] | npt.NDArray[np.generic]) -> FloatArray:
    """A flat float64 array; raises ValueError for more dimensions."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"expected a flat list of numbers, got shape {array.shape}")
    return array


def cluster_codes(clusters: Sequence[Hashable]) -> tuple[npt.NDArray[np.int64], int]:
    """Each item's cluster as 0..K-1 in order of first appearance, and K."""
    seen: dict[Hashable, int] = {}
    codes = np.array([seen.setdefault(cluster, len(seen)) for cluster in clusters], dtype=np.int64)
    return codes, len(seen)


def check_same_length(*columns: Sequence[object] | npt.NDArray[np.generic]) -> None:
    """Raise ValueError unless all columns have one length."""
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"columns must have one length, got {[len(column) for column in columns]}")


def wilson_interval(successes: float, n: int, level: float = 0.95) -> Interval:
    """Wilson score interval of a proportion; ties may count half, so `successes` may be fractional.

    n = 0 or NaN successes give estimate NaN with the vacuous bounds 0 and 1.
    Raises ValueError unless 0 <= successes <= n.
    """
    if n == 0 or math.isnan(successes):
        return Interval(math.nan, 0.0, 1.0, n)
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie in [0, {n}], got {successes}")
    low, high = proportion_confint(successes, n, alpha=1 - level, method="wilson")
    # At the ends the bounds are 0 and 1 exactly; the closed form misses them by rounding.
    return Interval(
        successes / n, 0.0 if successes == 0 else float(low), 1.0 if successes == n else float(high), n
    )


def bootstrap_means(
    values: FloatArray, clusters: Sequence[Hashable], seed: int, resamples: int
) -> FloatArray:
    """(resamples,) means of `values` when whole clusters are drawn with replacement."""
    codes, count = cluster_codes(clusters)
    sums = np.bincount(codes, weights=values, minlength=count)
    sizes = np.bincount(codes, minlength=count)
    rng = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, _CHUNK):
        drawn = rng.integers(count, size=(min(_CHUNK, resamples - start), count))
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    return np.concatenate(means)


def percentile_bounds(draws: FloatArray, level: float) -> tuple[float, float]:
    """The central `level` share of bootstrap draws."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def cluster_bootstrap_interval(
    values: Sequence[float] | FloatArray,
    clusters: Sequence[Hashable],
    *,
    seed: int,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap of the mean of `values` (n,), resampling `clusters` (n,) as wholes.

    No items or a NaN among them give NaN throughout; a single cluster gives NaN bounds, since it says
    nothing about the spread between clusters. Raises ValueError when the lengths differ.
    """
    array = as_floats(values)
    check_same_length(array, clusters)
    if len(array) == 0 or not np.isfinite(array).all():
        return nan_interval(len(array))
    estimate = float(array.mean())
    if cluster_codes(clusters)[1] < 2:
        return Interval(estimate, math.nan, math.nan, len(array))
    low, high = percentile_bounds(bootstrap_means(array, clusters, seed, resamples), level)
    return Interval(estimate, low, high, len(array))


def proportion_interval(
    values: Sequence[float] | FloatArray,
    clusters: Sequence[Hashable],
    *,
    seed: int,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Interval of a mean of outcomes in [0, 1] (0 wrong or lost, 1 right or won, ties in between).

    Wilson when every outcome is 0 or 1 and no cluster repeats; otherwise the cluster bootstrap. Where
    that has no spread at all to resample (all clusters alike, or only one), Wilson with one trial per
    cluster, since "10 of 10" is no proof of certainty. n = 0 gives NaN with bounds 0 and 1.
    Raises ValueError for outcomes outside [0, 1].
    """
    array = as_floats(values)
    check_same_length(array, clusters)
    if np.isnan(array).any():
        return nan_interval(len(array))
    if ((array < 0) | (array > 1)).any():
        raise ValueError("outcomes of a proportion must lie in [0, 1]")
    count = cluster_codes(clusters)[1]
    if len(array) == 0 or (count == len(array) and np.isin(array, (0.0, 1.0)).all()):
        return wilson_interval(float(array.sum()), len(array), level)
    interval = cluster_bootstrap_interval(array, clusters, seed=seed, resamples=resamples, level=level)
    if interval.low < interval.high:
        return interval
    wilson = wilson_interval(interval.estimate * count, count, level)
    return Interval(interval.estimate, wilson.low, wilson.high, len(array))
