"""Length-controlled win rate: what the win rate would be at equal length."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from scipy.special import expit

from rlaif.stats.intervals import (
    FloatArray,
    Interval,
    as_floats,
    check_same_length,
    cluster_codes,
    corrected_bounds,
    nan_interval,
    wilson_interval,
)
from rlaif.stats.means import proportion_interval

_CELLS = 500_000  # resamples x items fitted at once (memory)
_MAX_STEPS = 60
_MAX_SHARE_UNFITTED = 0.1
_NO_SPREAD = 1e-9


def _solve(weights: FloatArray, residual: FloatArray, curvature: FloatArray, x: FloatArray) -> FloatArray:
    """Newton steps (R, 2) of R two-parameter logistic fits."""
    g0, g1 = (weights * residual).sum(1), (weights * residual * x).sum(1)
    wv = weights * curvature
    h00, h01, h11 = wv.sum(1), (wv * x).sum(1), (wv * x**2).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1 / (h00 * h11 - h01**2)
        return np.stack([(h11 * g0 - h01 * g1) * inverse, (h00 * g1 - h01 * g0) * inverse], axis=1)


def _rates_at_equal_length(y: FloatArray, difference: FloatArray, weights: FloatArray) -> FloatArray:
    """Fitted win rates (R,) at length difference 0 for R weightings (R, n) of the items.

    Binomial GLM with logit link on an intercept and tanh(difference / its weighted deviation), by
    Newton's method. NaN if there is no finite maximum (separated outcomes, constant difference).
    """
    total = weights.sum(1, keepdims=True)
    mean = (weights * difference).sum(1, keepdims=True) / total
    deviation = np.sqrt((weights * (difference - mean) ** 2).sum(1, keepdims=True) / total)
    with np.errstate(divide="ignore", invalid="ignore"):
        x = np.tanh(difference / deviation)
    beta, step = np.zeros((len(weights), 2)), np.full((len(weights), 2), np.inf)
    for _ in range(_MAX_STEPS):
        mu = expit(beta[:, :1] + beta[:, 1:] * x)
        step = _solve(weights, y - mu, mu * (1 - mu), x)
        beta = beta + np.clip(step, -4, 4)
        # NaN compares false: a failed fit does not keep the others running.
        if not (np.abs(step) > 1e-10).any():
            break
    fitted = (np.abs(step).max(1) < 1e-8) & (np.abs(beta).max(1) < 25)
    return np.where(fitted, expit(beta[:, 0]), np.nan)


def _resampled_rates(
    y: FloatArray, difference: FloatArray, clusters: Sequence[Hashable], seed: int, resamples: int
) -> FloatArray:
    codes, count = cluster_codes(clusters)
    rng = np.random.default_rng(seed)
    chunk = max(1, _CELLS // len(y))
    rates = []
    for start in range(0, resamples, chunk):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(chunk, resamples - start))
        rates.append(_rates_at_equal_length(y, difference, drawn[:, codes].astype(np.float64)))
    return np.concatenate(rates)


def length_controlled_win_rate(
    p: Sequence[float] | FloatArray,
    length_policy: Sequence[float] | FloatArray,
    length_baseline: Sequence[float] | FloatArray,
    clusters: Sequence[Hashable],
    *,
    seed: int,
    resamples: int = 2000,
) -> Interval:
    """Win rate predicted at equal length, with a 95% interval.

    `p` (n,) are outcomes or preferences for the policy in [0, 1] (fractional values are fine); the lengths (n,)
    share a unit. A logistic GLM explains p by tanh(d / std(d)) of the length difference d and is read at d = 0; the
    whole fit, std included, is bootstrapped over `clusters`, and its percentiles are corrected for bias and widened
    for few clusters. Rates without any spread to resample (all outcomes equal, between 0 and 1) get Wilson's bounds
    with one trial per cluster. If all lengths are equal, this is the plain mean. If the fit has no finite solution
    (outcomes all 0, all 1 or separated by length, a constant non-zero difference), everything is NaN; if more than a
    tenth of the resamples have none, only the bounds are.
    Source: Dubois et al. 2024, length-controlled AlpacaEval (without its per-instruction term).
    """
    y, longer, shorter = as_floats(p), as_floats(length_policy), as_floats(length_baseline)
    check_same_length(y, longer, shorter, clusters)
    difference = longer - shorter
    if len(y) == 0 or not (np.isfinite(y).all() and np.isfinite(difference).all()):
        return nan_interval(len(y))
    if not difference.any():
        return proportion_interval(y, clusters)
    estimate = float(_rates_at_equal_length(y, difference, np.ones((1, len(y))))[0])
    if math.isnan(estimate):
        return nan_interval(len(y))
    rates = _resampled_rates(y, difference, clusters, seed, resamples)
    fitted = rates[~np.isnan(rates)]
    count = cluster_codes(clusters)[1]
    if count < 2 or len(fitted) < (1 - _MAX_SHARE_UNFITTED) * resamples:
        return Interval(estimate, math.nan, math.nan, len(y))
    if np.ptp(fitted) < _NO_SPREAD:
        wilson = wilson_interval(estimate * count, count)
        return Interval(estimate, wilson.low, wilson.high, len(y))
    return Interval(estimate, *corrected_bounds(fitted, estimate, 0.95, count), len(y))
