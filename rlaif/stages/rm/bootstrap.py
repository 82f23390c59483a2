"""Bootstrap weights of ensemble members, without a random generator shared by the items."""

from __future__ import annotations

from itertools import accumulate
from math import exp, factorial

from rlaif.io import stable_uniform

# P(count <= k) of a Poisson variable with mean 1, for k = 0, 1, ...; a 13th copy has probability 6e-11.
_CUMULATIVE = tuple(accumulate(exp(-1) / factorial(k) for k in range(13)))


def bootstrap_counts(key: str, members: int, seed: int) -> tuple[int, ...]:
    """How often each member of an ensemble takes item `key`: once for member 0, Poisson(1) draws for the others.

    That is the bootstrap of a large set, item by item; it depends only on (seed, member, key). Member 0 takes every
    item once, as a single model does (Lakshminarayanan et al. 2017 train all members like this).
    """
    draws = (stable_uniform("bootstrap", seed, member, key) for member in range(1, members))
    return (1, *(sum(draw >= bound for bound in _CUMULATIVE) for draw in draws))
