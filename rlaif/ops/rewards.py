"""From raw numbers to rewards: an ensemble's members, a response's length, and what an empty one gets."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

EMPTY_MARGIN = 1e-3  # of a reward's scale: standard deviations over references, where it is standardised

MemberRule = Literal["mean", "min", "mean_minus_variance"]


def combine_members(rewards: Tensor, how: MemberRule, *, coefficient: float) -> Tensor:
    """One reward from those of M members: (M, ...) -> (...).

    `min` is worst-case optimisation; `mean_minus_variance` is the mean less `coefficient` times the
    (population) variance over the members, uncertainty-weighted optimisation (both of Coste et al. 2023).
    ValueError for another `how`.
    """
    if how == "mean":
        return rewards.mean(dim=0)
    if how == "min":
        return rewards.amin(dim=0)
    if how == "mean_minus_variance":
        return rewards.mean(dim=0) - coefficient * rewards.var(dim=0, correction=0)
    raise ValueError(f"how={how!r} is no rule for the members of an ensemble")


def length_reward(tokens: Tensor, *, limit: int, target: int | None) -> Tensor:
    """How near `tokens` (N,) come to `target`, 1 at it; without a target, how near they come to `limit`.

    A token off costs 1 / `limit`, so that rewards lie between 0 and 1.
    """
    aim = limit if target is None else target
    return 1 - (tokens - aim).abs() / limit


def empty_last(rewards: Tensor, empty: Tensor) -> Tensor:
    """`rewards` (any shape) with those of `empty` responses (bool, same shape) below every other one, all alike.

    An empty response loses to any text and ties with another empty one, whatever a model says of a bare end of text:
    all get the least of their own rewards and of the texts', the latter less a margin that any comparison sees.
    """
    if not empty.any():
        return rewards
    floor = rewards[empty].amin()
    if not empty.all():
        least = rewards[~empty].amin()
        floor = torch.minimum(floor, least - EMPTY_MARGIN * least.abs().clamp(min=1.0))
    return rewards.masked_fill(empty, float(floor))
