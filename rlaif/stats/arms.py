"""Which arms of an ablation differ: the engine behind every table that compares arms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase

import numpy as np

from rlaif.stats.intervals import Clusters, FloatArray, Interval, check_same_length, cluster_codes
from rlaif.stats.means import (
    Part,
    Values,
    are_outcomes,
    as_table,
    mean_interval,
    paired_difference,
    pooled_scatter,
    proportion_interval,
)
from rlaif.stats.pairs import Arms, Many, sign_tests
from rlaif.stats.significance import holm, mcnemar_test


@dataclass(frozen=True)
class PairedTest:
    """Two arms on the same `n` items, the better one first.

    `ahead` and `behind` count items on which `first` scores higher and lower (on average over seeds), and `mcnemar`
    is the exact McNemar test on them (each item on its own). `p_value` keeps items of a cluster together, and
    `p_holm` adjusts it over all pairs of arms.
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


def _checked(arms: Mapping[str, Values], clusters: Clusters) -> dict[str, FloatArray]:
    if not arms:
        raise ValueError("no arms to compare")
    values = {name: as_table(table) for name, table in arms.items()}
    check_same_length(clusters, *(table[0] for table in values.values()))
    seeds = [len(table) for table in values.values()]
    if len(set(seeds)) > 1:
        raise ValueError(f"arms need the same number of seeds, got {seeds}")
    if not len(clusters) or not all(np.isfinite(table).all() for table in values.values()):
        raise ValueError("arms need at least one item and finite values")
    return values


def paired_test(
    x: Values, y: Values, clusters: Clusters, scatter: Part | None = None, *, outcomes: bool | None = None
) -> tuple[Interval, float]:
    """95% interval of mean(x - y) and its p; x, y are (n,) or (S, n) on the same items (and seeds).

    As `paired_difference`, but with McNemar's exact p for one seed's 0/1 outcomes in clusters of one item.
    """
    first, second = as_table(x), as_table(y)
    difference, p = paired_difference(first, second, clusters, scatter=scatter, outcomes=outcomes)
    single = len(first) == 1 and cluster_codes(clusters)[1] == len(clusters)
    if outcomes is not False and single and np.isin((first, second), (0.0, 1.0)).all():
        p = mcnemar_test(first[0].astype(bool), second[0].astype(bool))
    return difference, p


def arm_interval(values: Values, clusters: Clusters) -> Interval:
    """Interval of the mean of one arm's values (n,) or (S, n): of a proportion for wins, ties and losses."""
    table = as_table(values)
    return proportion_interval(table, clusters) if are_outcomes(table) else mean_interval(table, clusters)


def paired_tests(
    arms: Mapping[str, Values], clusters: Clusters, *, outcomes: bool | None = None
) -> list[PairedTest]:
    """Tests of every pair of arms on the same items, with Holm over all; the best arm's pairs come first.

    `arms` maps a name to values (n,), or (S, n) of S seeds; item i (and seed s) is the same in all arms, and
    `clusters` (n,) are the items' prompts. Arms are ordered by their means, best first. All pairs form the family,
    even if a table shows only the best arm's: the same data decide which arm that is. The scatter of seeds is
    estimated from all arms together (`pooled_scatter`). `outcomes` is as for `paired_difference`.
    Raises ValueError for no arms, different lengths or seeds, no items, or values that are not finite.
    """
    values = _checked(arms, clusters)
    order = sorted(values, key=lambda name: -values[name].mean())
    scatter, codes = pooled_scatter(list(values.values())), cluster_codes(clusters)[0]
    tables = Arms.of([values[name] for name in order], codes, outcomes)
    found = [(place, tables.against(place, scatter)) for place in range(len(order) - 1)]
    pairs = [(place, place + 1 + other) for place, many in found for other in range(len(many.p))]
    adjusted = holm(dict(enumerate(p for _, many in found for p in many.p.tolist())))
    rows = (row for _, many in found for row in _rows(many, len(clusters)))
    return [
        PairedTest(order[first], order[second], *row, adjusted[index])
        for index, ((first, second), row) in enumerate(zip(pairs, rows, strict=True))
    ]


def _rows(many: Many, n: int) -> Iterator[tuple[int, int, int, Interval, float, float]]:
    """The columns of `PairedTest` between the names and Holm's p, of each other arm."""
    exact = sign_tests(many.ahead, many.behind)
    columns = (many.mean, many.low, many.high, many.p, many.ahead, many.behind, exact)
    for mean, low, high, p, ahead, behind, sign in zip(*(column.tolist() for column in columns), strict=True):
        yield n, ahead, behind, Interval(mean, low, high, n), sign, p


def tied_groups(names: Sequence[str], different: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Letters for arms in order: two arms share a letter unless the pair is in `different`.

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
