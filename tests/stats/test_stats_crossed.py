"""Means over seeds and items at once: by hand, by a plain loop, and by coverage on data of known truth."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from rlaif.stats import (
    arm_interval,
    cluster_bootstrap_interval,
    crossed_difference,
    crossed_interval,
    paired_tests,
    proportion_interval,
    statistically_tied,
    tied_groups,
    wilson_interval,
)


def test_by_hand() -> None:
    # Seeds' means 2 and 4: variance 2, over 2 seeds 1. Items' means 2, 3, 4: variance 1, over 3 items 1/3.
    # Squared error 4/3; freedom (4/3)^2 / (1^2/1 + (1/3)^2/2) = (16/9) / (19/18) = 32/19.
    found = crossed_interval([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]], range(3))
    half = student.ppf(0.975, 32 / 19) * math.sqrt(4 / 3)
    assert (found.estimate, found.n) == (3.0, 3)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half))


def test_repeated_prompts_are_one_draw() -> None:
    # Two prompts of three and one items. The mean is a ratio; its residual sums by prompt are +-d.
    table = np.array([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    found = crossed_interval(table, ["p", "p", "p", "q"])
    # Items' part: mean 3/4; sums of deviations 3/4 and -3/4; 2 * (9/16) * 2/1 / 4^2 = 9/64.
    half = student.ppf(0.975, 1) * math.sqrt(9 / 64)
    assert found.low == max(0.0, 0.75 - half) and found.high == min(1.0, 0.75 + half)
    scaled = crossed_interval(table * 100, ["p", "p", "p", "q"])
    assert scaled.high - scaled.estimate == pytest.approx(100 * half)
    apart = crossed_interval(table * 100, range(4))
    assert apart.high - apart.low < scaled.high - scaled.low


def test_equal_seeds_leave_the_items_alone() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, 400)
    found = crossed_interval([values, values, values], range(400))
    alone = cluster_bootstrap_interval(values, range(400), seed=0)
    assert found.estimate == pytest.approx(alone.estimate)
    assert found.high - found.low == pytest.approx(alone.high - alone.low, rel=0.05)


def test_no_spread_is_no_certainty() -> None:
    assert crossed_interval(np.ones((3, 12)), range(12)) == wilson_interval(12, 12)
    assert crossed_interval(np.ones((3, 12)), [i // 4 for i in range(12)]).low == wilson_interval(3, 3).low
    flat = crossed_interval(np.full((2, 5), 7.0), range(5))
    assert (flat.low, flat.high) == (7.0, 7.0)


def test_what_cannot_be_said() -> None:
    assert math.isnan(crossed_interval([[], []], []).estimate)
    assert math.isnan(crossed_interval([[1.0, math.nan], [1.0, 0.0]], [0, 1]).estimate)
    one = crossed_interval([[1.0, 0.0], [1.0, 1.0]], [0, 0])
    assert one.estimate == 0.75 and math.isnan(one.low) and math.isnan(one.high)
    with pytest.raises(ValueError, match="two of them"):
        crossed_interval([[1.0, 0.0]], [0, 1])
    with pytest.raises(ValueError, match="one length"):
        crossed_interval([[1.0, 0.0], [1.0, 0.0]], [0])
    with pytest.raises(ValueError, match="number of seeds"):
        paired_tests({"x": [[1.0], [1.0]], "y": [1.0]}, [0], seed=0)


def _tables(rng, seed_sd: float, rate: float = 0.65, seeds: int = 3, items: int = 120) -> np.ndarray:
    """0/1 outcomes: each seed's level and each item's difficulty shift the rate."""
    level = rate + rng.normal(0, seed_sd, seeds)[:, None] + 0.3 * rng.choice([-1, 1], items)
    return (rng.random((seeds, items)) < np.clip(level, 0, 1)).astype(float)


@pytest.mark.parametrize("seed_sd", [0.0, 0.03, 0.06])
def test_coverage(seed_sd: float) -> None:
    """Of 500 experiments on fresh seeds and items, about 95% of the intervals hold the truth."""
    rng = np.random.default_rng(7)
    tables = [_tables(rng, seed_sd) for _ in range(500)]
    covered = np.mean(
        [found.low <= 0.65 <= found.high for t in tables for found in [crossed_interval(t, range(120))]]
    )
    assert 0.925 <= covered <= 0.99
    # mutation: without the seeds' part, three times too many miss once seeds differ
    items_only = [proportion_interval(t.mean(0), range(120), seed=0, resamples=200) for t in tables]
    alone = np.mean([found.low <= 0.65 <= found.high for found in items_only])
    assert alone < covered and (alone < 0.85 or seed_sd < 0.06)


def test_equal_recipes_are_rarely_told_apart() -> None:
    """The two arms differ in nothing but their seeds: p < 0.05 in about 5% of experiments at most."""
    rng = np.random.default_rng(11)
    crossed, averaged = [], []
    for _ in range(400):
        item = 0.3 * rng.choice([-1, 1], 120)
        x, y = (
            (rng.random((3, 120)) < 0.65 + rng.normal(0, 0.05, 3)[:, None] + item).astype(float)
            for _ in range(2)
        )
        crossed.append(crossed_difference(x, y, range(120))[1] < 0.05)
        gap = x.mean(0) - y.mean(0)
        averaged.append(abs(gap.mean()) > 1.96 * gap.std(ddof=1) / math.sqrt(120))
    assert np.mean(crossed) <= 0.075
    assert np.mean(averaged) > 0.15, "averaging the seeds first takes their luck for the recipe"


def test_difference_by_hand_and_in_order() -> None:
    x = np.array([[3.0, 4.0, 8.0], [4.0, 6.0, 8.0]])
    y = np.array([[2.0, 2.0, 5.0], [1.0, 2.0, 3.0]])
    # x - y: [1 2 3] and [3 4 5], as in the first test.
    interval, p = crossed_difference(x, y, range(3))
    assert interval == crossed_interval(x - y, range(3))
    t = 3 / math.sqrt(4 / 3)
    # Three items differ: no test that is symmetric in their signs goes below 2 / 2^3.
    assert p == pytest.approx(max(0.25, 2 * student.sf(t, 32 / 19)))
    assert crossed_difference(y, x, range(3))[1] == p
    assert crossed_difference(x, x, range(3))[1] == 1.0
    wide = np.tile(x - y, 20)
    assert crossed_difference(wide, np.zeros_like(wide), range(60))[1] == pytest.approx(
        2
        * student.sf(
            3 / math.sqrt(1 + (2 / 3) * (60 / 59) / 60), _freedom(1.0, (2 / 3) * (60 / 59) / 60, 2, 60)
        )
    )


def _freedom(seeds: float, items: float, count: int, n: int) -> float:
    return (seeds + items) ** 2 / (seeds**2 / (count - 1) + items**2 / (n - 1))


def test_differences_between_0_and_1_are_no_proportion() -> None:
    # x beats y by 0 or 1 on each item: an interval of the difference may reach below 0.
    x = np.array([[1.0, 0, 0, 0], [1.0, 0, 0, 0]])
    interval, _ = crossed_difference(x, np.zeros((2, 4)), range(4))
    assert interval.low < 0 < interval.high


def test_arms_over_seeds() -> None:
    rng = np.random.default_rng(3)
    best, poor = _tables(rng, 0.0, 0.65), _tables(rng, 0.0, 0.4)
    tests = paired_tests({"poor": poor, "best": best}, range(120), seed=0)
    interval, p = crossed_difference(best, poor, range(120))
    assert [(test.first, test.second, test.n) for test in tests] == [("best", "poor", 120)]
    assert tests[0].difference == interval and tests[0].p_value == tests[0].p_holm == p < 0.05
    gap = best.mean(0) - poor.mean(0)
    assert (tests[0].ahead, tests[0].behind) == ((gap > 0).sum(), (gap < 0).sum())
    rows = statistically_tied({"poor": poor, "best": best}, range(120), seed=0)
    assert rows[0].interval == crossed_interval(best, range(120)) == arm_interval(best, range(120), seed=0)
    assert rows[1].p_value == p and not rows[1].tied
    assert arm_interval(best[:1], range(120), seed=0) == wilson_interval(best[0].sum(), 120)
    assert arm_interval([5.0, 7.0], [0, 1], seed=0) == cluster_bootstrap_interval([5.0, 7.0], [0, 1], seed=0)


def test_letters_by_hand() -> None:
    # best differs from poor alone; mid is tied with both.
    assert tied_groups(["best", "mid", "poor"], [("best", "poor")]) == {"best": "a", "mid": "ab", "poor": "b"}
    assert tied_groups(["x", "y"], []) == {"x": "a", "y": "a"}
    assert tied_groups(["x", "y", "z"], [("x", "y"), ("x", "z"), ("y", "z")]) == {
        "x": "a",
        "y": "b",
        "z": "c",
    }
    many = [f"x{i}" for i in range(30)]
    assert tied_groups(many, list(combinations(many, 2)))["x29"] == "d2"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_letters_say_what_differs_and_no_more(data) -> None:
    names = [f"n{i}" for i in range(data.draw(st.integers(1, 7)))]
    pairs = list(combinations(names, 2))
    different = [pair for pair in pairs if data.draw(st.booleans())]
    letters = tied_groups(names, different)
    for x, y in pairs:
        assert bool(set(letters[x]) & set(letters[y])) == ((x, y) not in different)
    groups = [
        {name for name in names if letter in letters[name]} for letter in set("".join(letters.values()))
    ]
    assert not any(x < y for x in groups for y in groups), "no group lies within another"
    assert "a" in letters[names[0]]
