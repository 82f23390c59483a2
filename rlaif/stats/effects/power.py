"""Power before a run: how many items and seeds find a difference of a given size, from the scatter of earlier runs.

The difference of two arms on item i and seed s is modelled as mu + a_s + b_i + e_si (a two-way layout): seeds and items
are samples, and what neither explains belongs to the single cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from rlaif.stats.effects.contrast import POWER
from rlaif.stats.intervals import Clusters, FloatArray, check_same_length, cluster_codes
from rlaif.stats.means import MeanError, Part, Values, as_table

MOST = 1_000_000
"""Items beyond which the answer is that no number of them is enough."""


@dataclass(frozen=True)
class Components:
    """Variances of a paired difference: of seeds, of items, and of single cells (item, seed), with their evidence.

    An item is a whole cluster (a prompt, a conversation). With one seed, `cells` is part of `items` and `seeds` is NaN.
    `seed_freedom` and `item_freedom` are degrees of freedom; components of several comparisons are pooled by them.
    """

    seeds: float
    items: float
    cells: float
    seed_freedom: float
    item_freedom: float


def components(differences: Values, clusters: Clusters) -> Components | None:
    """The components of paired differences (n,) or (S, n), by the mean squares of the two-way layout.

    None below three clusters. Raises ValueError if the lengths differ.
    """
    given = as_table(differences)
    check_same_length(given[0], clusters)
    table = _by_cluster(given, clusters)
    seeds, n = table.shape
    if n < 3 or not np.isfinite(table).all():
        return None
    if seeds == 1:
        return Components(math.nan, float(table[0].var(ddof=1)), 0.0, 0.0, n - 1.0)
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    cells = float((rest**2).sum()) / ((seeds - 1) * (n - 1))
    items = max(0.0, float(table.mean(axis=0).var(ddof=1)) - cells / seeds)
    own = float(table.mean(axis=1).var(ddof=1)) - cells / n  # may be negative, and is so kept until pooled
    return Components(own, items, cells, seeds - 1.0, n - 1.0)


def _by_cluster(table: FloatArray, clusters: Clusters) -> FloatArray:
    """Means (S, K) over the clusters of (S, n)."""
    codes, count = cluster_codes(clusters)
    sizes = np.bincount(codes, minlength=count)
    return np.stack([np.bincount(codes, weights=row, minlength=count) / sizes for row in table])


def pooled(found: Sequence[Components]) -> Components:
    """Means of the components, weighed by their degrees of freedom; the variance of seeds is at least 0.

    Where some comparisons had several seeds, these alone count, since only they tell items from cells. Raises
    ValueError without any.
    """
    if not found:
        raise ValueError("nothing to pool")
    repeated = [one for one in found if one.seed_freedom > 0]
    known = repeated or found
    freedom = [one.item_freedom for one in known]
    items, cells = (
        float(np.average([getattr(one, name) for one in known], weights=freedom))
        for name in ("items", "cells")
    )
    scatter = sum(one.seed_freedom for one in repeated)
    seeds = math.nan
    if repeated:
        seeds = max(0.0, math.fsum(one.seeds * one.seed_freedom for one in repeated) / scatter)
    return Components(seeds, items, cells, scatter, sum(freedom))


def detectable(parts: Components, items: int, seeds: int, *, power: float = POWER) -> float:
    """The smallest difference that a 95% interval excludes 0 for with probability `power`.

    Of `items` items and `seeds` seeds. With one seed the claim is about that seed's two policies alone, and the
    variance of seeds has no part in it.
    """
    freedom, cells = max(1.0, items - 1.0), parts.cells / items
    if seeds == 1:
        error = MeanError((Part(parts.items / items + cells, freedom),))
    else:
        error = MeanError(
            (Part(parts.items / items, freedom), Part((parts.seeds + cells) / seeds, seeds - 1.0))
        )
    return error.half(0.05) + float(norm.ppf(power)) * math.sqrt(error.variance)


def items_needed(parts: Components, effect: float, seeds: int, *, power: float = POWER) -> int | None:
    """The fewest items with which `detectable` is at most `effect`; None if no number of them is enough."""
    low, high = 2, 4
    while detectable(parts, high, seeds, power=power) > effect:
        low, high = high, 2 * high
        if high > MOST:
            return None
    while low < high:
        middle = (low + high) // 2
        low, high = (
            (low, middle) if detectable(parts, middle, seeds, power=power) <= effect else (middle + 1, high)
        )
    return high
