"""Per-token KL estimates against the reference policy, and the rewards shaped with them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlaif.ops.masks import last_index, zero_masked

KLKind = Literal["k1", "k2", "k3"]


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: KLKind) -> Tensor:
    """Per-token estimate of KL(policy || reference) in nats, in the shape of the inputs.

    With d = log policy - log reference of the sampled token: k1 = d (unbiased, signed),
    k2 = d^2 / 2 (biased, non-negative), k3 = exp(-d) - 1 + d (unbiased, non-negative).
    As a loss over on-policy samples, k2 has the gradient of each token's KL(policy || reference) given its context,
    k3 that of KL(reference || policy), and k1 has expected gradient zero. This holds per token only: that the
    policy's choices lead to other contexts is not differentiated, so the sum over a response is not the gradient of
    the responses' KL. k1 in the reward gives that gradient; k2 and k3 in the reward do not: near the reference
    theirs is of second order, and may have the wrong sign.
    Raises ValueError for another `kind`. Source: Schulman 2020, "Approximating KL divergence".
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
    """Rewards (B, T): -beta * the estimate on each counted token, plus `scores` (B,) on the last counted one.

    With k1, a row sums to score - beta * (log policy - log reference) of the whole response: the KL-regularised
    objective of Lee et al. 2023 (arXiv:2309.00267) in the per-token form of Huang et al. 2024 (arXiv:2403.17031).
    Raises ValueError if a row counts no token.
    """
    rewards = zero_masked(-beta * kl_estimate(logprobs, ref_logprobs, kind), mask)
    at = last_index(mask).unsqueeze(1)
    return rewards.scatter_add(1, at, scores.to(rewards.dtype).unsqueeze(1))


# The controller's proportional error is bounded by this, in both directions.
_MAX_ERROR = 0.2


def adapted_beta(beta: float, kl: float, *, target: float, horizon: float, samples: int) -> float:
    """The KL weight after `samples` responses of mean KL `kl`; `kl` and `target` are in nats per response.

    beta * (1 + clip(kl / target - 1, -0.2, 0.2) * samples / horizon): about `horizon` responses that are far
    off change it by a fifth. Source: Ziegler et al. 2019, section 2.2.
    """
    error = min(max(kl / target - 1, -_MAX_ERROR), _MAX_ERROR)
    return beta * (1 + error * samples / horizon)
