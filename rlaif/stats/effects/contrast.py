"""An effect with its error, and whether it bears a claim out: superiority, its absence, or equivalence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.stats import norm

from rlaif.stats.intervals import Clusters, Interval, check_same_length, cluster_codes
from rlaif.stats.means import DIFFERENCE, MeanError, Part, Pseudo, Values, are_outcomes, as_table, mean_error

Relation = Literal["greater", "less", "not_greater", "not_less", "equal"]
RELATIONS: tuple[Relation, ...] = get_args(Relation)
State = Literal["supported", "contradicted", "undecided"]
POWER = 0.8


@dataclass(frozen=True)
class Effect:
    """An estimate from `n` items and `seeds` seeds, with the parts of its error."""

    estimate: float
    error: MeanError
    n: int
    seeds: int

    def interval(self, level: float = 0.95) -> Interval:
        """The central interval."""
        half = self.error.half(1 - level)
        return Interval(self.estimate, self.estimate - half, self.estimate + half, self.n)

    def p_value(self, bound: float = 0.0) -> float:
        """The two-sided p of the hypothesis that the effect is `bound`."""
        return self.error.p_value(self.estimate - bound)

    def detectable(self, relation: Relation, power: float = POWER) -> float:
        """The size that this much data would have found with probability `power`.

        For `equal` it is the smallest margin within which two arms without any difference would have been shown to be
        equal; otherwise the smallest effect whose 95% interval would have excluded 0.
        """
        if relation == "equal":
            return _reach(self.error, 0.10, (1 + power) / 2)
        return _reach(self.error, 0.05, power)


def _reach(error: MeanError, alpha: float, power: float) -> float:
    """Half-width at 1 - `alpha` and the distance by which the estimate exceeds its mean with 1 - `power`."""
    return error.half(alpha) + float(norm.ppf(power)) * math.sqrt(error.variance)


@dataclass(frozen=True)
class Decision:
    """What an effect says about a claim, and the two-sided p (of `equal`: that of two one-sided tests) behind it.

    `small`: the effect is there, but surely smaller than the smallest of interest.
    """

    state: State
    p_value: float
    small: bool = False


def contrast(
    arms: Mapping[str, Values],
    weights: Mapping[str, float],
    clusters: Clusters,
    *,
    null: float = 0.0,
    outcomes: bool | None = None,
) -> Effect:
    """The weighted sum of arms' means, minus `null`, on the same items (and seeds).

    `arms` maps names to values (n,) or (S, n); `weights` names those that count. Items of a cluster move together. Of
    wins, ties and losses (1, 0.5, 0) the variance is stabilised as in `paired_difference`, whose half a pair each way
    differs by as much as the weights allow; `outcomes` says whether they are (default: if all values are). Raises
    ValueError for an unknown arm, differing shapes, no items, a single cluster or values that are not finite.
    """
    if missing := sorted(set(weights) - set(arms)):
        raise ValueError(f"no arm {missing[0]}")
    tables = {name: as_table(arms[name]) for name in weights}
    first = next(iter(tables.values()))
    check_same_length(clusters, *(table[0] for table in tables.values()))
    check_same_length(*tables.values())
    total = sum((weight * tables[name] for name, weight in weights.items()), np.zeros_like(first)) - null
    if not first.shape[1] or not np.isfinite(total).all() or cluster_codes(clusters)[1] < 2:
        raise ValueError("an effect needs finite values of items in at least two clusters")
    if outcomes is None:
        outcomes = are_outcomes(*tables.values())
    most = max(1.0, sum(map(abs, weights.values())) / 2)
    pseudo = Pseudo((most, -most), DIFFERENCE.count)
    error, _ = mean_error(total, clusters, pseudo if outcomes else None)
    return Effect(float(total.mean()), error, first.shape[1], len(first))


def from_interval(found: Interval, *, null: float = 0.0, seeds: int = 1) -> Effect:
    """The effect of an estimate of which only a 95% interval is known, as if it were normally distributed."""
    half = (found.high - found.low) / 2
    part = Part((half / float(norm.ppf(0.975))) ** 2, math.inf)
    return Effect(found.estimate - null, MeanError((part,)), found.n, seeds)


def decide(effect: Effect, relation: Relation, smallest: float) -> Decision:
    """Whether the effect supports a claim that it is `greater` than 0, `equal` to 0 and so on.

    `smallest` is the smallest effect of interest, at least 0. Each verdict errs in at most 5% of cases.

    - `greater` (and `less`, mirrored) is supported by a 95% interval above 0, and contradicted by one that is not and
      lies below `smallest`: what would be of interest is ruled out.
    - `not_greater` (`not_less`) is its opposite.
    - `equal` is supported by two one-sided tests (Schuirmann 1987), that is by a 90% interval within `smallest` of 0,
      and contradicted by a 95% interval that lies wholly outside: a difference of interest. One that excludes 0 but
      not the bound leaves open whether the difference matters.
    """
    if relation == "equal":
        return _equal(effect, smallest)
    sign = -1.0 if relation in ("less", "not_less") else 1.0
    low, high = _signed(effect.interval(), sign)
    there, ruled_out = low > 0, high < smallest
    if relation in ("greater", "less"):
        state: State = "supported" if there else "contradicted" if ruled_out else "undecided"
        bound = smallest if state == "contradicted" else 0.0
    else:
        state = "supported" if ruled_out else "contradicted" if there else "undecided"
        bound = 0.0 if state == "contradicted" else smallest
    return Decision(state, effect.p_value(sign * bound), there and ruled_out)


def _signed(found: Interval, sign: float) -> tuple[float, float]:
    ends: Sequence[float] = sorted((sign * found.low, sign * found.high))
    return ends[0], ends[1]


def _equal(effect: Effect, smallest: float) -> Decision:
    # Two one-sided tests at 5% are a 90% interval; each one's p is half of the two-sided one.
    one_sided = [
        effect.p_value(bound) / 2 if inside else 1 - effect.p_value(bound) / 2
        for bound, inside in (
            (-smallest, effect.estimate > -smallest),
            (smallest, effect.estimate < smallest),
        )
    ]
    wide, narrow = effect.interval(), effect.interval(0.90)
    if -smallest < narrow.low and narrow.high < smallest:
        return Decision("supported", max(one_sided), wide.low > 0 or wide.high < 0)
    if wide.low > smallest or wide.high < -smallest:
        bound = smallest if wide.low > smallest else -smallest
        return Decision("contradicted", effect.p_value(bound))
    return Decision("undecided", max(one_sided))
