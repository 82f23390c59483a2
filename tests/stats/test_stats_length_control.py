"""The length-controlled win rate against statsmodels' GLM and on data with a known answer."""

import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.stats import norm

from rlaif.stats import length_controlled_win_rate, proportion_interval, wilson_interval

CODE = Path(__file__).resolve().parents[2]


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
    # Bias-corrected percentiles with Student's t quantile for 30 clusters, 2.04523 by the table.
    bias = norm.ppf(np.mean(np.array(rates) < interval.estimate))
    ends = [norm.cdf(2 * bias + sign * 2.04523 * math.sqrt(30 / 29)) for sign in (-1, 1)]
    assert (interval.low, interval.high) == pytest.approx(np.quantile(rates, ends), abs=1e-5)


@pytest.mark.parametrize(("n", "binary"), [(24, False), (24, True), (96, True)])
def test_the_interval_covers_what_it_says(n: int, binary: bool) -> None:
    """True rate of 0.82 or less at equal length; plain percentiles cover 92% for verdicts and miss on one side."""
    intercept, slope, runs = (1.5, 0.8, 250)
    noise = 0.0 if binary else 0.5

    def draw(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
        difference = rng.normal(3, 10, size).round()
        p = 1 / (
            1
            + np.exp(
                -(intercept - 1.2 * (n < 96))
                - slope * np.tanh(difference / 10)
                - noise * rng.normal(size=size)
            )
        )
        return (rng.random(size) < p).astype(float) if binary else p, difference

    rng = np.random.default_rng(3)
    truth = glm_oracle(*draw(rng, 200_000))
    held = 0
    for _ in range(runs):
        y, difference = draw(rng, n)
        found = length_controlled_win_rate(y, difference + 60, [60] * n, range(n), seed=0, resamples=300)
        held += found.low <= truth <= found.high
    assert 0.925 <= held / runs <= 0.985


def test_outcomes_all_alike_are_no_certainty() -> None:
    """Eight ties at different lengths: the bounds are those of eight trials, not 0.5 to 0.5."""
    interval = length_controlled_win_rate([0.5] * 8, range(3, 11), [5] * 8, range(8), seed=0)
    wanted = wilson_interval(4, 8)
    assert interval.estimate == pytest.approx(0.5, abs=1e-9)
    assert (interval.low, interval.high) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


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
    assert interval == proportion_interval(y, range(4))


def _benchmark() -> dict[str, Any]:
    return runpy.run_path(str(CODE / "experiments" / "benchmarks" / "length_control.py"))


def test_the_rate_is_alpaca_evals_without_its_leaderboard() -> None:
    """AlpacaEval's formula on length alone, L1 and cross-validation included, written anew in the benchmark.

    The formula with gamed baselines moves every rate to the same side of the raw one.
    """
    script = _benchmark()
    table = script["simulated"](5, 300)
    assert len(table.models) == 7
    for model in table.models.values():
        prompts = range(len(model.p))
        own = length_controlled_win_rate(
            model.p, model.length, model.baseline, prompts, seed=0, resamples=2
        ).estimate
        assert own == pytest.approx(script["alpaca_eval"]("minimal", model, table), abs=0.01)
        raw, published = model.p.mean(), script["alpaca_eval"]("v1", model, table)
        if abs(own - raw) > 0.02:
            assert (own - raw) * (published - raw) > 0


def test_the_benchmarks_fit_is_a_minimum() -> None:
    """L1 against a search on a grid around it, and without a penalty worth the name against statsmodels."""
    script = _benchmark()
    rng = np.random.default_rng(1)
    x, p = rng.normal(size=(200, 2)), rng.random(200)
    share = rng.random(200)
    for strength in (0.02, 0.1, 1.0):
        found = script["fit"](x, p, share, strength)

        def cost(weights: np.ndarray, c: float = strength) -> float:
            score = x @ weights
            return float(
                np.abs(weights).sum()
                + c * (share * (p * np.log1p(np.exp(-score)) + (1 - p) * np.log1p(np.exp(score)))).sum()
            )

        steps = np.linspace(-0.05, 0.05, 21)
        least = min(cost(found + np.array([a, b])) for a in steps for b in steps)
        assert cost(found) <= least + 1e-6
    assert not script["fit"](x, p, share, 1e-4).any(), "a strong penalty leaves nothing"
    free = script["fit"](x, p, np.ones(200), 1e6)
    fitted = sm.GLM(p, x, family=sm.families.Binomial()).fit(tol=1e-12).params
    assert free == pytest.approx(fitted, abs=1e-3)
