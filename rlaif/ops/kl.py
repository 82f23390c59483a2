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
    As a loss over on-policy samples, k2 has the gradient of KL(policy || reference) of each token given what stands
    before it, and k3 that of KL(reference || policy), while that of k1 is zero in expectation. That is token by token
    only: how the policy's choice leads to other contexts is not differentiated, so that summed over a response it is
    not the gradient of the responses' KL. k1 in the reward has that one; k2 and k3 in the reward have neither: their
    size is of second order near the reference, and their sign may be wrong.
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
    scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, *, beta: float, kind: KLKind
) -> Tensor:
    """(B, T) rewards: -beta * the estimate on each counted token, `scores` (B,) added at the last counted one.

    With k1, summed over a row: score - beta * (log policy - log reference) of the whole response, which is
    the regularised objective of the paper (section 2, RL) in per-token form (checklist 22).
    Raises ValueError when a row counts no token.
    """
    rewards = zero_masked(-beta * kl_estimate(logprobs, ref_logprobs, kind), mask)
    at = last_index(mask).unsqueeze(1)
    return rewards.scatter_add(1, at, scores.to(rewards.dtype).unsqueeze(1))


# The controller's proportional error is bounded by this, in both directions.
_MAX_ERROR = 0.2


def adapted_beta(beta: float, kl: float, *, target: float, horizon: float, samples: int) -> float:
    """The KL weight after `samples` responses whose mean KL was `kl`; `kl` and `target` in nats a response.

    beta * (1 + clip(kl / target - 1, -0.2, 0.2) * samples / horizon): about `horizon` responses that are far
    off change it by a fifth. Source: Ziegler et al. 2019, section 2.2 (checklist 30).
    """
    error = min(max(kl / target - 1, -_MAX_ERROR), _MAX_ERROR)
    return beta * (1 + error * samples / horizon)
