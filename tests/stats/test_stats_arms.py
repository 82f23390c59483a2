"""Which arms differ, on data with a known answer."""

import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.formula.api import ols
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from rlaif.stats import (
    Interval,
    arm_interval,
    holm,
    mean_interval,
    paired_difference,
    paired_test,
    paired_tests,
    proportion_interval,
    sign_test,
    tied_groups,
)
from rlaif.stats.means import pooled_scatter
from rlaif.stats.pairs import sign_tests


def same_interval(one: Interval, other: Interval) -> bool:
    ends = [(found.estimate, found.low, found.high) for found in (one, other)]
    return ends[0] == pytest.approx(ends[1], rel=1e-9, abs=1e-12) and one.n == other.n


def test_holm_is_over_all_pairs() -> None:
    # 6 to 0 disagreements: p = 2/64 = 0.03125 alone; with six arms, five of them alike, the family has 15 pairs.
    best = np.ones(50)
    arm = best.copy()
    arm[:6] = 0
    (alone,) = paired_tests({"best": best, "x": arm}, range(50))
    many = paired_tests({"best": best, **{f"x{i}": arm for i in range(5)}}, range(50))
    assert alone.p_holm == pytest.approx(0.03125)
    assert len(many) == 15 and {test.first for test in many[:5]} == {"best"}
    assert many[0].p_holm == pytest.approx(15 * 0.03125)
    # mutation: over only the best arm's pairs it would be 5 * 0.03125
    assert many[0].p_holm != pytest.approx(5 * 0.03125)


def test_continuous_scores_are_paired() -> None:
    rng = np.random.default_rng(0)
    item = rng.normal(0, 5, 120)
    arms = {"a": item + 1, "b": item + 0.98 + rng.normal(0, 0.3, 120), "c": item + rng.normal(0, 0.3, 120)}
    clusters = [i // 2 for i in range(120)]
    tests = {(test.first, test.second): test for test in paired_tests(arms, clusters)}
    best = max(arms, key=lambda name: arms[name].mean())
    other = "b" if best == "a" else "a"
    assert tests[best, other].p_holm > 0.05 > tests[best, "c"].p_holm
    interval, p = paired_difference(arms[best], arms["c"], clusters)
    assert same_interval(tests[best, "c"].difference, interval)
    assert tests[best, "c"].p_value == pytest.approx(p, rel=1e-9)
    # the arms' own intervals overlap: pairing, not overlap, tells c apart
    assert arm_interval(arms["c"], clusters).high > arm_interval(arms["a"], clusters).low


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="no arms"):
        paired_tests({}, [])
    with pytest.raises(ValueError, match="one length"):
        paired_tests({"a": [1.0], "b": [1.0, 0.0]}, [0])
    with pytest.raises(ValueError, match="finite"):
        paired_tests({"a": [float("nan")]}, [0])
    with pytest.raises(ValueError, match="number of seeds"):
        paired_tests({"x": [[1.0], [1.0]], "y": [1.0]}, [0])
    assert paired_tests({"a": [1.0, 0.0]}, [0, 1]) == []


def test_arms_over_seeds() -> None:
    rng = np.random.default_rng(3)
    best, poor = ((rng.random((3, 120)) < rate).astype(float) for rate in (0.65, 0.4))
    (test,) = paired_tests({"poor": poor, "best": best}, range(120))
    interval, p = paired_difference(best, poor, range(120))
    assert (test.first, test.second, test.n) == ("best", "poor", 120)
    assert same_interval(test.difference, interval) and test.p_value == test.p_holm < 0.05
    assert test.p_value == pytest.approx(p, rel=1e-9)
    gap = best.mean(0) - poor.mean(0)
    assert (test.ahead, test.behind) == ((gap > 0).sum(), (gap < 0).sum())
    assert arm_interval(best, range(120)) == proportion_interval(best, range(120))
    assert arm_interval([5.0, 7.0], [0, 1]) == mean_interval([5.0, 7.0], [0, 1])


def test_seeds_scatter_is_pooled_over_arms() -> None:
    # Means of three arms and two seeds; what neither arm nor seed explains, by statsmodels' two-way layout.
    means = np.array([[0.50, 0.56], [0.61, 0.60], [0.55, 0.65]])
    frame = pd.DataFrame(
        [{"arm": str(a), "seed": str(s), "y": means[a, s]} for a in range(3) for s in range(2)]
    )
    residual = ols("y ~ C(arm) + C(seed)", frame).fit()
    part = pooled_scatter([np.repeat(row[:, None], 4, axis=1) for row in means])
    assert part.freedom == residual.df_resid == 2
    assert part.variance == pytest.approx(2 * residual.mse_resid / 2)
    # Two arms: the scatter of their differences.
    two = pooled_scatter([np.repeat(row[:, None], 4, axis=1) for row in means[:2]])
    assert two.variance == pytest.approx(np.var(means[0] - means[1], ddof=1) / 2) and two.freedom == 1
    assert pooled_scatter([np.ones((1, 4))] * 3) is None


@pytest.mark.parametrize(("arms", "seeds"), [(2, 2), (5, 1), (6, 2)])
def test_a_table_of_equal_arms_errs_in_few_of_its_tables(arms: int, seeds: int) -> None:
    """Any pair that is told apart is an error of the table as a whole."""
    rng, wrong, best_only = np.random.default_rng(13), [], []
    for _ in range(200):
        item = 0.3 * rng.choice([-1, 1], 60)
        level = 0.6 + rng.normal(0, 0.02 * (seeds > 1), (arms, seeds, 1))
        tables = (rng.random((arms, seeds, 60)) < level + item).astype(float)
        tests = paired_tests({str(i): table for i, table in enumerate(tables)}, range(60))
        wrong.append(any(test.p_holm < 0.05 for test in tests))
        mine = [test.p_value for test in tests if test.first == tests[0].first]
        best_only.append(len(mine) * min(mine) < 0.05)
    assert np.mean(wrong) <= 0.05 + 0.03
    assert arms < 5 or np.mean(best_only) > np.mean(wrong), "over only the best one's pairs, more tables err"


