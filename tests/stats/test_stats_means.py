"""Means over items and seeds: by hand, against scipy and statsmodels, and by coverage of a known truth."""

import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student
from scipy.stats import ttest_1samp, ttest_rel

from rlaif.stats import mean_interval, paired_difference, proportion_interval


def test_single_items_are_students_t() -> None:
    values = np.random.default_rng(0).normal(3, 2, 40)
    found = mean_interval(values, range(40))
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    other = values + np.random.default_rng(1).normal(0.3, 1, 40)
    interval, p = paired_difference(values, other, range(40))
    theirs = ttest_rel(values, other)
    assert p == pytest.approx(theirs.pvalue, abs=1e-10)
    bounds = theirs.confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((bounds.low, bounds.high), rel=1e-12)


def test_equal_clusters_are_students_t_on_their_means() -> None:
    # 20 prompts with 10 answers each are worth 20 values, not 200.
    rng = np.random.default_rng(1)
    values = (rng.normal(size=(20, 1)) + 0.5 * rng.normal(size=(20, 10))).ravel()
    clusters = [f"prompt-{i // 10}" for i in range(200)]
    found = mean_interval(values, clusters)
    expected = ttest_1samp(values.reshape(20, 10).mean(1), 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    apart = mean_interval(values, range(200))
    assert found.high - found.low > 1.8 * (apart.high - apart.low), "mutation: clusters ignored"


def _cr2(values: np.ndarray, codes: np.ndarray) -> float:
    """Bell and McCaffrey's variance of a mean, by matrices: (I - H)^(-1/2) of each cluster on its residuals."""
    x = np.ones((len(values), 1))
    hat = x @ np.linalg.inv(x.T @ x) @ x.T
    residuals, meat = values - values.mean(), 0.0
    for code in set(codes):
        own = codes == code
        eigen, vectors = np.linalg.eigh(np.eye(own.sum()) - hat[np.ix_(own, own)])
        root = vectors @ np.diag(eigen**-0.5) @ vectors.T
        meat += float((x[own].T @ root @ residuals[own]).item()) ** 2
    return meat / len(values) ** 2


def test_unequal_clusters_against_the_matrices() -> None:
    rng = np.random.default_rng(2)
    sizes = [1, 2, 7, 3, 3, 5, 1, 9]
    codes = np.repeat(np.arange(8), sizes)
    values = rng.normal(size=8)[codes] + rng.normal(size=len(codes))
    found = mean_interval(values, codes)
    freedom = sum(s**2 for s in sizes) ** 2 / sum(s**4 for s in sizes) - 1
    half = student.ppf(0.975, freedom) * math.sqrt(_cr2(values, codes))
    assert found.high - found.estimate == pytest.approx(half, rel=1e-10)
    # statsmodels' cluster-robust errors, which lack the correction, are smaller.
    plain = sm.OLS(values, np.ones_like(values)).fit(cov_type="cluster", cov_kwds={"groups": codes})
    assert math.sqrt(_cr2(values, codes)) > plain.bse[0] * 0.99


def test_seeds_and_items_by_hand() -> None:
    # Seeds' means 2 and 4: variance 2, none of it from the additive cells; over 2 seeds 1, with 1 degree of freedom.
    # Items' means 2, 3, 4: variance 1, over 3 items 1/3, with 2 degrees of freedom. Half-widths add as squares.
    found = mean_interval([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]], range(3))
    half = math.hypot(student.ppf(0.975, 1), student.ppf(0.975, 2) * math.sqrt(1 / 3))
    assert (found.estimate, found.n) == (3.0, 3)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half))


def test_cells_alone_count_once() -> None:
    # Only cells vary: they explain the items' part, which drops out, so that only the seeds' means count.
    rng = np.random.default_rng(4)
    noise = rng.normal(size=(3, 400))
    found = mean_interval(noise, range(400))
    seeds = ttest_1samp(noise.mean(1), 0).confidence_interval(0.95)
    assert found.high - found.low == pytest.approx(seeds.high - seeds.low, rel=0.1)
    # Without them, seeds that agree leave the interval over items.
    item = rng.normal(size=400)
    same = mean_interval([item, item, item], range(400))
    alone = mean_interval(item, range(400))
    assert (same.low, same.high) == pytest.approx((alone.low, alone.high))


