"""Where a labeler is right and where it wavers: by its confidence, and by the length of what it prefers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from rlaif.records import Pair, Preference
from rlaif.stages.common.measures.joining import Scored, agreement, by_pair, rate_metrics, with_bounds
from rlaif.stats import paired_test

# Edges of |p - 0.5|. Fixed, so that labelers can be compared, and fine near 0, where small models stay.
CONFIDENCE_EDGES = (0.0, 0.02, 0.05, 0.15, 0.3, 0.5)
# Lengths that differ by no more than this share of the longer one are similar.
SIMILAR_LENGTH = 0.1
LENGTHS = ("shorter", "similar", "longer")


def confidence_bins(pairs: Sequence[Pair], preferences: Sequence[Preference]) -> list[dict[str, Any]]:
    """A row for each bin [low, high) of |p - 0.5| that has pairs, the last bin closed.

    `n` and `alignment` are of the parsed gold pairs in the bin; `flip_n` and `flip_rate` are of all pairs judged in
    both orders, a flip being a verdict that changes when the order is swapped (position bias, Lee et al. 2023,
    arXiv:2309.00267). p is the preference over both orders, or the mean of the orders if `both_consistent` set the
    pair aside. `bin` is where the bin begins: the preferred response's p in percent. Raises ValueError for a
    preference of an unknown pair.
    """
    pair_of = by_pair(pairs, preferences)
    right: dict[int, list[Scored]] = {}
    flips: dict[int, list[Scored]] = {}
    for x in preferences:
        pair, p = pair_of[x.pair_id], _averaged(x)
        if p is None:
            continue
        if x.p_a is not None and pair.gold not in (None, 0.5):
            right.setdefault(confidence_bin(p), []).append((pair.cluster, agreement(x.p_a, pair.gold)))
        if x.p_ab is not None and x.p_ba is not None and x.provenance != "rule":
            flipped = float((x.p_ab - 0.5) * (x.p_ba - 0.5) < 0)
            flips.setdefault(confidence_bin(p), []).append((pair.cluster, flipped))
    return [
        edges
        | rate("n", "alignment", right.get(index, []))
        | rate("flip_n", "flip_rate", flips.get(index, []))
        for index, edges in enumerate(confidence_edges())
        if index in right or index in flips
    ]


def length_bins(pairs: Sequence[Pair], preferences: Sequence[Preference]) -> list[dict[str, Any]]:
    """Alignment on pairs whose preferred response, to the labeler, is shorter, of similar length, or longer.

    Lengths in characters; similar ones differ by at most 10% of the longer. Undecided pairs (p = 0.5) are left out.
    Raises ValueError for a preference of an unknown pair.
    """
    pair_of = by_pair(pairs, preferences)
    right: dict[str, list[Scored]] = {}
    for pair, p_a in _decided_gold(pair_of, preferences):
        a, b = len(pair.response_a), len(pair.response_b)
        name = length_bin(a, b) if p_a > 0.5 else length_bin(b, a)
        right.setdefault(name, []).append((pair.cluster, agreement(p_a, pair.gold)))
    return [{"bin": name} | rate("n", "alignment", right[name]) for name in LENGTHS if name in right]


def verbosity(pairs: Sequence[Pair], preferences: Sequence[Preference]) -> dict[str, float]:
    """How often the labeler prefers the longer response, compared with gold on the same pairs.

    Over decided gold pairs of unequal length (characters). `label/verbosity_gap` is the labeler's rate minus gold's,
    with a paired interval clustered by prompt. Empty without such pairs.
    """
    rows = [
        (pair, p_a, len(pair.response_a) > len(pair.response_b))
        for pair, p_a in _decided_gold(by_pair(pairs, preferences), preferences)
        if len(pair.response_a) != len(pair.response_b)
    ]
    if not rows:
        return {}
    labeler = [float((p_a > 0.5) == a_longer) for _, p_a, a_longer in rows]
    gold = [agreement(float(a_longer), pair.gold) for pair, _, a_longer in rows]
    gap, _ = paired_test(labeler, gold, [pair.cluster for pair, _, _ in rows])
    return {
        "label/longer_rate": fmean(labeler),
        "label/gold_longer_rate": fmean(gold),
        **with_bounds("label/verbosity_gap", gap),
        "label/verbosity_n": len(rows),
    }


def bin_metrics(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Rows as flat metrics `<name>_<bin>_<column>`; columns for which a bin has no pairs are absent."""
    return {
        f"{name}_{row['bin']}_{column}": value
        for row in rows
        for column, value in row.items()
        if column not in ("bin", "low", "high") and value is not None
    }


def _averaged(x: Preference) -> float | None:
    if x.p_a is not None:
        return x.p_a
    return None if x.p_ab is None or x.p_ba is None else (x.p_ab + x.p_ba) / 2


def confidence_edges() -> list[dict[str, Any]]:
    """The columns that name a confidence bin: the preferred response's p in percent, and |p - 0.5|."""
    return [
        {"bin": f"{50 + 100 * low:.0f}", "low": low, "high": high} for low, high in pairwise(CONFIDENCE_EDGES)
    ]


def confidence_bin(p: float) -> int:
    """Which bin of `CONFIDENCE_EDGES` |p - 0.5| falls into, from 0."""
    # Rounded first: 0.45 and 0.55 must not end up on different sides of an edge.
    confidence = round(abs(p - 0.5), 9)
    return sum(confidence >= edge for edge in CONFIDENCE_EDGES[1:-1])


def length_bin(preferred: int, other: int) -> str:
    """Which of `LENGTHS` the preferred response is, compared with the other one."""
    if abs(preferred - other) <= SIMILAR_LENGTH * max(preferred, other):
        return "similar"
    return "longer" if preferred > other else "shorter"


def _decided_gold(pair_of: Mapping[str, Pair], preferences: Sequence[Preference]) -> list[tuple[Pair, float]]:
    return [
        (pair_of[x.pair_id], x.p_a)
        for x in preferences
        if x.p_a is not None and x.p_a != 0.5 and pair_of[x.pair_id].gold not in (None, 0.5)
    ]


def rate(count: str, name: str, scored: Sequence[Scored]) -> dict[str, float | None]:
    """The count, and the mean outcome with its 95% interval (None without items)."""
    if not scored:
        return {count: 0, **dict.fromkeys((name, f"{name}_ci_low", f"{name}_ci_high"))}
    return {count: len(scored), **rate_metrics(name, scored)}
