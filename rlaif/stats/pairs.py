"""Paired differences of one arm from many at once: the numbers of `paired_test`, for hundreds of arms.

With A arms there are A (A - 1) / 2 pairs, 124,750 of 500. One at a time, most of the time is Python's.
Notation: as in `means`, and J other arms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, stdtr, stdtrit

from rlaif.stats.intervals import FloatArray
from rlaif.stats.means import DIFFERENCE, LEAST_SCATTER, Part, are_outcomes

_LOWEST_P, _HALVINGS = 1e-15, 44


def sign_tests(wins: npt.NDArray[np.int64], losses: npt.NDArray[np.int64]) -> FloatArray:
    """`sign_test` of many: with equal chances both tails are alike, so p is twice the smaller one, and at most 1."""
    total = wins + losses
    return np.where(total == 0, 1.0, np.minimum(1.0, 2 * bdtr(np.minimum(wins, losses), total, 0.5)))


@dataclass(frozen=True)
class Many:
    """By other arm (J,): the difference, its 95% bounds (NaN with one cluster), p, and items ahead and behind."""

    mean: FloatArray
    low: FloatArray
    high: FloatArray
    p: FloatArray
    ahead: npt.NDArray[np.int64]
    behind: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Arms:
    """All arms' values (A, S, n), the items' clusters as codes 0..K-1 (n,), and what each arm's values are.

    `outcomes`: wins, ties and losses (A,); `binary`: only wins and losses (A,).
    """

    values: FloatArray
    codes: npt.NDArray[np.int64]
    outcomes: npt.NDArray[np.bool_]
    binary: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, tables: Sequence[FloatArray], codes: npt.NDArray[np.int64], outcomes: bool | None) -> Arms:
        """`outcomes` as for `paired_difference`: whether the values are outcomes, None to look at them."""
        found = [are_outcomes(table) if outcomes is None else outcomes for table in tables]
        binary = [outcomes is not False and bool(np.isin(table, (0.0, 1.0)).all()) for table in tables]
        return cls(np.stack(tables), codes, np.array(found), np.array(binary))

    def against(self, first: int, scatter: Part | None) -> Many:
        """Arm `first` less each later one; `scatter` is the seeds' part, from all arms."""
        difference = self.values[first] - self.values[first + 1 :]
        clusters = int(self.codes.max()) + 1
        mean, per_item = difference.mean(axis=(1, 2)), difference.mean(axis=1)
        ahead, behind = (per_item > 0).sum(axis=1), (per_item < 0).sum(axis=1)
        if clusters < 2:
            none = np.full_like(mean, math.nan)
            return Many(mean, none, none, np.ones_like(mean), ahead, behind)
        outcomes = self.outcomes[first] & self.outcomes[first + 1 :]
        parts = self._parts(difference, per_item, outcomes, scatter)
        half = _half(parts, 0.05)
        moved = _by_cluster(np.abs(difference).sum(axis=1), self.codes, clusters) > 0
        p = np.minimum(1.0, np.maximum(_p_values(parts, np.abs(mean)), 2.0 ** (1.0 - moved.sum(axis=1))))
        p[~moved.any(axis=1)] = 1.0
        if len(self.values[first]) == 1 and clusters == len(self.codes):
            exact = self.binary[first] & self.binary[first + 1 :]
            p[exact] = sign_tests(ahead[exact], behind[exact])
        low, high = mean - half, mean + half
        low, high = (
            np.where(outcomes, np.maximum(low, -1), low),
            np.where(outcomes, np.minimum(high, 1), high),
        )
        return Many(mean, low, high, p, ahead, behind)

    def _parts(
        self,
        difference: FloatArray,
        per_item: FloatArray,
        outcomes: npt.NDArray[np.bool_],
        scatter: Part | None,
    ) -> list[_Parts]:
        """The parts of `mean_error`, by arm."""
        seeds = difference.shape[1]
        items = _items(per_item, self.codes, outcomes)
        if seeds == 1:
            return [items]
        cells = _cells(difference, self.codes) / seeds
        spread = difference.mean(axis=2).var(axis=1, ddof=1) / seeds
        between = spread if scatter is None else np.full_like(spread, scatter.variance)
        freedom = np.full_like(spread, seeds - 1 if scatter is None else scatter.freedom)
        rest = np.maximum(0.0, items.variance - cells)
        return [
            _Parts(rest, items.freedom),
            _Parts(np.maximum(between, LEAST_SCATTER * cells), freedom),
        ]


