"""Reward-model metrics on pairs small enough to count by hand."""

import math

import numpy as np
import pytest

from rlaif.evaluation import reward_report
from rlaif.records import Pair, Preference
from rlaif.stats import proportion_interval, wilson_interval


def make(p: list[float | None], gold: list[float | None]) -> tuple[list[Pair], list[Preference]]:
    pairs = [
        Pair(str(i), f"prompt-{i}", "p", "a", "b", "dataset", g, None if g is None else "human")
        for i, g in enumerate(gold)
    ]
    states = ["unparsed" if v is None else "ok" for v in p]
    preferences = [
        Preference(str(i), v, None, None, 1, s, "logprob")
        for i, (v, s) in enumerate(zip(p, states, strict=True))
    ]
    return pairs, preferences


def test_by_hand() -> None:
    pairs, preferences = make([0.9, 0.2, 0.7, 0.5, None], [1.0, 1.0, None, 0.0, 0.5])
    scores = [(2.0, 1.0), (0.0, 3.0), (1.0, 1.0), (5.0, 0.0), (1.0, 0.0)]
    lengths = [(10, 5), (9, 3), (4, 8), (1, 2), (7, 7)]
    report = reward_report(pairs, preferences, scores, lengths)
    assert report["rm/n"] == 5
    # labels of pairs 0, 1, 2 (0.5 and unparsed left out): right, right, equal rewards = half
    assert report["rm/accuracy"] == pytest.approx(2.5 / 3)
    expected = proportion_interval([1, 1, 0.5], range(3), seed=0)
    assert (report["rm/accuracy_ci_low"], report["rm/accuracy_ci_high"]) == (expected.low, expected.high)
    # gold of pairs 0, 1, 3: right, wrong, wrong
    assert report["rm/gold_accuracy"] == pytest.approx(1 / 3)
    assert report["rm/gold_accuracy_ci_low"] == wilson_interval(1, 3).low
    # longer is better on pairs 0, 1, 2: right, wrong, wrong
    assert report["rm/length_only_accuracy"] == pytest.approx(1 / 3)
    # Brier over pairs 0-3 with p = sigmoid of 1, -3, 0, 5
    p = [1 / (1 + math.exp(-d)) for d in (1, -3, 0, 5)]
    brier = sum((x - y) ** 2 for x, y in zip(p, [0.9, 0.2, 0.7, 0.5], strict=True)) / 4
    assert report["rm/brier"] == pytest.approx(brier, abs=1e-12)
    flat = np.corrcoef([2, 1, 0, 3, 1, 1, 5, 0, 1, 0], [10, 5, 9, 3, 4, 8, 1, 2, 7, 7])[0, 1]
    assert report["rm/length_correlation"] == pytest.approx(flat, abs=1e-12)
    # mutation: counting equal rewards as a vote for b gives 2 / 3
    assert report["rm/accuracy"] != pytest.approx(2 / 3)


def test_a_constant_reward_is_at_chance_and_has_no_correlation() -> None:
    pairs, preferences = make([0.9] * 3 + [0.1] * 7, [None] * 10)
    report = reward_report(pairs, preferences, [(1.0, 1.0)] * 10, [(3, 4)] * 10, prefix="val")
    assert report["val/accuracy"] == 0.5
    assert math.isnan(report["val/length_correlation"])
    assert "val/gold_accuracy" not in report


def test_swapping_every_pair_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    p, gold = rng.random(30).tolist(), rng.integers(0, 2, 30).astype(float).tolist()
    scores = [tuple(row) for row in rng.normal(size=(30, 2)).tolist()]
    lengths = [tuple(row) for row in rng.integers(1, 50, (30, 2)).tolist()]
    forward = reward_report(*make(p, gold), scores, lengths)
    mirrored = make([1 - v for v in p], [1 - v for v in gold])
    backward = reward_report(*mirrored, [s[::-1] for s in scores], [n[::-1] for n in lengths])
    assert forward == pytest.approx(backward, abs=1e-9)
    wrong = reward_report(*mirrored, scores, lengths)
    assert wrong["rm/accuracy"] == pytest.approx(1 - forward["rm/accuracy"])


def test_calibration_of_soft_labels() -> None:
    differences = np.linspace(-3, 3, 50)
    pairs, preferences = make((1 / (1 + np.exp(-differences))).tolist(), [None] * 50)
    scores = [(float(d), 0.0) for d in differences]
    exact = reward_report(pairs, preferences, scores, [(1, 2)] * 50)
    assert exact["rm/ece"] == pytest.approx(0.0, abs=1e-12) and exact["rm/brier"] < 1e-12
    doubled = reward_report(pairs, preferences, [(2 * a, b) for a, b in scores], [(1, 2)] * 50)
    assert doubled["rm/ece"] > 0.05


def test_columns_must_fit() -> None:
    pairs, preferences = make([0.9], [None])
    with pytest.raises(ValueError, match="do not match"):
        reward_report(pairs, preferences, [], [(1, 1)])
    with pytest.raises(ValueError, match="more than one"):
        reward_report(pairs, preferences * 2, [(1.0, 0.0)], [(1, 1)])
    assert reward_report([], [], [], []) == {"rm/n": 0}
