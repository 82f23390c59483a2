"""Groups of copies: items that share a key or nearly all of their text, joined by union-find."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence

_TOKEN = re.compile(r"\w+|[^\w\s]")


class UnionFind:
    """Disjoint sets over the indices 0..n-1; a set's root is its smallest index."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def find(self, index: int) -> int:
        """The root of the set that holds `index`."""
        while self._parent[index] != index:
            self._parent[index] = self._parent[self._parent[index]]
            index = self._parent[index]
        return index

    def union(self, first: int, second: int) -> None:
        """Join two sets."""
        low, high = sorted((self.find(first), self.find(second)))
        self._parent[high] = low

    def union_equal(self, keys: Iterable[Hashable]) -> None:
        """Join all indices with equal keys (the i-th of `keys` is that of index i)."""
        first_with: dict[Hashable, int] = {}
        for index, key in enumerate(keys):
            self.union(first_with.setdefault(key, index), index)


def shingles(text: str, width: int) -> frozenset[tuple[str, ...]]:
    """The runs of `width` consecutive tokens of `text` (one shorter run if it has fewer)."""
    tokens = _TOKEN.findall(text.lower())
    return frozenset(tuple(tokens[i : i + width]) for i in range(max(1, len(tokens) - width + 1)))


def near_copies(sets: Sequence[frozenset[tuple[str, ...]]], threshold: float) -> Iterator[tuple[int, int]]:
    """Index pairs whose Jaccard similarity is at least `threshold`, exactly (no sketching).

    Prefix filtering: sets that similar must share one of each other's rarest elements, so that only sets that hold
    the same rare element are compared.
    """
    frequency = Counter(element for items in sets for element in items)
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, items in enumerate(sets):
        rarest = sorted(items, key=lambda element: (frequency[element], element))
        prefix = rarest[: len(rarest) - math.ceil(threshold * len(rarest)) + 1]
        for other in sorted({other for element in prefix for other in holders[element]}):
            shared = len(items & sets[other])
            if shared >= threshold * (len(items) + len(sets[other]) - shared):
                yield other, index
        for element in prefix:
            holders[element].append(index)
