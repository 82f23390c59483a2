"""Exact tests against sums of binomials, the paired bootstrap by its error rates, Holm by hand."""

import math

import numpy as np
import pytest

from rlaif.stats import binomial_test, holm, mcnemar_test, paired_bootstrap, sign_test


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


def test_paired_bootstrap_uses_the_pairing() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 10, 200)
    better = base + 0.5 + rng.normal(0, 1, 200)
    interval, p = paired_bootstrap(better, base, range(200), seed=0)
    assert interval.estimate == pytest.approx((better - base).mean(), abs=1e-12)
    assert 0 < interval.low < 0.5 < interval.high and p < 0.01
    # mutation: breaking the pairing loses the effect in the items' spread
    _, unpaired = paired_bootstrap(better, rng.permutation(base), range(200), seed=0)
    assert unpaired > 0.1


def test_paired_bootstrap_is_antisymmetric() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=50), rng.normal(size=50)
    (forward, p), (backward, q) = (paired_bootstrap(*v, range(50), seed=3) for v in ((x, y), (y, x)))
    assert p == q
    assert (forward.low, forward.high) == pytest.approx((-backward.high, -backward.low), abs=1e-12)


def test_paired_bootstrap_error_rate_under_the_null() -> None:
    rng, rejected, naive = np.random.default_rng(2), 0, 0
    for trial in range(200):
        # 40 prompts with 4 answers that share most of their difference
        x = (rng.normal(size=(40, 1)) + 0.3 * rng.normal(size=(40, 4))).ravel()
        prompts = np.repeat(np.arange(40), 4)
        rejected += paired_bootstrap(x, 0 * x, prompts, seed=trial, resamples=300)[1] < 0.05
        naive += paired_bootstrap(x, 0 * x, range(160), seed=trial, resamples=300)[1] < 0.05
    assert rejected / 200 <= 0.11  # 5% nominal, 4 standard errors above
    assert naive / 200 > 0.2  # mutation: without clusters the test fires far too often


def test_paired_bootstrap_edges() -> None:
    interval, p = paired_bootstrap([1, 0, 1], [1, 0, 1], range(3), seed=0)
    assert (interval.low, interval.high, p) == (0.0, 0.0, 1.0)
    # three prompts that all agree cannot be better evidence than 2 / 2^3
    assert paired_bootstrap([1, 1, 1], [0, 0, 0], range(3), seed=0)[1] == 0.25
    assert paired_bootstrap([], [], [], seed=0)[1] == 1.0
    assert paired_bootstrap([1.0, math.nan], [0, 0], range(2), seed=0)[1] == 1.0


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.03, 0.04: 3 * 0.01 = 0.03; 2 * 0.03 = 0.06; max(0.06, 0.04) = 0.06
    adjusted = holm({"a": 0.04, "b": 0.01, "c": 0.03})
    assert adjusted == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06}, abs=1e-12)
    assert list(adjusted) == ["a", "b", "c"]
    # mutation: Bonferroni gives 0.12 for a
    assert adjusted["a"] != pytest.approx(0.12, abs=1e-3)


def test_holm_edges() -> None:
    assert holm({}) == {}
    adjusted = holm({"a": 0.02, "b": math.nan})
    assert adjusted["a"] == 0.02 and math.isnan(adjusted["b"])
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
