"""The fitted temperature: a known one is recovered, and none on a fine grid fits better."""

import math

import numpy as np
import pytest

from rlaif.stats import fit_temperature
from rlaif.stats.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE


def loss(logits, p, temperature: float) -> float:
    """Mean cross-entropy of soft outcomes, pair by pair."""
    total = 0.0
    for x, y in zip(logits, p, strict=True):
        total += y * math.log1p(math.exp(-x / temperature)) + (1 - y) * math.log1p(math.exp(x / temperature))
    return total / len(logits)


@pytest.mark.parametrize("true", [0.25, 1.0, 3.7])
def test_a_known_temperature_is_recovered_from_soft_labels(true: float) -> None:
    logits = np.random.default_rng(1).normal(scale=2, size=200)
    p = 1 / (1 + np.exp(-logits / true))
    assert fit_temperature(logits, p) == pytest.approx(true, rel=1e-6)
    # mutation: fitting 1 / T instead of T is only right at 1
    assert fit_temperature(logits, p) != pytest.approx(1 / true, rel=1e-3) or true == 1.0


def test_a_known_temperature_is_recovered_from_draws() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(scale=4, size=60_000)
    drawn = rng.random(60_000) < 1 / (1 + np.exp(-logits / 2.5))
    assert fit_temperature(logits, drawn.astype(float)) == pytest.approx(2.5, rel=0.03)


def test_by_hand_and_against_a_grid() -> None:
    # One logit of 2 that is right three times out of four: sigmoid(2 / T) = 3 / 4, so 2 / T = log 3.
    assert fit_temperature([2.0] * 4, [1.0, 1.0, 0.0, 1.0]) == pytest.approx(2 / math.log(3), rel=1e-9)
    rng = np.random.default_rng(3)
    logits, p = rng.normal(size=40) * 3, rng.random(40)
    p = np.where(rng.random(40) < 0.8, (logits > 0) * 0.8 + 0.1, p)
    found = fit_temperature(logits, p)
    best = min(np.geomspace(0.2, 50, 4001), key=lambda t: loss(logits, p, t))
    assert found == pytest.approx(best, rel=2e-3)
    assert loss(logits, p, found) < min(loss(logits, p, found * 1.02), loss(logits, p, found / 1.02))


def test_where_no_temperature_is_best() -> None:
    assert fit_temperature([1.0, -2.0], [1.0, 0.0]) == MIN_TEMPERATURE, "separable: ever sharper"
    assert fit_temperature([1.0, -2.0], [0.0, 1.0]) == MAX_TEMPERATURE, "reversed: ever softer"
    assert math.isnan(fit_temperature([0.0, 0.0], [0.0, 1.0])) and math.isnan(fit_temperature([], []))


def test_swapping_the_sides_changes_nothing() -> None:
    rng = np.random.default_rng(4)
    logits, p = rng.normal(size=50), rng.random(50)
    side = rng.random(50) < 0.5
    other = fit_temperature(np.where(side, -logits, logits), np.where(side, 1 - p, p))
    assert fit_temperature(logits, p) == pytest.approx(other, rel=1e-9)


def test_bad_input_is_refused() -> None:
    for logits, p in (([1.0], [1.2]), ([math.inf], [0.5]), ([1.0, 2.0], [0.5])):
        with pytest.raises(ValueError):
            fit_temperature(logits, p)
