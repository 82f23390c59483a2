"""From raw numbers to rewards: an ensemble's members, a response's length, and what an empty one gets."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

EMPTY_MARGIN = 1e-3  # of a reward's scale: in standard deviations over references if it is standardised

MemberRule = Literal["mean", "min", "mean_minus_variance"]


def combine_members(rewards: Tensor, how: MemberRule, *, coefficient: float) -> Tensor:
    """One reward from those of M members: (M, ...) -> (...). Raises ValueError for another `how`.

    `min` is worst-case optimisation; `mean_minus_variance` is the mean minus `coefficient` times the (population)
    variance over the members, uncertainty-weighted optimisation (both from Coste et al. 2023).
    """
    if how == "mean":
        return rewards.mean(dim=0)
    if how == "min":
        return rewards.amin(dim=0)
    if how == "mean_minus_variance":
        return rewards.mean(dim=0) - coefficient * rewards.var(dim=0, correction=0)
    raise ValueError(f"how={how!r} is not a rule for combining an ensemble's members")


def length_reward(tokens: Tensor, *, limit: int, target: int | None) -> Tensor:
    """How near `tokens` (N,) come to `target` (or to `limit` if there is none): 1 there, 1 / `limit` less per token.

    So rewards are between 0 and 1.
    """
    aim = limit if target is None else target
    return 1 - (tokens - aim).abs() / limit


def empty_last(rewards: Tensor, empty: Tensor) -> Tensor:
    """`rewards` (any shape) with those of `empty` responses (bool, same shape) equal and below every other one.

    An empty response loses to any text and ties with another empty one, whatever a model scores a bare end of text:
    all get the minimum of their own rewards and of the texts' rewards less a margin that any comparison sees.
    """
    if not empty.any():
        return rewards
    floor = rewards[empty].amin()
    if not empty.all():
        least = rewards[~empty].amin()
        floor = torch.minimum(floor, least - EMPTY_MARGIN * least.abs().clamp(min=1.0))
    return rewards.masked_fill(empty, float(floor))
