"""The length-controlled win rate against statsmodels' GLM and on data with a known answer."""

import math

import numpy as np
import pytest
import statsmodels.api as sm

from rlaif.stats import cluster_bootstrap_interval, length_controlled_win_rate


def glm_oracle(y: np.ndarray, difference: np.ndarray) -> float:
    x = np.tanh(difference / difference.std())
    fit = sm.GLM(y, sm.add_constant(x), family=sm.families.Binomial()).fit(tol=1e-12)
    return float(1 / (1 + math.exp(-fit.params[0])))


def case(seed: int, n: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    policy, baseline = rng.poisson(40, n), rng.poisson(30, n)
    x = np.tanh((policy - baseline) / (policy - baseline).std())
    return (rng.random(n) < 1 / (1 + np.exp(-2 * x))).astype(float), policy, baseline


@pytest.mark.filterwarnings("ignore::statsmodels.tools.sm_exceptions.DomainWarning")
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fractional", [False, True])
def test_estimate_equals_statsmodels(seed: int, fractional: bool) -> None:
    y, policy, baseline = case(seed)
    y = (y + np.random.default_rng(seed).random(len(y))) / 2 if fractional else y
    interval = length_controlled_win_rate(y, policy, baseline, range(300), seed=0, resamples=50)
    assert interval.estimate == pytest.approx(glm_oracle(y, policy - baseline), abs=1e-8)
    assert interval.low < interval.estimate < interval.high


def test_wins_by_length_alone_disappear() -> None:
    y, policy, baseline = case(0, 2000)
    assert y.mean() > 0.7  # raw win rate
    interval = length_controlled_win_rate(y, policy, baseline, range(2000), seed=0, resamples=300)
    assert interval.low < 0.5 < interval.high
    # a true advantage at equal length stays
    rng = np.random.default_rng(1)
    fair = (rng.random(2000) < 0.7).astype(float)
    held = length_controlled_win_rate(fair, policy, baseline, range(2000), seed=0, resamples=300)
    assert held.low < 0.7 < held.high and held.low > 0.6


def test_swapping_the_sides_mirrors_the_rate() -> None:
    y, policy, baseline = case(2)
    forward = length_controlled_win_rate(y, policy, baseline, range(300), seed=0, resamples=200)
    backward = length_controlled_win_rate(1 - y, baseline, policy, range(300), seed=0, resamples=200)
    mirrored = (1 - backward.estimate, 1 - backward.high, 1 - backward.low)
    assert (forward.estimate, forward.low, forward.high) == pytest.approx(mirrored, abs=1e-9)
    # the unit of length does not matter
    scaled = length_controlled_win_rate(y, policy * 7, baseline * 7, range(300), seed=0, resamples=200)
    assert scaled.estimate == pytest.approx(forward.estimate, abs=1e-9)


def test_bootstrap_refits_everything_for_each_resample() -> None:
    y, policy, baseline = case(3, 60)
    clusters = np.arange(60) // 2
    interval = length_controlled_win_rate(y, policy, baseline, clusters, seed=5, resamples=300)
    rng, rates = np.random.default_rng(5), []
    for drawn in rng.multinomial(30, np.full(30, 1 / 30), size=300):
        rows = np.repeat(np.arange(60), drawn[clusters])
        rates.append(glm_oracle(y[rows], (policy - baseline)[rows]))
    low, high = np.quantile(rates, [0.025, 0.975])
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-6)


def test_degenerate_data_give_nan_and_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    cases = {
        "none": ([], [], []),
        "all won": ([1.0] * 20, range(20), [3] * 20),
        "separated": ([1, 1, 0, 0], [5, 6, 1, 2], [1, 1, 5, 5]),
        "constant difference": ([1, 0] * 10, [5] * 20, [3] * 20),
        "missing": ([1.0, math.nan], [1, 2], [2, 1]),
    }
    for name, (y, policy, baseline) in cases.items():
        interval = length_controlled_win_rate(y, policy, baseline, range(len(y)), seed=0, resamples=50)
        assert math.isnan(interval.estimate) and math.isnan(interval.low) and math.isnan(interval.high), name
        assert interval.n == len(y)
    assert not recwarn.list


def test_equal_lengths_need_no_control() -> None:
    y = [1.0, 0.0, 1.0, 0.5]
    interval = length_controlled_win_rate(y, [4] * 4, [4] * 4, range(4), seed=0)
    assert interval == cluster_bootstrap_interval(y, range(4), seed=0)
