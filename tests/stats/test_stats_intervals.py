"""Wilson and cluster-bootstrap intervals."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from rlaif.stats import Interval, cluster_bootstrap_interval, proportion_interval, wilson_interval


def test_wilson_by_hand() -> None:
    # 8 of 10, z = 1.959964: centre (0.8 + z^2/20) / (1 + z^2/10) = 0.992073 / 1.384146 = 0.716740
    # half width z sqrt(0.16/10 + z^2/400) / 1.384146 = 1.959964 * 0.160025 / 1.384146 = 0.226578
    interval = wilson_interval(8, 10)
    assert (interval.estimate, interval.n) == (0.8, 10)
    assert interval.low == pytest.approx(0.716740 - 0.226578, abs=2e-5)
    assert interval.high == pytest.approx(0.716740 + 0.226578, abs=2e-5)
    # mutation: the plain normal interval is 0.8 -+ 0.248 and fails
    assert interval.high != pytest.approx(0.8 + 1.96 * math.sqrt(0.016), abs=1e-2)


@pytest.mark.parametrize(("k", "n"), [(0, 7), (7, 7), (3, 11), (500, 1000)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_wilson_against_scipy(k: int, n: int, level: float) -> None:
    other = binomtest(k, n).proportion_ci(level, method="wilson")
    interval = wilson_interval(k, n, level)
    assert (interval.low, interval.high) == pytest.approx((other.low, other.high), abs=1e-12)
    mirrored = wilson_interval(n - k, n, level)
    assert mirrored.low == pytest.approx(1 - interval.high, abs=1e-12)


def test_wilson_edges() -> None:
    for interval in (wilson_interval(0, 0), wilson_interval(math.nan, 5)):
        assert math.isnan(interval.estimate) and (interval.low, interval.high) == (0.0, 1.0)
    low, high = wilson_interval(4, 10), wilson_interval(5, 10)
    assert low.low < wilson_interval(4.5, 10).low < high.low
    assert wilson_interval(7, 7).high == 1.0 and wilson_interval(0, 7).low == 0.0
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(11, 10)


def test_bootstrap_matches_normal_theory_for_single_items() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    interval = cluster_bootstrap_interval(values, range(400), seed=0, resamples=8000)
    half = 1.959964 * values.std() / 20
    assert interval.estimate == pytest.approx(values.mean(), abs=1e-12)
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.05)


def test_bootstrap_respects_clusters() -> None:
    # 20 prompts with 10 identical answers each hold the information of 20 values, not of 200
    values = np.repeat(np.random.default_rng(1).normal(size=20), 10)
    clusters = [f"prompt-{i // 10}" for i in range(200)]
    wide = cluster_bootstrap_interval(values, clusters, seed=0, resamples=4000)
    same = cluster_bootstrap_interval(values[::10], range(20), seed=0, resamples=4000)
    assert (wide.low, wide.high) == pytest.approx((same.low, same.high), abs=1e-12)
    # mutation: ignoring clusters makes it about sqrt(10) times narrower
    naive = cluster_bootstrap_interval(values, range(200), seed=0, resamples=4000)
    assert (wide.high - wide.low) > 2.5 * (naive.high - naive.low)


def test_bootstrap_weighs_unequal_clusters_by_their_items() -> None:
    # cluster x: 0 0 0, cluster y: 1. Draws: xx -> 0, xy -> 1/4, yx -> 1/4, yy -> 1
    interval = cluster_bootstrap_interval([0, 0, 0, 1], list("xxxy"), seed=0, resamples=500, level=0.4)
    assert interval == Interval(0.25, 0.25, 0.25, 4)
    # mutation: the mean of cluster means is 1/2
    assert interval.estimate != 0.5


def test_bootstrap_coverage() -> None:
    rng, hits = np.random.default_rng(2), 0
    for trial in range(200):
        values = (rng.normal(size=(40, 1)) + rng.normal(size=(40, 3))).ravel()
        interval = cluster_bootstrap_interval(values, np.repeat(np.arange(40), 3), seed=trial, resamples=400)
        hits += interval.low <= 0 <= interval.high
    # 95% nominal, about 94% for 40 clusters: 4 standard errors of 200 trials below is 0.87
    assert 0.87 <= hits / 200 <= 0.99


def test_bootstrap_is_reproducible_and_seeded() -> None:
    values = np.random.default_rng(3).normal(size=30)
    first, again, other = (cluster_bootstrap_interval(values, range(30), seed=s) for s in (1, 1, 2))
    assert first == again and first != other


def test_bootstrap_edges() -> None:
    assert math.isnan(cluster_bootstrap_interval([], [], seed=0).estimate)
    assert math.isnan(cluster_bootstrap_interval([1.0, math.nan], [0, 1], seed=0).estimate)
    single = cluster_bootstrap_interval([1.0, 2.0], ["x", "x"], seed=0)
    assert single.estimate == 1.5 and math.isnan(single.low)
    with pytest.raises(ValueError, match="one length"):
        cluster_bootstrap_interval([1.0], [0, 1], seed=0)


def test_proportion_interval_chooses_its_method() -> None:
    outcomes = [1.0] * 8 + [0.0] * 2
    assert proportion_interval(outcomes, range(10), seed=0) == wilson_interval(8, 10)
    repeated = [i // 2 for i in range(10)]
    assert proportion_interval(outcomes, repeated, seed=0) == cluster_bootstrap_interval(
        outcomes, repeated, seed=0
    )
    tied = [*outcomes, 0.5]
    assert proportion_interval(tied, range(11), seed=0) == cluster_bootstrap_interval(tied, range(11), seed=0)
    # nothing to resample: 5 prompts of 2 wins each are 5 trials, and not certainty
    alike = proportion_interval([1.0] * 10, repeated, seed=0)
    assert (alike.low, alike.high, alike.n) == (wilson_interval(5, 5).low, 1.0, 10)
    empty = proportion_interval([], [], seed=0)
    assert math.isnan(empty.estimate) and (empty.low, empty.high) == (0.0, 1.0)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        proportion_interval([2.0], [0], seed=0)
