"""Which arms of an ablation are statistically tied with its best one."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

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
from rlaif.stats.significance import holm, mcnemar_test, paired_bootstrap


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


def _is_binary(values: FloatArray) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


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
    if not arms:
        raise ValueError("no arms to compare")
    values = {name: as_floats(column) for name, column in arms.items()}
    check_same_length(clusters, *values.values())
    if not len(clusters) or not all(np.isfinite(column).all() for column in values.values()):
        raise ValueError("arms need at least one item and finite values")
    order = sorted(values, key=lambda name: -values[name].mean())
    best = values[order[0]]
    unique = cluster_codes(clusters)[1] == len(clusters)
    differences: dict[str, Interval] = {order[0]: Interval(0.0, 0.0, 0.0, len(clusters))}
    raw: dict[str, float] = {}
    for name in order[1:]:
        differences[name], raw[name] = paired_bootstrap(
            values[name], best, clusters, seed=seed, resamples=resamples
        )
        if unique and _is_binary(best) and _is_binary(values[name]):
            raw[name] = mcnemar_test(values[name].astype(bool), best.astype(bool))
    adjusted = {order[0]: 1.0, **holm(raw)}
    rows = []
    for name in order:
        bounded = bool(((values[name] >= 0) & (values[name] <= 1)).all())
        interval_of = proportion_interval if bounded else cluster_bootstrap_interval
        interval = interval_of(values[name], clusters, seed=seed, resamples=resamples)
        p = adjusted[name]
        rows.append(ArmComparison(name, interval.estimate, interval, differences[name], p, p >= alpha))
    return rows
