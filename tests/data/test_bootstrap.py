"""Bootstrap weights: Poisson(1), item by item, and member 0 as it would be alone."""

from math import exp, factorial

import pytest

from rlaif.stages.rm.bootstrap import bootstrap_counts


def test_the_first_member_takes_everything_once():
    assert bootstrap_counts("p", members=1, seed=0) == (1,)
    assert {bootstrap_counts(f"p{i}", members=3, seed=i)[0] for i in range(50)} == {1}


def test_counts_depend_on_seed_member_and_key_alone():
    keys = [f"pair-{i}" for i in range(200)]
    table = [bootstrap_counts(key, members=4, seed=1) for key in keys]
    assert [bootstrap_counts(key, members=2, seed=1) for key in keys] == [row[:2] for row in table]
    columns = [*zip(*table, strict=True)]
    assert len(set(columns)) == 4, "members differ"
    assert columns[1] != tuple(bootstrap_counts(key, members=2, seed=2)[1] for key in keys)


def test_counts_are_poisson():
    """Shares of 0, 1, 2, 3 and more copies among 20,000 draws lie within four standard errors."""
    draws = [bootstrap_counts(str(i), members=5, seed=3)[1:] for i in range(5000)]
    counts = [count for row in draws for count in row]
    for k in range(5):
        share, p = sum(count == k for count in counts) / len(counts), exp(-1) / factorial(k)
        assert share == pytest.approx(p, abs=4 * (p * (1 - p) / len(counts)) ** 0.5), k
    assert sum(counts) / len(counts) == pytest.approx(1.0, abs=4 / len(counts) ** 0.5)
    assert max(counts) > 4
