"""Gold pairs made from references: the author's sentence and a response that is worse by construction."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

from rlaif.data.docs.docstrings import content_words
from rlaif.io import digest, stable_uniform
from rlaif.records import Pair, Prompt

CLOSEST_IN_LENGTH = 8
"""A mismatched reference is drawn from this many of nearly the same length."""

Worse = Callable[[Prompt], str | None]


class GoldPairMaker:
    """Draws the worse responses from `pool`, the whole test split, whatever part of it is in use.

    So a pair depends only on its prompt, the pool and the seed: a smaller data set has a subset of the pairs of a
    larger one. `package_of` and `module_of` give a row's package and module by its id.
    """

    def __init__(
        self,
        pool: Sequence[Prompt],
        *,
        package_of: Callable[[str], str],
        module_of: Callable[[str], str],
        cluster_of: dict[str, str],
        seed: int,
    ) -> None:
        self._pool = sorted(pool, key=lambda row: (_length(row), row.id))
        self._package_of, self._module_of = package_of, module_of
        self._cluster_of, self._seed = cluster_of, seed
        self._by_package: dict[str, list[Prompt]] = defaultdict(list)
        self._by_module: dict[str, list[Prompt]] = defaultdict(list)
        for row in self._pool:
            self._by_package[package_of(row.id)].append(row)
            self._by_module[module_of(row.id)].append(row)
        self.constructions: dict[str, Worse] = {
            "mismatched": self._mismatched,
            "same_module": self._same_module,
            "truncated": truncate,
            "corrupted": self._corrupted,
        }

    def make(self, anchors: Sequence[Prompt], *, per_construction: int) -> list[Pair]:
        """Up to `per_construction` pairs of each construction, for the first `anchors` that allow it."""
        pairs: list[Pair] = []
        for name, worse_of in self.constructions.items():
            made: list[Pair] = []
            for row in anchors:
                if len(made) == per_construction:
                    break
                worse = worse_of(row)
                if worse is not None and worse != row.reference:
                    made.append(self._pair(row, worse, name))
            pairs.extend(made)
        return pairs

    def _pair(self, row: Prompt, worse: str, construction: str) -> Pair:
        better_is_a = stable_uniform("gold-side", self._seed, construction, row.id) < 0.5
        better = row.reference or ""
        return Pair(
            id=f"{construction}-{digest([row.id, better, worse], 16)}",
            prompt_id=row.id,
            prompt=row.prompt,
            response_a=better if better_is_a else worse,
            response_b=worse if better_is_a else better,
            origin="dataset",
            gold=1.0 if better_is_a else 0.0,
            gold_source="constructed",
            construction=construction,
            group=row.group,
        )

    def _mismatched(self, row: Prompt) -> str | None:
        package = self._package_of(row.id)
        return self._reference_among(row, [o for o in self._pool if self._package_of(o.id) != package])

    def _same_module(self, row: Prompt) -> str | None:
        """From the same module, or else from the same package."""
        near = self._reference_among(row, self._by_module[self._module_of(row.id)])
        return near or self._reference_among(row, self._by_package[self._package_of(row.id)])

    def _reference_among(self, row: Prompt, candidates: Sequence[Prompt]) -> str | None:
        """One of the references closest in length to the row's, but not a copy of it; None if there is none."""

        def drawn(other: Prompt) -> float:
            return stable_uniform("gold-other", self._seed, row.id, other.id)

        cluster = self._cluster_of[row.id]
        others = [other for other in candidates if self._cluster_of[other.id] != cluster]
        closest = sorted(others, key=lambda other: abs(_length(other) - _length(row)))[:CLOSEST_IN_LENGTH]
        return min(closest, key=drawn).reference if closest else None

    def _corrupted(self, row: Prompt) -> str | None:
        other = self._mismatched(row)
        return None if other is None else corrupt(row.reference or "", other, key=(self._seed, row.id))


def _length(row: Prompt) -> int:
    return len((row.reference or "").split())


def truncate(row: Prompt) -> str | None:
    """The first half of the reference, rounded down to whole words; None below four words."""
    words = (row.reference or "").split()
    return " ".join(words[: len(words) // 2]).rstrip(",;:-") if len(words) >= 4 else None


def corrupt(sentence: str, other: str, *, key: tuple[int, str]) -> str | None:
    """`sentence` with half of its content words (at least two) replaced by content words of `other`.

    The number of words, the punctuation and the initial capital stay. None if either sentence has too few content
    words. `key` decides which words.
    """
    words = sentence.split()
    spots = [i for i, word in enumerate(words) if content_words(word) and word.strip("`.,;()'\"").isalpha()]
    foreign = sorted(set(content_words(other)) - set(content_words(sentence)))
    count = max(2, math.ceil(len(spots) / 2))
    if len(spots) < 2 or len(foreign) < 2:
        return None
    chosen = sorted(spots, key=lambda i: stable_uniform("corrupt-spot", *key, i))[:count]
    fillers = sorted(foreign, key=lambda word: stable_uniform("corrupt-word", *key, word))
    for place, i in enumerate(chosen):
        filler = fillers[place % len(fillers)]
        bare = words[i].strip("`.,;()'\"")
        words[i] = words[i].replace(bare, filler.capitalize() if bare[0].isupper() else filler)
    return " ".join(words)
