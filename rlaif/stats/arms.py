"""Which arms of an ablation differ: each against the best one, or every pair of them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from rlaif.stats.intervals import (
    FloatArray,
    Interval,
    as_floats,
    check_same_length,
    cluster_bootstrap_interval,
    cluster_codes,
    proportion_interval,
)
from rlaif.stats.significance import holm, mcnemar_test, paired_bootstrap, sign_test


@dataclass(frozen=True)
class ArmComparison:
    """One arm against the best: its own interval, the paired difference to the best, and the verdict.

    `p_value` is Holm-adjusted over the arms; the best arm has difference 0 and p 1.
    """

    name: str
    estimate: float
    interval: Interval
    difference: Interval
    p_value: float
    tied: bool


@dataclass(frozen=True)
class PairedTest:
    """Two arms on the same `n` items, the better one first.

    `ahead` and `behind` count items on which `first` scores higher and lower, `mcnemar` is the exact
    McNemar test on them (each item by itself). `p_value` keeps items of one cluster together, `p_holm`
    adjusts it over all pairs of arms.
    """

    first: str
    second: str
    n: int
    ahead: int
    behind: int
    difference: Interval
    mcnemar: float
    p_value: float
    p_holm: float


def _is_binary(values: FloatArray) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _checked(
    arms: Mapping[str, Sequence[float] | FloatArray], clusters: Sequence[Hashable]
) -> dict[str, FloatArray]:
    if not arms:
        raise ValueError("no arms to compare")
    values = {name: as_floats(column) for name, column in arms.items()}
    check_same_length(clusters, *values.values())
    if not len(clusters) or not all(np.isfinite(column).all() for column in values.values()):
        raise ValueError("arms need at least one item and finite values")
    return values


def _paired(
    x: FloatArray, y: FloatArray, clusters: Sequence[Hashable], seed: int, resamples: int
) -> tuple[Interval, float]:
    """Interval of mean(x - y) and p: exact McNemar for 0/1 values of unrepeated clusters, else bootstrap."""
    difference, p = paired_bootstrap(x, y, clusters, seed=seed, resamples=resamples)
    if cluster_codes(clusters)[1] == len(clusters) and _is_binary(x) and _is_binary(y):
        p = mcnemar_test(x.astype(bool), y.astype(bool))
    return difference, p


def paired_tests(
    arms: Mapping[str, Sequence[float] | FloatArray],
    clusters: Sequence[Hashable],
    *,
    seed: int,
    resamples: int = 2000,
) -> list[PairedTest]:
    """Every pair of arms on the same items, Holm over all of them; the best arm's pairs come first.

    `arms`, `clusters` and the choice of test are as in `statistically_tied`; arms are ordered by their
    means, best first. Raises ValueError for what it does there.
    """
    values = _checked(arms, clusters)
    order = sorted(values, key=lambda name: -values[name].mean())
    tests = []
    for first, second in combinations(order, 2):
        x, y = values[first], values[second]
        difference, p = _paired(x, y, clusters, seed, resamples)
        ahead, behind = int((x > y).sum()), int((x < y).sum())
        mcnemar = sign_test(ahead, behind)
        tests.append(PairedTest(first, second, len(x), ahead, behind, difference, mcnemar, p, math.nan))
    adjusted = holm({str(index): test.p_value for index, test in enumerate(tests)})
    return [replace(test, p_holm=p) for test, p in zip(tests, adjusted.values(), strict=True)]


def statistically_tied(
    arms: Mapping[str, Sequence[float] | FloatArray],
    clusters: Sequence[Hashable],
    *,
    seed: int,
    resamples: int = 2000,
    alpha: float = 0.05,
) -> list[ArmComparison]:
    """Compare every arm with the best one (highest mean) on the same items; rows best first.

    `arms` maps a name to values (n,), item i being the same in all arms; `clusters` (n,) are the items'
    prompts. The test is exact McNemar for 0/1 values without repeated clusters, otherwise the paired
    bootstrap; an arm is tied when its Holm-adjusted p-value is at least `alpha`. The best arm is chosen
    on the same data, so small differences are, if anything, overstated.
    Raises ValueError for no arms, different lengths, no items, or values that are not finite.
    """
    values = _checked(arms, clusters)
    order = sorted(values, key=lambda name: -values[name].mean())
    best = values[order[0]]
    differences: dict[str, Interval] = {order[0]: Interval(0.0, 0.0, 0.0, len(clusters))}
    raw: dict[str, float] = {}
    for name in order[1:]:
        differences[name], raw[name] = _paired(values[name], best, clusters, seed, resamples)
    adjusted = {order[0]: 1.0, **holm(raw)}
    rows = []
    for name in order:
        bounded = bool(((values[name] >= 0) & (values[name] <= 1)).all())
        interval_of = proportion_interval if bounded else cluster_bootstrap_interval
        interval = interval_of(values[name], clusters, seed=seed, resamples=resamples)
        p = adjusted[name]
        rows.append(ArmComparison(name, interval.estimate, interval, differences[name], p, p >= alpha))
    return rows
