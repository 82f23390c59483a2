"""Per-token KL estimates against the reference policy, and the rewards shaped with them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlaif.ops.masks import last_index, zero_masked

KLKind = Literal["k1", "k2", "k3"]


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: KLKind) -> Tensor:
    """Estimate of KL(policy || reference) in nats for each sampled token; any shape, kept.

    With d = log policy - log reference of the sampled token: k1 = d (unbiased, signed),
    k2 = d^2 / 2 (biased, non-negative), k3 = exp(-d) - 1 + d (unbiased, non-negative).
    Raises ValueError for another `kind`. Source: Schulman, "Approximating KL divergence" (checklist 23).
    """
    log_ratio = logprobs - ref_logprobs
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return 0.5 * log_ratio**2
    if kind == "k3":
        return torch.expm1(-log_ratio) + log_ratio
    raise ValueError(f"kind must be k1, k2 or k3, got {kind!r}")


def kl_shaped_rewards(
    scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, *, beta: float
) -> Tensor:
    """(B, T) rewards: -beta * k1 on each counted token, `scores` (B,) added at the last counted one.

    Summed over a row: score - beta * (log policy - log reference) of the whole response, which is the
    regularised objective of the paper (section 2, RL) in per-token form (checklist 22).
    Raises ValueError when a row counts no token.
    """
    rewards = zero_masked(-beta * kl_estimate(logprobs, ref_logprobs, "k1"), mask)
    at = last_index(mask).unsqueeze(1)
    return rewards.scatter_add(1, at, scores.to(rewards.dtype).unsqueeze(1))
