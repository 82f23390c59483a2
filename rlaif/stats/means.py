"""Intervals and tests of means over test items in clusters and, if there are several, over seeds.

Both are samples, so the error of a mean has one part from the items and one from the seeds, each with its own degrees
of freedom; an interval's half-width is the root of the summed squares of the parts' half-widths. Intervals cover 93 to
97% from 24 items on (`experiments/benchmarks/coverage_and_errors.py`), more with two or three seeds or fewer than
twenty clusters.

Notation: S seeds, n items, K clusters of items (prompts, conversations).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtrit

from rlaif.stats.intervals import (
    Clusters,
    FloatArray,
    Interval,
    check_same_length,
    cluster_codes,
    nan_interval,
    wilson_bounds,
)

Values = Sequence[float] | Sequence[Sequence[float]] | FloatArray


def as_table(values: Values) -> FloatArray:
    """Values (n,) of one seed, or (S, n) of several, as float64 (S, n); raises ValueError for other shapes."""
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if table.ndim != 2:
        raise ValueError(f"expected values (items,) or (seeds, items), got shape {table.shape}")
    return table


def are_outcomes(*tables: FloatArray) -> bool:
    """Whether all values are wins, ties or losses: 1, 0.5 or 0."""
    return all(bool(np.isin(table, (0.0, 0.5, 1.0)).all()) for table in tables)


@dataclass(frozen=True)
class Part:
    """A variance of the mean and its degrees of freedom."""

    variance: float
    freedom: float

    def half(self, alpha: float) -> float:
        """Half-width of the central interval at 1 - `alpha` if this were the only part."""
        return -float(stdtrit(self.freedom, alpha / 2)) * math.sqrt(self.variance)


@dataclass(frozen=True)
class MeanError:
    """The parts of a mean's error."""

    parts: tuple[Part, ...]

    @property
    def variance(self) -> float:
        return sum(part.variance for part in self.parts)

    def half(self, alpha: float) -> float:
        """Half-width of the central interval at 1 - `alpha`."""
        return math.hypot(*(part.half(alpha) for part in self.parts))

    def p_value(self, distance: float) -> float:
        """The two-sided p of a mean `distance` away: where the interval at 1 - p just reaches it."""
        if not self.variance:
            return 1.0 if distance == 0 else 0.0
        lowest, away = math.log(1e-15), abs(distance)
        if self.half(math.exp(lowest)) <= away:
            return math.exp(lowest)
        return math.exp(brentq(lambda log_p: self.half(math.exp(log_p)) - away, lowest, 0.0, xtol=1e-10))


@dataclass(frozen=True)
class Pseudo:
    """Clusters of average size, `count` (possibly fractional) at each of `values`, that stabilise a variance.

    Without them, values that happen to be equal would look certain. They do not count as knowledge of the mean (the
    variance is scaled back to the real clusters), but they do as knowledge of the variance (degrees of freedom).
    """

    values: tuple[float, float]
    count: float


# A win and a loss, where Agresti and Coull (1998) add two of each; here they change only the variance.
PROPORTION = Pseudo((1.0, 0.0), 1.0)
# Half a pair that differs each way, as Agresti and Min (2005) add to a table of pairs.
DIFFERENCE = Pseudo((1.0, -1.0), 0.5)


def _items(table: FloatArray, clusters: Clusters, pseudo: Pseudo | None) -> tuple[Part, float]:
    """The items' part, and the mean with the pseudo clusters.

    A cluster-robust variance with the CR2 correction of Bell and McCaffrey (2002), which for a mean divides each
    cluster's residual by the root of the other clusters' share; degrees of freedom are Satterthwaite's for clusters
    whose items move together.
    """
    codes, clustered = cluster_codes(clusters)
    sizes = np.bincount(codes, minlength=clustered).astype(np.float64)
    sums = np.bincount(codes, weights=table.mean(axis=0), minlength=clustered)
    freedom = max(1.0, (sizes**2).sum() ** 2 / (sizes**4).sum() - 1)
    counts, scale = np.ones(clustered), 1.0
    if pseudo is not None:
        average, more = sizes.mean(), 2 * pseudo.count
        sums = np.append(sums, average * np.array(pseudo.values))
        sizes, counts = np.append(sizes, [average] * 2), np.append(counts, [pseudo.count] * 2)
        scale, freedom = (clustered + more - 1) / clustered, freedom + more
    total = (counts * sizes).sum()
    mean = (counts * sums).sum() / total
    residuals = (sums - mean * sizes) ** 2 / (1 - sizes / total)
    return Part(float(scale * (counts * residuals).sum() / total**2), float(freedom)), float(mean)


def _cells(table: FloatArray, clusters: Clusters) -> float:
    """The variance of one seed's mean due to single cells (seed, item): what neither seed nor item explains."""
    seeds, n = table.shape
    codes, count = cluster_codes(clusters)
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    sums = np.stack([np.bincount(codes, weights=row, minlength=count) for row in rest])
    return float((sums**2).sum() / ((seeds - 1) * (count - 1)) * count / n**2)


# Seeds whose means agree more closely than their cells allow do so by chance, or because counts are whole numbers.
LEAST_SCATTER = 0.05


