"""Bradley-Terry strengths against closed forms, a direct maximisation, the jackknife and known players."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy.optimize import minimize

from rlaif.stats import bradley_terry, mean_interval

PAIRS = list(combinations(range(4), 2))


def drawn(seed: int, items: int, strengths=(1.0, 0.3, -0.4, -0.9)) -> np.ndarray:
    """Outcomes (items, pairs) of players with these strengths; a tenth are ties."""
    random = np.random.default_rng(seed)
    chance = [1 / (1 + math.exp(strengths[j] - strengths[i])) for i, j in PAIRS]
    wins = (random.random((items, len(PAIRS))) < chance).astype(float)
    return np.where(random.random(wins.shape) < 0.1, 0.5, wins)


def test_two_players_are_their_win_rate() -> None:
    outcomes = np.array([[1.0], [1.0], [0.5], [0.0], [1.0], [1.0]])
    found = bradley_terry([(0, 1)], outcomes)
    odds = math.log((4.5 + 0.5) / (1.5 + 0.5))
    assert found.values == pytest.approx([odds / 2, -odds / 2])
    # The variance of its parts is the delta method's: that of the outcomes over (p (1 - p))^2, half of it per player.
    p = 5 / 7
    slope = 1 / (7 * p * (1 - p)) * 6
    assert found.parts[:, 0].std() == pytest.approx(outcomes.std() * slope / 2)


def test_strengths_maximise_the_likelihood() -> None:
    outcomes = drawn(1, 40)
    outcomes[3:9, 2] = np.nan

    def cost(free: np.ndarray) -> float:
        s, total = np.append(free, 0.0), 0.0
        for column, (i, j) in enumerate(PAIRS):
            p = 1 / (1 + math.exp(s[j] - s[i]))
            own = [y for y in outcomes[:, column] if not math.isnan(y)] + [0.5]
            total -= sum(y * math.log(p) + (1 - y) * math.log(1 - p) for y in own)
        return total

    best = np.append(minimize(cost, np.zeros(3), tol=1e-10).x, 0.0)
    assert bradley_terry(PAIRS, outcomes).values == pytest.approx(best - best.mean(), abs=1e-4)


def test_parts_are_the_jackknife() -> None:
    """An item's part is, to first order, how the strengths move without it."""
    outcomes = drawn(2, 200)
    found = bradley_terry(PAIRS, outcomes)
    assert found.parts.mean(axis=0) == pytest.approx(found.values)
    for item in (0, 17, 150):
        without = bradley_terry(PAIRS, np.delete(outcomes, item, axis=0)).values
        pseudo = 200 * found.values - 199 * without
        assert found.parts[item] == pytest.approx(pseudo, abs=0.15)
    assert np.ptp(found.parts[:, 0]) > 2, "the bound above means something"


def test_intervals_of_parts_cover_the_truth() -> None:
    truth = np.array([1.0, 0.3, -0.4, -0.9]) - np.mean([1.0, 0.3, -0.4, -0.9])
    hits = []
    for seed in range(200):
        random = np.random.default_rng(seed)
        # Without ties, whose halves shrink the strengths.
        chance = [1 / (1 + math.exp(truth[j] - truth[i])) for i, j in PAIRS]
        found = bradley_terry(PAIRS, (random.random((96, len(PAIRS))) < chance).astype(float))
        for player in range(4):
            one = mean_interval(found.parts[:, player], list(range(96)))
            hits.append(one.low <= truth[player] <= one.high)
    assert 0.93 <= np.mean(hits) <= 0.97


def test_who_always_wins_is_finite_and_first() -> None:
    outcomes = np.tile([1.0, 1.0, 1.0, 0.5, 0.5, 0.5], (10, 1))
    found = bradley_terry(PAIRS, outcomes)
    assert np.isfinite(found.values).all() and found.values[0] > 1
    assert found.values[1:] == pytest.approx([-found.values[0] / 3] * 3)


def test_turning_a_pair_round_changes_nothing() -> None:
    outcomes = drawn(3, 30)
    turned = [(j, i) for i, j in PAIRS]
    one, two = bradley_terry(PAIRS, outcomes), bradley_terry(turned, 1 - outcomes)
    assert one.values == pytest.approx(two.values) and one.parts == pytest.approx(two.parts)


def test_players_who_never_met_are_refused() -> None:
    with pytest.raises(ValueError, match="never met"):
        bradley_terry([(0, 1), (2, 3)], np.ones((5, 2)))
    with pytest.raises(ValueError, match="do not fit"):
        bradley_terry([(0, 1)], np.ones((5, 2)))
