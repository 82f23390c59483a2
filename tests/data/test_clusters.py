"""Union-find and near copies against plain loops over random inputs."""

from __future__ import annotations

import random

import pytest

from rlaif.data.docs.clusters import UnionFind, near_copies, shingles


def _components(size: int, edges: list[tuple[int, int]]) -> list[int]:
    """The smallest member of each index's component, by relabelling until nothing changes."""
    label = list(range(size))
    changed = True
    while changed:
        changed = False
        for a, b in edges:
            low = min(label[a], label[b])
            if (label[a], label[b]) != (low, low):
                label[a] = label[b] = low
                changed = True
    return label


@pytest.mark.parametrize("seed", range(20))
def test_union_find_finds_connected_components(seed):
    rng = random.Random(seed)
    edges = [(rng.randrange(30), rng.randrange(30)) for _ in range(rng.randrange(40))]
    sets = UnionFind(30)
    for a, b in edges:
        sets.union(a, b)
    assert [sets.find(i) for i in range(30)] == _components(30, edges)


def test_union_equal_joins_equal_keys_only():
    sets = UnionFind(5)
    sets.union_equal(["x", "y", "x", "z", "y"])
    assert [sets.find(i) for i in range(5)] == [0, 1, 0, 3, 1]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.75, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_near_copies_match_all_pairs(seed, threshold):
    rng = random.Random(seed)
    sets = [
        frozenset((f"t{rng.randrange(12)}",) for _ in range(rng.randrange(1, 9)))  # few tokens: many overlaps
        for _ in range(60)
    ]
    expected = {
        (i, j)
        for j in range(60)
        for i in range(j)
        if len(sets[i] & sets[j]) >= threshold * len(sets[i] | sets[j])
    }
    found = list(near_copies(sets, threshold))
    assert expected, "the case must have something to find"
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_shingles_by_hand():
    # tokens: a ( b ) -> three runs of two; letter case and spaces do not matter
    assert shingles("A( b )", 2) == {("a", "("), ("(", "b"), ("b", ")")}
    assert shingles("one", 3) == {("one",)}
