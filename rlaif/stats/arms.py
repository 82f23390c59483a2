"""Which arms of an ablation differ: each against the best one, or every pair of them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from string import ascii_lowercase

import numpy as np

from rlaif.stats.crossed import as_table, crossed_difference, crossed_interval
from rlaif.stats.intervals import (
    FloatArray,
    Interval,
    check_same_length,
    cluster_bootstrap_interval,
    cluster_codes,
    proportion_interval,
)
from rlaif.stats.significance import holm, mcnemar_test, paired_bootstrap, sign_test

Values = Sequence[float] | Sequence[Sequence[float]] | FloatArray


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

    `ahead` and `behind` count items on which `first` scores higher and lower (over seeds: on average),
    `mcnemar` is the exact McNemar test on them (each item by itself). `p_value` keeps items of one cluster
    together, `p_holm` adjusts it over all pairs of arms.
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


def _checked(arms: Mapping[str, Values], clusters: Sequence[Hashable]) -> dict[str, FloatArray]:
    if not arms:
        raise ValueError("no arms to compare")
    values = {name: as_table(table) for name, table in arms.items()}
    check_same_length(clusters, *(table[0] for table in values.values()))
    if len({len(table) for table in values.values()}) > 1:
        raise ValueError(f"arms need one number of seeds, got {[len(table) for table in values.values()]}")
    if not len(clusters) or not all(np.isfinite(table).all() for table in values.values()):
        raise ValueError("arms need at least one item and finite values")
    return values


def _paired(
    x: FloatArray, y: FloatArray, clusters: Sequence[Hashable], seed: int, resamples: int
) -> tuple[Interval, float]:
    """Interval of mean(x - y) and p of (S, n): over seeds and items at once where there are several seeds.

    One seed: exact McNemar for 0/1 values of unrepeated clusters, else the bootstrap.
    """
    if len(x) > 1:
        return crossed_difference(x, y, clusters)
    difference, p = paired_bootstrap(x[0], y[0], clusters, seed=seed, resamples=resamples)
    if cluster_codes(clusters)[1] == len(clusters) and _is_binary(x) and _is_binary(y):
        p = mcnemar_test(x[0].astype(bool), y[0].astype(bool))
    return difference, p


def arm_interval(
    values: Values, clusters: Sequence[Hashable], *, seed: int, resamples: int = 2000
) -> Interval:
    """Interval of one arm's mean, of values (n,) or, over seeds and items at once, (S, n).

    One seed: `proportion_interval` for outcomes in [0, 1], else the cluster bootstrap.
    """
    table = as_table(values)
    if len(table) > 1:
        return crossed_interval(table, clusters)
    bounded = bool(((table >= 0) & (table <= 1)).all())
    interval_of = proportion_interval if bounded else cluster_bootstrap_interval
    return interval_of(table[0], clusters, seed=seed, resamples=resamples)


def paired_tests(
    arms: Mapping[str, Values],
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
        gap = x.mean(axis=0) - y.mean(axis=0)
        ahead, behind = int((gap > 0).sum()), int((gap < 0).sum())
        mcnemar = sign_test(ahead, behind)
        tests.append(
            PairedTest(first, second, len(clusters), ahead, behind, difference, mcnemar, p, math.nan)
        )
    adjusted = holm({str(index): test.p_value for index, test in enumerate(tests)})
    return [replace(test, p_holm=p) for test, p in zip(tests, adjusted.values(), strict=True)]


def statistically_tied(
    arms: Mapping[str, Values],
    clusters: Sequence[Hashable],
    *,
    seed: int,
    resamples: int = 2000,
    alpha: float = 0.05,
) -> list[ArmComparison]:
    """Compare every arm with the best one (highest mean) on the same items; rows best first.

    `arms` maps a name to values (n,), or (S, n) of S seeds, item i (and seed s) being the same in all
    arms; `clusters` (n,) are the items' prompts. With several seeds the test is `crossed_difference`, with
    one exact McNemar for 0/1 values without repeated clusters, otherwise the paired bootstrap; an arm is
    tied when its Holm-adjusted p-value is at least `alpha`. The best arm is chosen on the same data, so
    small differences are, if anything, overstated.
    Raises ValueError for no arms, different lengths or seeds, no items, or values that are not finite.
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
        interval = arm_interval(values[name], clusters, seed=seed, resamples=resamples)
        p = adjusted[name]
        rows.append(ArmComparison(name, interval.estimate, interval, differences[name], p, p >= alpha))
    return rows


def tied_groups(names: Sequence[str], different: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Letters for arms in order, such that two arms share a letter unless they are in `different`.

    A compact letter display by insertion and absorption (Piepho 2004): `a` holds the first arm.
    """
    groups: list[set[str]] = [set(names)]
    for x, y in different:
        split = [group - {out} for group in groups if {x, y} <= group for out in (x, y)]
        kept = [group for group in groups if not {x, y} <= group]
        for group in sorted(split, key=len, reverse=True):
            if not any(group <= other for other in kept):
                kept.append(group)
        groups = kept
    place = {name: index for index, name in enumerate(names)}
    groups.sort(key=lambda group: sorted(map(place.__getitem__, group)))
    letters = dict.fromkeys(names, "")
    for index, group in enumerate(groups):
        round_, letter = divmod(index, len(ascii_lowercase))
        for name in group:
            letters[name] += ascii_lowercase[letter] + (str(round_ + 1) if round_ else "")
    return letters