@dataclass(frozen=True)
class _Parts:
    """A variance of the mean and its degrees of freedom, by arm (J,)."""

    variance: FloatArray
    freedom: FloatArray


def _by_cluster(rows: FloatArray, codes: npt.NDArray[np.int64], clusters: int) -> FloatArray:
    """Sums over each cluster's items, (J, K) of (J, n)."""
    sums = np.zeros((clusters, len(rows)))
    np.add.at(sums, codes, rows.T)
    return sums.T


def _items(per_item: FloatArray, codes: npt.NDArray[np.int64], outcomes: npt.NDArray[np.bool_]) -> _Parts:
    """As `means._items`, with the pseudo clusters of a difference where the values are outcomes."""
    clusters = int(codes.max()) + 1
    sizes = np.bincount(codes).astype(np.float64)
    sums = _by_cluster(per_item, codes, clusters)
    plain = max(1.0, float((sizes**2).sum() ** 2 / (sizes**4).sum() - 1))
    count = np.where(outcomes, DIFFERENCE.count, 0.0)[:, None] * np.ones((1, 2))
    average, more = sizes.mean(), count.sum(axis=1)
    sums = np.concatenate([sums, np.tile(average * np.array(DIFFERENCE.values), (len(sums), 1))], axis=1)
    sizes = np.append(sizes, [average] * 2)
    counts = np.concatenate([np.ones((len(sums), clusters)), count], axis=1)
    total = (counts * sizes).sum(axis=1, keepdims=True)
    mean = (counts * sums).sum(axis=1, keepdims=True) / total
    residuals = counts * (sums - mean * sizes) ** 2 / (1 - sizes / total)
    scale = np.where(outcomes, (clusters + more - 1) / clusters, 1.0)
    return _Parts(scale * residuals.sum(axis=1) / total[:, 0] ** 2, plain + more)


def _cells(difference: FloatArray, codes: npt.NDArray[np.int64]) -> FloatArray:
    """As `means._cells`, by arm."""
    _, seeds, n = difference.shape
    clusters = int(codes.max()) + 1
    own = difference - difference.mean(axis=2, keepdims=True) - difference.mean(axis=1, keepdims=True)
    own = own + difference.mean(axis=(1, 2), keepdims=True)
    squares = sum((_by_cluster(own[:, seed], codes, clusters) ** 2).sum(axis=1) for seed in range(seeds))
    return np.asarray(squares / ((seeds - 1) * (clusters - 1)) * clusters / n**2)


def _half(parts: Sequence[_Parts], alpha: float | FloatArray) -> FloatArray:
    """Half-widths of the central intervals at 1 - `alpha`."""
    squares = sum(stdtrit(part.freedom, np.asarray(alpha) / 2) ** 2 * part.variance for part in parts)
    return np.asarray(np.sqrt(squares))


def _p_values(parts: Sequence[_Parts], away: FloatArray) -> FloatArray:
    """Two-sided p: where the interval at 1 - p just reaches `away`; in closed form for a single part."""
    certain = sum(part.variance for part in parts) == 0
    if len(parts) == 1:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = away / np.sqrt(parts[0].variance)
        p = np.maximum(2 * stdtr(parts[0].freedom, -ratio), _LOWEST_P)
    else:
        low, high = np.full_like(away, math.log(_LOWEST_P)), np.zeros_like(away)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            wide = _half(parts, np.exp(middle)) > away
            low, high = np.where(wide, middle, low), np.where(wide, high, middle)
        p = np.exp((low + high) / 2)
        p[_half(parts, _LOWEST_P) <= away] = _LOWEST_P
    return np.where(certain, np.where(away == 0, 1.0, 0.0), p)
