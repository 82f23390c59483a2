"""Splits: hash fractions, and what must not move when another option does."""

from __future__ import annotations

import pytest

from rlaif.data.splits import check_fractions, check_max_rows, split_of
from rlaif.errors import UserError

KEYS = [f"key-{i}" for i in range(4000)]


def _splits(test: float, validation: float, seed: int = 0) -> dict[str, str]:
    return {key: split_of(key, test_fraction=test, validation_fraction=validation, seed=seed) for key in KEYS}


def test_shares_are_the_fractions():
    found = list(_splits(0.2, 0.1).values())
    # Binomial standard deviations at n = 4000: 25.3 and 19.0; four of each.
    assert abs(found.count("test") - 800) < 101
    assert abs(found.count("validation") - 400) < 76
    assert found.count("train") == 4000 - found.count("test") - found.count("validation")


def test_test_split_ignores_the_validation_fraction_and_grows_by_inclusion():
    narrow, wide = _splits(0.1, 0.0), _splits(0.1, 0.5)
    tests = {key for key in KEYS if narrow[key] == "test"}
    assert tests == {key for key in KEYS if wide[key] == "test"}
    doubled = _splits(0.2, 0.0)
    assert tests < {key for key in KEYS if doubled[key] == "test"}


def test_zero_and_one_sided_fractions():
    assert set(_splits(0.0, 0.0).values()) == {"train"}
    assert set(_splits(0.0, 0.3).values()) == {"train", "validation"}


def test_seed_redraws_the_split():
    first, second = _splits(0.5, 0.0, seed=0), _splits(0.5, 0.0, seed=1)
    agreement = sum(first[key] == second[key] for key in KEYS) / len(KEYS)
    assert abs(agreement - 0.5) < 4 * 0.0079  # independent fair coins, sd = sqrt(0.25 / 4000)


@pytest.mark.parametrize(
    ("fractions", "named"),
    [
        ({"test_fraction": -0.1, "validation_fraction": 0.1}, "task.test_fraction=-0.1"),
        ({"test_fraction": 0.1, "validation_fraction": 1.5}, "task.validation_fraction=1.5"),
        ({"test_fraction": 0.6, "validation_fraction": 0.4}, "leaves nothing to train on"),
        ({"test_fraction": 0.1, "validation_fraction": 0.1, "gold_fraction": 2}, "task.gold_fraction=2"),
    ],
)
def test_impossible_fractions(fractions, named):
    with pytest.raises(UserError, match=named):
        check_fractions(**fractions)


def test_impossible_row_limit():
    check_max_rows(None)
    check_max_rows(1)
    with pytest.raises(UserError, match="task.max_rows=0"):
        check_max_rows(0)
