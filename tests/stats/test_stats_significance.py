"""Exact tests against sums of binomials, Holm by hand."""

import math

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from rlaif.stats import binomial_test, clustered_sign_test, holm, mcnemar_test, sign_test


def binomial_oracle(k: int, n: int, p: float) -> float:
    mass = [math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(n + 1)]
    return sum(m for m in mass if m <= mass[k] * (1 + 1e-7))


@pytest.mark.parametrize(("k", "n", "p"), [(0, 5, 0.5), (9, 10, 0.5), (3, 8, 0.3), (5, 10, 0.5)])
def test_binomial(k: int, n: int, p: float) -> None:
    assert binomial_test(k, n, p) == pytest.approx(binomial_oracle(k, n, p), abs=1e-12)


def test_sign_test_by_hand() -> None:
    # 5 wins, 0 losses: 2 / 2^5; 9 to 1: 2 (1 + 10) / 2^10
    assert sign_test(5, 0) == pytest.approx(2 / 32, abs=1e-15)
    assert sign_test(9, 1) == sign_test(1, 9) == pytest.approx(22 / 1024, abs=1e-15)
    assert sign_test(0, 0) == 1.0 == binomial_test(0, 0)
    # mutation: the one-sided p is half of it
    assert sign_test(5, 0) != pytest.approx(1 / 32, abs=1e-6)


def test_mcnemar_counts_disagreements_only() -> None:
    # x alone right 6 times, y alone once, 100 agreements: p = 2 (1 + 7) / 2^7 = 0.125
    x = [True] * 6 + [False] + [True] * 50 + [False] * 50
    y = [False] * 6 + [True] + [True] * 50 + [False] * 50
    assert mcnemar_test(x, y) == mcnemar_test(y, x) == pytest.approx(0.125, abs=1e-15)
    assert mcnemar_test(x, x) == 1.0
    with pytest.raises(ValueError, match="one length"):
        mcnemar_test([True], [True, False])


def test_one_vote_for_each_cluster() -> None:
    # p: +1 +1 -1 -> for; q: -1 -> against; r: +1 -1 -> no vote; six more for
    differences = [1, 1, -1, -1, 1, -1, *[0.5] * 6]
    clusters = ["p", "p", "p", "q", "r", "r", *"abcdef"]
    assert clustered_sign_test(differences, clusters) == sign_test(7, 1)
    assert clustered_sign_test([], []) == 1.0
    # mutation: votes by item would be three more
    assert clustered_sign_test(differences, range(12)) == sign_test(9, 3) != sign_test(7, 1)
    # 0.1 + 0.2 - 0.3 is no vote
    assert clustered_sign_test([0.1, 0.2, -0.3], "xxx") == 1.0


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.03, 0.04: 3 * 0.01 = 0.03; 2 * 0.03 = 0.06; max(0.06, 0.04) = 0.06
    adjusted = holm({"a": 0.04, "b": 0.01, "c": 0.03})
    assert adjusted == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06}, abs=1e-12)
    assert list(adjusted) == ["a", "b", "c"]
    # mutation: Bonferroni gives 0.12 for a
    assert adjusted["a"] != pytest.approx(0.12, abs=1e-3)


def test_holm_against_statsmodels() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 9):
        values = {str(i): float(p) for i, p in enumerate(rng.random(size) ** 3)}
        expected = multipletests(list(values.values()), method="holm")[1]
        assert list(holm(values).values()) == pytest.approx(list(expected))


def test_holm_edges() -> None:
    assert holm({}) == {}
    adjusted = holm({"a": 0.02, "b": math.nan})
    assert adjusted["a"] == 0.02 and math.isnan(adjusted["b"])
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
