"""Hypothesis tests: exact where counts allow, paired by item, corrected over a family."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest
from statsmodels.stats.multitest import multipletests

from rlaif.stats.intervals import (
    FloatArray,
    Interval,
    as_floats,
    bootstrap_means,
    check_same_length,
    cluster_bootstrap_interval,
    cluster_codes,
)


def binomial_test(k: int, n: int, p: float = 0.5) -> float:
    """Exact two-sided p-value of k successes in n trials of probability p; 1 for n = 0."""
    return 1.0 if n == 0 else float(binomtest(k, n, p).pvalue)


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided sign test of wins against losses (ties left out); 1 when there are neither."""
    return binomial_test(wins, wins + losses)


def mcnemar_test(
    correct_x: Sequence[bool] | npt.NDArray[np.bool_], correct_y: Sequence[bool] | npt.NDArray[np.bool_]
) -> float:
    """Exact McNemar test of two arms' correctness (n,) on the same items; 1 when they never differ.

    Raises ValueError when the lengths differ.
    """
    check_same_length(correct_x, correct_y)
    x, y = np.asarray(correct_x, dtype=bool), np.asarray(correct_y, dtype=bool)
    return sign_test(int((x & ~y).sum()), int((~x & y).sum()))


def paired_bootstrap(
    x: Sequence[float] | FloatArray,
    y: Sequence[float] | FloatArray,
    clusters: Sequence[Hashable],
    *,
    seed: int,
    resamples: int = 2000,
) -> tuple[Interval, float]:
    """95% interval of mean(x - y) over the same items (n,) and its two-sided p-value.

    Whole clusters are resampled; p is twice the smaller tail of the draws at 0, counting the sample
    itself once. NaN or no items give a NaN interval and p = 1.
    """
    check_same_length(x, y, clusters)
    difference = as_floats(x) - as_floats(y)
    interval = cluster_bootstrap_interval(difference, clusters, seed=seed, resamples=resamples)
    if math.isnan(interval.low):
        return interval, 1.0
    # Rounding in the cluster sums must not tip a draw of exactly 0 to one side.
    draws = bootstrap_means(difference, clusters, seed, resamples)
    scale = 1e-12 * float(np.abs(difference).max())
    below, above = int((draws <= scale).sum()), int((draws >= -scale).sum())
    p = min(1.0, 2 * (min(below, above) + 1) / (resamples + 1))
    # With few clusters the draws reach 0 too rarely; no test that is symmetric in the sign of K
    # differing clusters can go below 2 / 2^K.
    codes, count = cluster_codes(clusters)
    differing = int((np.bincount(codes, weights=np.abs(difference), minlength=count) > 0).sum())
    return interval, min(1.0, max(p, 2.0 ** (1 - differing)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm-adjusted p-values by name; a NaN stays NaN and does not count as a member of the family."""
    family = [name for name, p in p_values.items() if not math.isnan(p)]
    adjusted = dict.fromkeys(p_values, math.nan)
    if family:
        corrected = multipletests([p_values[name] for name in family], method="holm")[1]
        adjusted.update(zip(family, (float(p) for p in corrected), strict=True))
    return adjusted
