"""Agreement and calibration of probabilistic judgements."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from rlaif.stats.intervals import (
    Clusters,
    FloatArray,
    Interval,
    as_floats,
    check_same_length,
    cluster_codes,
    corrected_bounds,
    nan_interval,
)
from rlaif.stats.means import proportion_interval

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


def kappa_interval(
    x: Sequence[Hashable],
    y: Sequence[Hashable],
    clusters: Clusters,
    *,
    seed: int,
    resamples: int = 2000,
) -> Interval:
    """Cohen's kappa of two raters (n,) with a 95% interval by a bootstrap over `clusters` (n,).

    Whole clusters are resampled, kappa with its expected agreement is computed anew, and the percentiles are corrected
    for bias and widened for few clusters. Raters that agree on everything have no spread to resample: their bounds are
    those of their agreement (`proportion_interval`) at the expected agreement that was seen. NaN where kappa is; a
    single cluster, or too many resamples in which both raters give one label, leave only the estimate.
    """
    check_same_length(x, y, clusters)
    estimate, n = cohen_kappa(x, y), len(x)
    if math.isnan(estimate):
        return nan_interval(n)
    tables = _tables_by_cluster(x, y, clusters)
    count = len(tables)
    if count < 2:
        return Interval(estimate, math.nan, math.nan, n)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    kappas = _kappas(np.tensordot(drawn.astype(np.float64), tables, axes=1))
    kappas = kappas[~np.isnan(kappas)]
    if estimate == 1 or (len(kappas) and np.ptp(kappas) < _NO_SPREAD):
        return Interval(estimate, *_bounds_by_agreement(x, y, clusters), n)
    if len(kappas) < (1 - _MAX_SHARE_UNDEFINED) * resamples:
        return Interval(estimate, math.nan, math.nan, n)
    return Interval(estimate, *corrected_bounds(kappas, estimate, 0.95, count), n)


_NO_SPREAD = 1e-9
_MAX_SHARE_UNDEFINED = 0.1


def _tables_by_cluster(x: Sequence[Hashable], y: Sequence[Hashable], clusters: Clusters) -> FloatArray:
    """How often each cluster has each pair of labels, (K, L, L)."""
    labels = {label: place for place, label in enumerate(dict.fromkeys([*x, *y]))}
    codes, count = cluster_codes(clusters)
    tables = np.zeros((count, len(labels), len(labels)))
    for cluster, a, b in zip(codes, x, y, strict=True):
        tables[cluster, labels[a], labels[b]] += 1
    return tables


def _kappas(tables: FloatArray) -> FloatArray:
    """Kappa of each table of counts, (R, L, L) to (R,); NaN where only one label is given."""
    total = tables.sum(axis=(1, 2))
    observed = np.trace(tables, axis1=1, axis2=2) / total
    expected = (tables.sum(axis=1) * tables.sum(axis=2)).sum(axis=1) / total**2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)


def _bounds_by_agreement(
    x: Sequence[Hashable], y: Sequence[Hashable], clusters: Clusters
) -> tuple[float, float]:
    same = [float(a == b) for a, b in zip(x, y, strict=True)]
    agreed, of_x, of_y = proportion_interval(same, clusters), Counter(x), Counter(y)
    expected = sum(times * of_y[label] for label, times in of_x.items()) / len(x) ** 2
    low, high = ((bound - expected) / (1 - expected) for bound in (agreed.low, agreed.high))
    return max(low, -1.0), min(high, 1.0)


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
