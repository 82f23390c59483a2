"""Bootstrap weights of ensemble members, without a generator that items would share."""

from __future__ import annotations

from itertools import accumulate
from math import exp, factorial

from rlaif.io import stable_uniform

# P(count <= k) of a Poisson variable with mean 1, for k = 0, 1, ...; a 13th copy has probability 6e-11.
_CUMULATIVE = tuple(accumulate(exp(-1) / factorial(k) for k in range(13)))


def bootstrap_counts(key: str, members: int, seed: int) -> tuple[int, ...]:
    """How often each member of an ensemble takes item `key`: once for member 0, then Poisson(1) draws.

    That is the bootstrap of a large set, item by item; it depends on (seed, member, key) alone. Member 0 takes
    every item once, as a single model does (Lakshminarayanan et al. 2017 train all members so).
    """
    draws = (stable_uniform("bootstrap", seed, member, key) for member in range(1, members))
    return (1, *(sum(draw >= bound for bound in _CUMULATIVE) for draw in draws))
