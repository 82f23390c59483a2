"""Hypothesis tests: exact if counts allow, paired by item, corrected over a family."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from rlaif.stats.intervals import FloatArray, check_same_length

ALPHA = 0.05
"""How often a table of equal arms may find a difference between any two of them."""


def binomial_test(k: int, n: int, p: float = 0.5) -> float:
    """Exact two-sided p-value of k successes in n trials of probability p; 1 for n = 0."""
    return 1.0 if n == 0 else float(binomtest(k, n, p).pvalue)


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided sign test of wins against losses (ties left out); 1 if there are neither."""
    return binomial_test(wins, wins + losses)


def clustered_sign_test(differences: Sequence[float] | FloatArray, clusters: Sequence[Hashable]) -> float:
    """Exact two-sided sign test with one vote per cluster, since its items are not independent.

    A cluster votes by the sign of the sum of its `differences` (n,); sums of zero are left out.
    """
    net: dict[Hashable, float] = {}
    for difference, cluster in zip(differences, clusters, strict=True):
        net[cluster] = net.get(cluster, 0.0) + float(difference)
    # Rounding in a sum must not tip a tie.
    votes = [round(value, 9) for value in net.values()]
    return sign_test(sum(vote > 0 for vote in votes), sum(vote < 0 for vote in votes))


def mcnemar_test(
    correct_x: Sequence[bool] | npt.NDArray[np.bool_], correct_y: Sequence[bool] | npt.NDArray[np.bool_]
) -> float:
    """Exact McNemar test of two arms' correctness (n,) on the same items; 1 if they never differ.

    Raises ValueError if the lengths differ.
    """
    check_same_length(correct_x, correct_y)
    x, y = np.asarray(correct_x, dtype=bool), np.asarray(correct_y, dtype=bool)
    return sign_test(int((x & ~y).sum()), int((~x & y).sum()))


Name = TypeVar("Name", bound=Hashable)


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Holm-adjusted p-values by name; a NaN stays NaN and does not count as a member of the family.

    The k-th smallest of m is multiplied by m - k + 1, and none falls below that of a smaller p (Holm 1979).
    """
    adjusted = dict.fromkeys(p_values, math.nan)
    family = sorted(
        ((p, name) for name, p in p_values.items() if not math.isnan(p)), key=lambda pair: pair[0]
    )
    reached = 0.0
    for rank, (p, name) in enumerate(family):
        reached = max(reached, min(1.0, p * (len(family) - rank)))
        adjusted[name] = reached
    return adjusted