def mean_error(
    table: FloatArray, clusters: Clusters, pseudo: Pseudo | None, scatter: Part | None = None
) -> tuple[MeanError, float]:
    """The parts of the mean's error (scatter of the seeds' means, and of items beyond the cells'), and the mean.

    The seeds' means include the scatter of their cells, so that part is complete whatever the cells' share; it is at
    least a twentieth of that share. `scatter` is the seeds' part if several arms give a better estimate.
    """
    items, mean = _items(table, clusters, pseudo)
    seeds = len(table)
    if seeds == 1:
        return MeanError((items,)), mean
    cells = _cells(table, clusters) / seeds
    if scatter is None:
        scatter = Part(float(table.mean(axis=1).var(ddof=1)) / seeds, float(seeds - 1))
    least = Part(max(scatter.variance, LEAST_SCATTER * cells), scatter.freedom)
    return MeanError((Part(max(0.0, items.variance - cells), items.freedom), least)), mean


def pooled_scatter(tables: Sequence[FloatArray]) -> Part | None:
    """The seeds' part of a difference between two of A arms, from the scatter of all (S, n); None for one seed or arm.

    The mean square of arms by seeds, as in a two-way layout: (A - 1)(S - 1) degrees of freedom instead of the S - 1 of
    two arms alone. With two seeds, two arms would estimate their spread from one number.
    """
    means = np.stack([table.mean(axis=1) for table in tables])
    arms, seeds = means.shape
    if seeds < 2 or arms < 2:
        return None
    rest = means - means.mean(axis=0) - means.mean(axis=1, keepdims=True) + means.mean()
    freedom = float((arms - 1) * (seeds - 1))
    return Part(2 * float((rest**2).sum()) / freedom / seeds, freedom)


def mean_interval(values: Values, clusters: Clusters, *, level: float = 0.95) -> Interval:
    """Interval of the mean of `values` (n,) or (S, n) of items in `clusters` (n,); `n` counts items.

    No items, or a value that is not finite, give NaN throughout; a single cluster gives NaN bounds, since it says
    nothing about the spread between clusters. Raises ValueError if the lengths differ.
    """
    table = as_table(values)
    check_same_length(table[0], clusters)
    n = table.shape[1]
    if n == 0 or not np.isfinite(table).all():
        return nan_interval(n)
    mean = float(table.mean())
    if cluster_codes(clusters)[1] < 2:
        return Interval(mean, math.nan, math.nan, n)
    half = mean_error(table, clusters, None)[0].half(1 - level)
    return Interval(mean, mean - half, mean + half, n)


def proportion_interval(values: Values, clusters: Clusters, *, level: float = 0.95) -> Interval:
    """Interval of a mean of outcomes in [0, 1] (0 wrong or lost, 1 right or won, ties in between).

    Wilson's score interval for the number of independent trials that would have the mean's variance, with Student's
    quantile (Dean and Pagano 2015 for clusters); pseudo clusters stabilise the variance, so that "10 of 10" does not
    prove certainty and one tie more or less moves the bounds little. One cluster counts as one trial. No items give
    NaN with bounds 0 and 1, a NaN among them NaN throughout.
    Raises ValueError for outcomes outside [0, 1] and if the lengths differ.
    """
    table = as_table(values)
    check_same_length(table[0], clusters)
    n = table.shape[1]
    if np.isnan(table).any():
        return nan_interval(n)
    if ((table < 0) | (table > 1)).any():
        raise ValueError("outcomes of a proportion must be in [0, 1]")
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0)
    mean = float(table.mean())
    if cluster_codes(clusters)[1] < 2:
        return Interval(mean, *wilson_bounds(mean, 1.0, -float(stdtrit(1, (1 - level) / 2))), n)
    error, steadied = mean_error(table, clusters, PROPORTION)
    trials = steadied * (1 - steadied) / error.variance
    quantile = error.half(1 - level) / math.sqrt(error.variance)
    return Interval(mean, *wilson_bounds(mean, trials, quantile), n)


def paired_difference(
    x: Values,
    y: Values,
    clusters: Clusters,
    *,
    level: float = 0.95,
    scatter: Part | None = None,
    outcomes: bool | None = None,
) -> tuple[Interval, float]:
    """Interval of mean(x - y) and its two-sided p; x and y, (n,) or (S, n), are paired by item and seed.

    p is the level at which the interval just reaches 0, and at least 2 / 2^K for K clusters that differ, since no test
    symmetric in their signs can give less; without any difference it is 1. For wins, ties and losses (1, 0.5, 0), half
    a pair that differs each way stabilises the variance. Without bounds (a NaN, no items, one cluster) p is 1.
    `scatter` is the seeds' part if estimated from more arms than these two (`pooled_scatter`). `outcomes`: whether x
    and y are wins, ties and losses (default: if all values are). Raises ValueError if shapes differ.
    """
    first, second = as_table(x), as_table(y)
    check_same_length(first, second)
    check_same_length(first[0], second[0], clusters)
    difference = first - second
    n = difference.shape[1]
    if n == 0 or not np.isfinite(difference).all():
        return nan_interval(n), 1.0
    mean = float(difference.mean())
    codes, count = cluster_codes(clusters)
    if count < 2:
        return Interval(mean, math.nan, math.nan, n), 1.0
    outcomes = are_outcomes(first, second) if outcomes is None else outcomes
    error, _ = mean_error(difference, clusters, DIFFERENCE if outcomes else None, scatter)
    half = error.half(1 - level)
    differing = int((np.bincount(codes, weights=np.abs(difference).sum(axis=0), minlength=count) > 0).sum())
    p = 1.0 if not differing else min(1.0, max(error.p_value(mean), 2.0 ** (1 - differing)))
    low, high = mean - half, mean + half
    return Interval(mean, max(low, -1.0), min(high, 1.0), n) if outcomes else Interval(mean, low, high, n), p
