"""Ties among arms on data with a known answer."""

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from rlaif.stats import (
    holm,
    mcnemar_test,
    paired_bootstrap,
    paired_tests,
    statistically_tied,
    wilson_interval,
)


def test_binary_arms_use_mcnemar_and_holm() -> None:
    # best right on all 40; close misses 2 of them, poor misses 20
    best, close, poor = np.ones(40), np.ones(40), np.ones(40)
    close[:2], poor[:20] = 0, 0
    rows = statistically_tied({"poor": poor, "best": best, "close": close}, range(40), seed=0)
    assert [row.name for row in rows] == ["best", "close", "poor"]
    expected = holm({name: mcnemar_test(x == 1, best == 1) for name, x in (("close", close), ("poor", poor))})
    assert [row.p_value for row in rows] == [1.0, expected["close"], expected["poor"]]
    assert [row.tied for row in rows] == [True, True, False]
    assert rows[1].interval == wilson_interval(38, 40)
    assert rows[2].difference.estimate == -0.5 and rows[0].difference.estimate == 0.0


def test_continuous_arms_use_the_paired_bootstrap() -> None:
    rng = np.random.default_rng(0)
    item = rng.normal(0, 5, 120)
    arms = {"a": item + 1, "b": item + 0.98 + rng.normal(0, 0.3, 120), "c": item + rng.normal(0, 0.3, 120)}
    clusters = [i // 2 for i in range(120)]
    rows = {row.name: row for row in statistically_tied(arms, clusters, seed=4)}
    best = max(rows.values(), key=lambda row: row.estimate).name
    assert best in ("a", "b") and rows["a"].tied and rows["b"].tied and not rows["c"].tied
    interval, p = paired_bootstrap(arms["c"], arms[best], clusters, seed=4)
    assert rows["c"].difference == interval and rows["c"].p_value >= p
    # the arms' own intervals overlap: pairing, not overlap, tells c apart
    assert rows["c"].interval.high > rows["a"].interval.low


def test_holm_makes_a_difference() -> None:
    # 6 to 0 disagreements: p = 2/64 = 0.03125 alone, 5 * 0.03125 as the smallest of five equals
    best = np.ones(50)
    arm = best.copy()
    arm[:6] = 0
    alone = statistically_tied({"best": best, "x": arm}, range(50), seed=0)
    many = statistically_tied({"best": best, **{f"x{i}": arm for i in range(5)}}, range(50), seed=0)
    assert not alone[1].tied and alone[1].p_value == pytest.approx(0.03125)
    assert all(row.tied for row in many) and many[1].p_value == pytest.approx(0.15625)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="no arms"):
        statistically_tied({}, [], seed=0)
    with pytest.raises(ValueError, match="one length"):
        statistically_tied({"a": [1.0], "b": [1.0, 0.0]}, [0], seed=0)
    with pytest.raises(ValueError, match="finite"):
        statistically_tied({"a": [float("nan")]}, [0], seed=0)
    assert statistically_tied({"a": [1.0, 0.0]}, [0, 1], seed=0)[0].tied


def test_all_pairs_against_scipy_and_statsmodels() -> None:
    rng = np.random.default_rng(5)
    truth = rng.random(80)
    arms = {name: (truth < rate).astype(float) for name, rate in (("low", 0.5), ("top", 0.8), ("mid", 0.7))}
    arms["mid"][:3] = 1 - arms["mid"][:3]
    tests = paired_tests(arms, range(80), seed=0)
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
    # mutation: Holm against the best alone is over two tests, not three
    assert [test.p_holm for test in tests[:2]] != pytest.approx(
        list(multipletests(raw[:2], method="holm")[1])
    )


def test_all_pairs_keep_repeated_prompts_together() -> None:
    # Two prompts decide all twelve items: McNemar alone would call 12 to 0 significant.
    x, y = np.ones(12), np.zeros(12)
    (test,) = paired_tests({"x": x, "y": y}, [i // 6 for i in range(12)], seed=0)
    assert (test.ahead, test.behind) == (12, 0) and test.mcnemar == pytest.approx(2 * 0.5**12)
    assert test.p_value == test.p_holm == pytest.approx(0.5)
    assert paired_tests({"x": x}, range(12), seed=0) == []
    with pytest.raises(ValueError, match="no arms"):
        paired_tests({}, [], seed=0)