def test_all_pairs_against_scipy_and_statsmodels() -> None:
    rng = np.random.default_rng(5)
    truth = rng.random(80)
    arms = {name: (truth < rate).astype(float) for name, rate in (("low", 0.5), ("top", 0.8), ("mid", 0.7))}
    arms["mid"][:3] = 1 - arms["mid"][:3]
    tests = paired_tests(arms, range(80))
    assert [(test.first, test.second) for test in tests] == [("top", "mid"), ("top", "low"), ("mid", "low")]
    raw = []
    for test in tests:
        x, y = arms[test.first], arms[test.second]
        table = [[((x == i) & (y == j)).sum() for j in (1, 0)] for i in (1, 0)]
        assert (test.ahead, test.behind, test.n) == (table[0][1], table[1][0], 80)
        raw.append(mcnemar(table, exact=True).pvalue)
        assert test.p_value == test.mcnemar == pytest.approx(raw[-1])
        assert test.difference.estimate == pytest.approx(x.mean() - y.mean())
    expected = multipletests(raw, method="holm")[1]
    assert [test.p_holm for test in tests] == pytest.approx(list(expected))
    # mutation: Holm over only the pairs with the best has two tests, not three
    assert [test.p_holm for test in tests[:2]] != pytest.approx(
        list(multipletests(raw[:2], method="holm")[1])
    )


def test_all_pairs_keep_repeated_prompts_together() -> None:
    # Two prompts decide all twelve items: McNemar alone would call 12 to 0 significant.
    x, y = np.ones(12), np.zeros(12)
    (test,) = paired_tests({"x": x, "y": y}, [i // 6 for i in range(12)])
    assert (test.ahead, test.behind) == (12, 0) and test.mcnemar == pytest.approx(2 * 0.5**12)
    assert test.p_value == test.p_holm == pytest.approx(0.5)
    assert paired_tests({"x": x}, range(12)) == []
    with pytest.raises(ValueError, match="no arms"):
        paired_tests({}, [])


def test_letters_by_hand() -> None:
    # best differs only from poor; mid is tied with both.
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
    assert not any(x < y for x in groups for y in groups), "no group contains another"
    assert "a" in letters[names[0]]


@pytest.mark.parametrize("kind", ["wins", "ties", "scores", "mixed", "alike"])
@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("per_prompt", [1, 3])
@pytest.mark.parametrize("outcomes", [None, False, True])
def test_many_pairs_at_once_are_the_pairs_one_at_a_time(kind, seeds, per_prompt, outcomes):
    """All columns of the table against `paired_test` and a count by hand; clusters of unequal size too."""
    rng = np.random.default_rng(7)
    n, arms = 31, {}
    for place in range(5):
        table = rng.random((seeds, n)) + 0.1 * place
        wins = (table > 0.6).astype(float)
        ties = np.where(rng.random((seeds, n)) < 0.2, 0.5, wins)
        scores = np.clip(table, 0, 1)
        own = {"wins": wins, "ties": ties, "scores": scores, "alike": np.ones((seeds, n))}
        arms[f"arm {place}"] = own.get(kind, (wins, ties, scores)[place % 3])
    prompts = [f"p{i // per_prompt}" for i in range(n)]
    tests = paired_tests(arms, prompts, outcomes=outcomes)
    assert len(tests) == 10
    order = sorted(arms, key=lambda name: -arms[name].mean())
    scatter = pooled_scatter(list(arms.values()))
    expected = [(x, y) for place, x in enumerate(order) for y in order[place + 1 :]]
    adjusted = holm({str(index): test.p_value for index, test in enumerate(tests)})
    for index, (test, (x, y)) in enumerate(zip(tests, expected, strict=True)):
        assert (test.first, test.second, test.n) == (x, y, n)
        found, p = paired_test(arms[x], arms[y], prompts, scatter, outcomes=outcomes)
        assert test.p_value == pytest.approx(p, rel=1e-8) and test.p_holm == adjusted[str(index)]
        assert same_interval(test.difference, found)
        gaps = [sum(a) - sum(b) for a, b in zip(arms[x].T, arms[y].T, strict=True)]
        assert test.ahead == sum(gap > 1e-12 for gap in gaps)
        assert test.behind == sum(gap < -1e-12 for gap in gaps)
        assert test.mcnemar == pytest.approx(sign_test(test.ahead, test.behind), rel=1e-9)


def test_one_cluster_has_no_bounds_in_the_table_of_pairs():
    (test,) = paired_tests({"a": [1.0, 0.0, 1.0], "b": [0.0, 0.0, 1.0]}, ["p", "p", "p"])
    assert math.isnan(test.difference.low) and test.p_value == 1.0 and (test.ahead, test.behind) == (1, 0)


def test_many_sign_tests_are_the_tests_one_at_a_time():
    wins, losses = (column.ravel() for column in np.meshgrid(np.arange(40), np.arange(0, 120, 3)))
    expected = [sign_test(int(k), int(m)) for k, m in zip(wins, losses, strict=True)]
    assert sign_tests(wins, losses) == pytest.approx(expected, rel=1e-9)