def test_seeds_that_agree_to_the_last_count_prove_no_spread_of_zero() -> None:
    # Means 3 and 3, though cells differ: (1 + 1 + 1 + 1) / 2 x 3 / 9 = 2/3 per seed, half of that in the mean of two.
    found = mean_interval([[1.0, 3.0, 5.0], [3.0, 1.0, 5.0]], range(3))
    items = 1.0 - 1 / 3  # from the items' means 2, 2, 5, beyond the cells
    half = math.hypot(student.ppf(0.975, 2) * math.sqrt(items), student.ppf(0.975, 1) * math.sqrt(0.05 / 3))
    assert found.high - found.estimate == pytest.approx(half)


def test_p_is_where_the_interval_reaches_zero() -> None:
    rng = np.random.default_rng(5)
    x, y = rng.normal(0.2, 1, (3, 60)), rng.normal(0, 1, (3, 60))
    interval, p = paired_difference(x, y, [i // 2 for i in range(60)])
    at, _ = paired_difference(x, y, [i // 2 for i in range(60)], level=1 - p)
    assert min(abs(at.low), abs(at.high)) == pytest.approx(0, abs=1e-8)
    assert (p < 0.05) == (not interval.low <= 0 <= interval.high)
    assert paired_difference(y, x, [i // 2 for i in range(60)])[1] == pytest.approx(p)


def test_few_items_that_differ_prove_little() -> None:
    # Three prompts that all agree are no better evidence than 2 / 2^3, and twelve items of two prompts than 2 / 2^2.
    assert paired_difference([1, 1, 1], [0, 0, 0], range(3))[1] == 0.25
    assert paired_difference(np.ones(12), np.zeros(12), [i // 6 for i in range(12)])[1] == 0.5
    same, p = paired_difference([1, 0, 1], [1, 0, 1], range(3))
    assert p == 1.0 and same.low < 0 < same.high, "three items that agree do not prove that all do"
    # Agresti and Min: half a differing pair is added in each direction, to 200 pairs; the variance is that of 200.
    none, _ = paired_difference(np.ones(200), np.ones(200), range(200))
    expected = student.ppf(0.975, 199) * math.sqrt(1 / (1 - 1 / 201) / 201**2 * 200 / 200)
    assert none.high == pytest.approx(expected, rel=2e-2)


def test_what_cannot_be_said() -> None:
    for found in (mean_interval([], []), mean_interval([1.0, math.nan], [0, 1])):
        assert math.isnan(found.estimate) and math.isnan(found.low)
    single = mean_interval([1.0, 2.0], ["x", "x"])
    assert single.estimate == 1.5 and math.isnan(single.low)
    empty = proportion_interval([], [])
    assert math.isnan(empty.estimate) and (empty.low, empty.high) == (0.0, 1.0)
    assert paired_difference([], [], [])[1] == 1.0
    assert paired_difference([1.0, math.nan], [0, 0], range(2))[1] == 1.0
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        proportion_interval([2.0], [0])
    with pytest.raises(ValueError, match="one length"):
        mean_interval([1.0], [0, 1])
    with pytest.raises(ValueError, match="shape"):
        mean_interval(np.zeros((2, 2, 2)), range(2))


# Proportions.


def test_all_right_is_wilsons_interval_with_students_quantile() -> None:
    for wins, n in ((24, 24), (30, 40), (0, 12)):
        found = proportion_interval([1.0] * wins + [0.0] * (n - wins), range(n))
        square = student.ppf(0.975, n + 1) ** 2
        rate = wins / n
        centre = (rate + square / (2 * n)) / (1 + square / n)
        half = math.sqrt(square * (rate * (1 - rate) / n + square / (4 * n**2))) / (1 + square / n)
        assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=4e-3)
        assert found.estimate == rate and 0 <= found.low <= found.high <= 1
    five = proportion_interval([1.0] * 10, [i // 2 for i in range(10)])
    ten = proportion_interval([1.0] * 10, range(10))
    assert five.low < ten.low, "five prompts with two wins each are five trials"


@settings(max_examples=60, deadline=None)
@given(st.integers(24, 60), st.integers(0, 60), st.integers(0, 3))
def test_an_item_more_moves_the_bounds_smoothly(n: int, wins: int, ties: int) -> None:
    """From lost to tied to won, both bounds rise, by no more than a few items' worth."""
    wins = min(wins, n - ties - 1)
    base = [1.0] * wins + [0.5] * ties + [0.0] * (n - wins - ties)
    steps = [proportion_interval([*base[:-1], last], range(n)) for last in (0.0, 0.5, 1.0)]
    for before, after in zip(steps, steps[1:], strict=False):
        assert before.low - 0.25 / n <= after.low <= before.low + 3 / n
        assert before.high - 0.25 / n <= after.high <= before.high + 3 / n


def _coverage(draw, truth: float, interval, trials: int = 1000) -> float:
    found = [interval(*draw()) for _ in range(trials)]
    return float(np.mean([one.low <= truth <= one.high for one in found]))


CASES = {  # items per cluster, clusters, rate, correlation within a cluster, ties
    "single": (1, 30, 0.7, 0.0, 0.0),
    "ties": (1, 30, 0.6, 0.0, 0.5),
    "clusters": (2, 15, 0.7, 0.5, 0.0),
    "large clusters": (5, 20, 0.65, 0.3, 0.1),
    "many": (1, 200, 0.9, 0.0, 0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_coverage_of_a_proportion(case: str) -> None:
    size, count, rate, alike, ties = CASES[case]
    rng, clusters = np.random.default_rng(7), np.repeat(np.arange(count), size)

    def draw():
        level = (
            rng.beta(rate * (1 - alike) / alike, (1 - rate) * (1 - alike) / alike, count) if alike else rate
        )
        won = (rng.random((count, size)) < np.broadcast_to(np.reshape(level, (-1, 1)), (count, size))).astype(
            float
        )
        won[rng.random((count, size)) < ties] = 0.5
        return won.ravel(), clusters

    covered = _coverage(draw, rate * (1 - ties) + 0.5 * ties, proportion_interval)
    # 93 to 97%, plus three standard errors at 1,000 trials (wider with 15 clusters).
    assert 0.93 - 0.02 <= covered <= 0.985


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 1.0, 5.0])
def test_coverage_over_seeds(seeds: int, spread: float) -> None:
    """`spread`: the seeds' standard deviation, in standard deviations of the items' mean."""
    rng, n = np.random.default_rng(11), 50

    def draw():
        level = rng.normal(0, spread * 0.4 / math.sqrt(n), (seeds, 1))
        return level + rng.normal(0, 0.4, n) + rng.normal(0, 0.25, (seeds, n)), range(n)

    covered = _coverage(draw, 0.0, mean_interval)
    assert 0.93 - 0.01 <= covered <= (1.0 if seeds == 2 else 0.995)
    # mutation: the mean over seeds taken as a single seed
    alone = _coverage(lambda: (lambda table, c: (table.mean(0), c))(*draw()), 0.0, mean_interval, 300)
    assert alone < covered - 0.03 or spread < 5


def test_arms_that_differ_in_their_seeds_alone_are_rarely_told_apart() -> None:
    rng, rejected, averaged = np.random.default_rng(3), [], []
    for _ in range(500):
        item = 0.3 * rng.choice([-1, 1], 200)
        x, y = (
            (rng.random((2, 200)) < 0.65 + rng.normal(0, 0.03, 2)[:, None] + item).astype(float)
            for _ in range(2)
        )
        rejected.append(paired_difference(x, y, range(200))[1] < 0.05)
        averaged.append(paired_difference(x.mean(0), y.mean(0), range(200))[1] < 0.05)
    assert np.mean(rejected) <= 0.05 + 0.02
    assert np.mean(averaged) > 0.12, "averaging the seeds first mistakes their luck for the recipe's merit"
