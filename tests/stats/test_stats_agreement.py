"""Kappa, calibration and Brier score, by hand and against loops."""

import math

import numpy as np
import pytest

from rlaif.stats import ReliabilityBin, brier_score, cohen_kappa, expected_calibration_error, reliability_bins


def test_kappa_by_hand() -> None:
    # 50 items: both yes 20, x only 5, y only 10, neither 15. Observed 0.7, expected .5 * .6 + .5 * .4 = .5
    x = ["yes"] * 25 + ["no"] * 25
    y = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(x, y) == cohen_kappa(y, x) == pytest.approx(0.4, abs=1e-12)
    assert cohen_kappa([0, 1, 2], [0, 1, 2]) == 1.0
    assert cohen_kappa([0, 1], [1, 0]) == -1.0
    assert math.isnan(cohen_kappa([1, 1], [1, 1])) and math.isnan(cohen_kappa([], []))


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
