"""Generalised advantage estimation over response tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from rlaif.ops.masks import zero_masked


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both (B, T), from `rewards`, `values` and `mask`, all (B, T).

    Response-aligned: `values[:, t]` is the value of the state in which token t was chosen and
    `rewards[:, t]` follows that token. With t' the next counted token (value 0 after the last one):
    delta_t = r_t + gamma V_t' - V_t, A_t = delta_t + gamma lam A_t', return_t = A_t + V_t.
    Masked positions are stepped over and give 0.
    Source: Schulman et al. 2016 (arXiv:1506.02438); Huang et al. 2024 (arXiv:2403.17031) use gamma 1 and lam 0.95.
    """
    rewards, values = zero_masked(rewards, mask), zero_masked(values, mask)
    advantages = torch.zeros_like(values)
    next_value = torch.zeros_like(values[:, 0])
    next_advantage = torch.zeros_like(next_value)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        next_advantage = torch.where(mask[:, t], advantage, next_advantage)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        advantages[:, t] = advantage
    advantages = zero_masked(advantages, mask)
    return advantages, advantages + values
