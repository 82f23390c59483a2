"""Kappa, calibration and Brier score, by hand and against loops."""

import math

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student
from statsmodels.stats.inter_rater import cohens_kappa

from rlaif.stats import (
    ReliabilityBin,
    brier_score,
    cohen_kappa,
    expected_calibration_error,
    kappa_interval,
    proportion_interval,
    reliability_bins,
)


def test_kappa_by_hand() -> None:
    # 50 items: both yes 20, x only 5, y only 10, neither 15. Observed 0.7, expected .5 * .6 + .5 * .4 = .5
    x = ["yes"] * 25 + ["no"] * 25
    y = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(x, y) == cohen_kappa(y, x) == pytest.approx(0.4, abs=1e-12)
    assert cohen_kappa([0, 1, 2], [0, 1, 2]) == 1.0
    assert cohen_kappa([0, 1], [1, 0]) == -1.0
    assert math.isnan(cohen_kappa([1, 1], [1, 1])) and math.isnan(cohen_kappa([], []))


VERDICTS = ("win", "tie", "loss")


def _raters(n: int, seed: int) -> tuple[list[str], list[str]]:
    """Two raters who agree on about two items of three."""
    rng = np.random.default_rng(seed)
    x = [VERDICTS[i] for i in rng.choice(3, n, p=[0.5, 0.2, 0.3])]
    return x, [a if rng.random() < 0.6 else VERDICTS[rng.integers(3)] for a in x]


def _table(x: list[str], y: list[str]) -> np.ndarray:
    return np.array(
        [[sum(pair == (a, b) for pair in zip(x, y, strict=True)) for b in VERDICTS] for a in VERDICTS]
    )


def test_kappa_of_verdicts_against_statsmodels() -> None:
    """Three outcomes, unweighted; with many items the bootstrap is as wide as the asymptotic interval."""
    x, y = _raters(800, seed=1)
    found, expected = kappa_interval(x, y, range(800), seed=0), cohens_kappa(_table(x, y))
    assert found.estimate == pytest.approx(expected.kappa, abs=1e-12) and found.n == 800
    assert found.low == pytest.approx(expected.kappa_low, abs=0.01)
    assert found.high == pytest.approx(expected.kappa_upp, abs=0.01)


def test_kappa_is_resampled_by_whole_clusters() -> None:
    """Each item four times in its own cluster is no more evidence than once, but four independent items are."""
    x, y = _raters(60, seed=2)
    once = kappa_interval(x, y, range(60), seed=0)
    whole = kappa_interval(x * 4, y * 4, [*range(60)] * 4, seed=0)
    apart = kappa_interval(x * 4, y * 4, range(240), seed=0)
    assert (whole.estimate, whole.low, whole.high) == pytest.approx((once.estimate, once.low, once.high))
    assert apart.high - apart.low < 0.65 * (once.high - once.low)


def test_the_bootstrap_of_kappa_is_that_of_a_plain_loop() -> None:
    """Clusters of unequal size, drawn with the same numbers, kappa computed anew by the scalar function."""
    x, y = _raters(40, seed=3)
    clusters = [f"c{i // 3 if i < 20 else i}" for i in range(40)]
    names = list(dict.fromkeys(clusters))
    drawn = np.random.default_rng(5).multinomial(len(names), np.full(len(names), 1 / len(names)), size=300)
    kappas = []
    for times in drawn:
        chosen = [i for i, name in enumerate(clusters) for _ in range(times[names.index(name)])]
        kappas.append(cohen_kappa([x[i] for i in chosen], [y[i] for i in chosen]))
    found = kappa_interval(x, y, clusters, seed=5, resamples=300)
    below = np.mean([k <= found.low for k in kappas]), np.mean([k <= found.high for k in kappas])
    bias = norm.ppf(np.mean([(k < found.estimate) + (k == found.estimate) / 2 for k in kappas]))
    wide = student.ppf(0.975, len(names) - 1) * math.sqrt(len(names) / (len(names) - 1))
    assert below == pytest.approx((norm.cdf(2 * bias - wide), norm.cdf(2 * bias + wide)), abs=0.01)


def test_raters_who_always_agree_are_not_certain() -> None:
    # Half wins, half losses: agreement by chance is 1/2, so kappa's bound is twice the agreement's bound less 1.
    x = ["win", "loss"] * 6
    found = kappa_interval(x, x, range(12), seed=0)
    agreed = proportion_interval([1.0] * 12, range(12))
    assert (
        found.estimate == found.high == 1.0
        and found.low == pytest.approx(2 * agreed.low - 1)
        and found.low < 0.7
    )


def test_kappa_without_an_interval() -> None:
    assert math.isnan(kappa_interval(["tie"] * 9, ["tie"] * 9, range(9), seed=0).estimate)
    one = kappa_interval(["win", "loss", "tie"], ["win", "loss", "win"], ["p"] * 3, seed=0)
    assert one.estimate == pytest.approx(0.5) and math.isnan(one.low) and math.isnan(one.high)
    with pytest.raises(ValueError, match="one length"):
        kappa_interval(["win"], ["win"], range(2), seed=0)


def test_reliability_bins_by_hand() -> None:
    # two bins of width 1/2: {0.1, 0.3} with outcomes {0, 1}; {0.5, 1.0} with outcomes {1, 0.5}
    rows = reliability_bins([0.1, 0.3, 0.5, 1.0], [0, 1, 1, 0.5], 2)
    assert rows == [
        ReliabilityBin(0.0, 0.5, 2, pytest.approx(0.2), 0.5),
        ReliabilityBin(0.5, 1.0, 2, 0.75, 0.75),
    ]
    assert expected_calibration_error([0.1, 0.3, 0.5, 1.0], [0, 1, 1, 0.5], 2) == pytest.approx(
        0.15, abs=1e-12
    )


@pytest.mark.parametrize("seed", range(5))
def test_ece_and_brier_against_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, y = rng.random(60), rng.integers(0, 2, 60)
    total = 0.0
    for b in range(10):
        inside = [i for i in range(60) if b / 10 <= p[i] < (b + 1) / 10]
        if inside:
            total += abs(sum(p[i] - y[i] for i in inside)) / 60
    assert expected_calibration_error(p, y) == pytest.approx(total, abs=1e-12)
    assert brier_score(p, y) == pytest.approx(sum((p[i] - y[i]) ** 2 for i in range(60)) / 60, abs=1e-12)
    # mutation: without bins, errors of different sign cancel
    assert abs(p.mean() - y.mean()) < total - 1e-3


def test_calibrated_predictions_have_small_error_and_sharpened_ones_do_not() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    y = rng.random(20_000) < p
    assert expected_calibration_error(p, y) < 0.02
    sharp = p**3 / (p**3 + (1 - p) ** 3)
    assert expected_calibration_error(sharp, y) > 0.1


def test_rounding_does_not_move_a_prediction_across_an_edge() -> None:
    # 0.29 * 100 is 28.999999999999996 in floating point
    assert reliability_bins([0.29], [1.0], 100)[0].low == 0.29
    assert [row.n for row in reliability_bins([1 - 0.8, 0.2], [0.0, 1.0])] == [2]


def test_edges() -> None:
    assert math.isnan(expected_calibration_error([], [])) and math.isnan(brier_score([], []))
    assert reliability_bins([], []) == []
    for bad in ([1.5], [math.nan]):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            brier_score(bad, [1.0])
    with pytest.raises(ValueError, match="one length"):
        brier_score([0.5], [])
