"""Strengths of several players from their pairwise outcomes: the Bradley-Terry model, and what each item says of them.

Notation: K players, M pairs of them, n items (prompts) on which every pair met.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import statsmodels.api as sm

from rlaif.stats.intervals import FloatArray

# Of a win and a loss in each pair: a player who never lost would be infinitely strong.
_PRIOR = 0.5


@dataclass(frozen=True)
class Strengths:
    """Log-odds strengths (K,), of mean 0, and each item's part of them (n, K), whose mean they are.

    A part is the strength plus n times the item's influence on it, so that means, differences and their intervals over
    items (and seeds) come from the rules for any other measure of single items.
    """

    values: FloatArray
    parts: FloatArray


def bradley_terry(pairs: Sequence[tuple[int, int]], outcomes: FloatArray) -> Strengths:
    """Strengths with P(i beats j) = sigmoid(s_i - s_j), by maximum likelihood (Bradley and Terry 1952).

    `pairs` are M pairs (i, j) of players, numbered from 0; `outcomes` (n, M) is 1 where i won the item, 0 where j did,
    0.5 for a tie and NaN where it is unknown. Half a win and half a loss are added to each pair. Raises ValueError for
    shapes that do not match, a player who met nobody, and players who fall into groups that never met.
    """
    outcomes = np.asarray(outcomes, dtype=np.float64)
    if outcomes.ndim != 2 or outcomes.shape[1] != len(pairs):
        raise ValueError(f"outcomes {outcomes.shape} do not fit {len(pairs)} pairs")
    count = 1 + max(max(pair) for pair in pairs)
    design = np.zeros((len(pairs), count))
    for row, (i, j) in enumerate(pairs):
        design[row, i], design[row, j] = 1.0, -1.0
    if np.linalg.matrix_rank(design) < count - 1:
        raise ValueError("some players never met the others, not even through a third")
    known = ~np.isnan(outcomes)
    met = known.sum(axis=0) + 2 * _PRIOR
    won = (np.where(known, outcomes, 0.0).sum(axis=0) + _PRIOR) / met
    # The last player stands at 0 while fitting: only differences are determined.
    fitted = sm.GLM(won, design[:, :-1], family=sm.families.Binomial(), var_weights=met).fit()
    values = np.append(fitted.params, 0.0)
    values -= values.mean()
    expected = 1 / (1 + np.exp(-design @ values))
    information = design.T @ (design * (met * expected * (1 - expected))[:, None])
    scores = np.where(known, outcomes - expected, 0.0) @ design
    influence = scores @ np.linalg.pinv(information)
    return Strengths(values, values + len(outcomes) * (influence - influence.mean(axis=0)))
