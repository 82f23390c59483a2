"""Losses as pure functions: `(loss, metrics)`, with detached metrics.

A loss is a sum over counted entries divided by their count. `normalizer` replaces that count with the whole
batch's (over micro-batches and ranks), so that the losses of its parts add up to the batch's loss.
Metrics are means over a part's own counted entries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlaif.ops.kl import KLKind, kl_estimate
from rlaif.ops.masks import masked_mean, masked_sum, masked_var, zero_masked

Metrics = dict[str, Tensor]
Normalizer = Tensor | float | None


def normalise(total: Tensor, count: Tensor, normalizer: Normalizer) -> Tensor:
    # A part that counts nothing adds nothing, hence the floor.
    floor = torch.where(count > 0, count, torch.ones_like(count))
    return total / (floor if normalizer is None else normalizer)


def _rows(mask: Tensor) -> Tensor:
    """How many rows count anything."""
    return mask.any(dim=1).sum()


@dataclass(frozen=True)
class LossMean:
    """How per-token losses (B, T) become one number: `total(each, mask) / count(mask, limit)`.

    `limit` is the maximum length of a response, in tokens.
    """

    total: Callable[[Tensor, Tensor], Tensor]
    count: Callable[[Tensor, int], Tensor]


LOSS_MEANS: dict[str, LossMean] = {
    # All counted tokens alike.
    "token": LossMean(masked_sum, lambda mask, limit: mask.sum()),
    # The mean of each row's mean (GRPO): the tokens of a long response weigh less.
    "sequence": LossMean(
        lambda each, mask: (masked_sum(each, mask, 1) / mask.sum(1).clamp(min=1)).sum(),
        lambda mask, limit: _rows(mask),
    ),
    # Over a constant per row (Dr. GRPO): a token weighs the same in every response and every minibatch.
    "constant": LossMean(masked_sum, lambda mask, limit: _rows(mask) * limit),
}
"""The means of a policy loss, by `rl.loss_mean`."""


def _mean_loss(each: Tensor, mask: Tensor, mean: str, normalizer: Normalizer) -> Tensor:
    """`normalizer` replaces the part's own count, in which T is the limit."""
    if mean not in LOSS_MEANS:
        raise ValueError(f"mean must be one of {', '.join(LOSS_MEANS)}, got {mean!r}")
    chosen = LOSS_MEANS[mean]
    return normalise(chosen.total(each, mask), chosen.count(mask, mask.shape[1]), normalizer)


def sft_loss(logprobs: Tensor, mask: Tensor, *, normalizer: Normalizer = None) -> tuple[Tensor, Metrics]:
    """Negative log-likelihood in nats per counted token of `logprobs` (B, T). Metrics: `perplexity`, `tokens`."""
    loss = normalise(-masked_sum(logprobs, mask), mask.sum(), normalizer)
    mean = masked_mean(logprobs.detach(), mask)
    return loss, {"perplexity": torch.exp(-mean), "tokens": mask.sum().float()}


def harden(p_a: Tensor) -> Tensor:
    """Hard labels of `p_a` (N,): 0 or 1, and 0.5 where neither side is preferred."""
    return (torch.sign(p_a - 0.5) + 1) / 2


def confidence_weight(p_a: Tensor, exponent: float) -> Tensor:
    """(2 |p_a - 0.5|)^exponent (N,): 0 for an undecided pair, 1 for a certain one; exponent 0 weighs all alike.

    Raises ValueError for a negative exponent, which would give undecided pairs infinite weight.
    """
    if exponent < 0:
        raise ValueError(f"the exponent of confidence weights must not be negative, got {exponent}")
    return (2 * (p_a - 0.5).abs()) ** exponent


def _soft_labels(p_a: Tensor, temperature: float, label_smoothing: float) -> Tensor:
    if temperature <= 0:
        raise ValueError(f"label temperature must be positive, got {temperature}")
    # logit(0) and logit(1) are infinite and come back as exactly 0 and 1.
    sharpened = p_a if temperature == 1 else torch.sigmoid(torch.logit(p_a) / temperature)
    return sharpened * (1 - label_smoothing) + (1 - sharpened) * label_smoothing


def bradley_terry_loss(
    reward_a: Tensor,
    reward_b: Tensor,
    p_a: Tensor,
    *,
    margin: float,
    label_smoothing: float,
    temperature: float,
    centering: float,
    weight: Tensor | None,
    normalizer: Normalizer = None,
) -> tuple[Tensor, Metrics]:
    """Cross-entropy of the Bradley-Terry (1952) model against soft labels; all tensors are (N,).

    With D = reward_a - reward_b: -[p log sigmoid(D - margin) + (1 - p) log sigmoid(-D - margin)].
    p is `p_a` after `temperature` (logit(p) / temperature: below 1 sharpens, 1 leaves it) and `label_smoothing`
    (the probability that a label is flipped). `centering` adds centering * (reward_a + reward_b)^2, which pins the
    free constant of the rewards. `weight` scales pairs; the sum is divided by the sum of weights.

    The margin applies to both sides since either response may be the preferred one: the loss is the expectation,
    over a hard label drawn from p, of -log sigmoid(preferred - other - margin). Hence p in {0, 1} is the usual
    hard-label loss, swapping a and b mirrors p, and at p = 0.5 the minimum stays at D = 0; elsewhere the margin
    only moves it further towards the preferred side. (Shifting D alone, as in sigmoid(D - margin) and its
    complement, would favour whichever response is called b.)

    Metrics over pairs: `accuracy` (sign of D against `p_a` > 0.5; `p_a` = 0.5 is left out, D = 0 counts
    half; NaN if no pair is left), `margin` (mean D towards the preferred response, ties left out).
    Source: Lee et al. 2023 (arXiv:2309.00267), where the reward model is trained on soft labels.
    """
    difference = reward_a - reward_b
    p = _soft_labels(p_a.to(difference.dtype), temperature, label_smoothing)
    each = -(p * F.logsigmoid(difference - margin) + (1 - p) * F.logsigmoid(-difference - margin))
    each = each + centering * (reward_a + reward_b) ** 2
    weight = torch.ones_like(each) if weight is None else weight.to(each.dtype)
    loss = normalise((weight * each).sum(), weight.sum(), normalizer)
    with torch.no_grad():
        decided = p_a != 0.5
        signed = difference * torch.where(p_a > 0.5, 1.0, -1.0)
        accuracy = masked_mean((torch.sign(signed) + 1) / 2, decided)
        metrics = {"accuracy": accuracy, "margin": masked_mean(signed, decided)}
    return loss, metrics


def ratio_metrics(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Metrics:
    """How far the policy has moved since it sampled; tensors are (B, T), r = exp(logprobs - old_logprobs).

    Over counted tokens: `approx_kl` ((r - 1) - log r, nats), `ratio_mean`, `ratio_max_deviation`
    (max |r - 1|; 0 on the first minibatch, as Huang et al. 2024 check).
    """
    with torch.no_grad():
        log_ratio = zero_masked(logprobs, mask) - zero_masked(old_logprobs, mask)
        ratio = torch.exp(log_ratio)
        return {
            "approx_kl": masked_mean(torch.expm1(log_ratio) - log_ratio, mask),
            "ratio_mean": masked_mean(ratio, mask),
            "ratio_max_deviation": zero_masked((ratio - 1).abs(), mask).amax(),
        }


def ppo_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float,
    mean: str,
    normalizer: Normalizer = None,
) -> tuple[Tensor, Metrics]:
    """Clipped surrogate of PPO and GRPO (to minimise); all tensors are (B, T).

    With r = exp(logprobs - old_logprobs): -min(r A, clamp(r, 1 - clip, 1 + clip) A).
    Metrics over counted tokens: `clip_fraction` (|r - 1| > clip) and those of `ratio_metrics`.
    Source: Schulman et al. 2017 (arXiv:1707.06347), equation 7; `sequence` mean: Shao et al. 2024, equation 3.
    """
    # Masked values are zeroed before exp, so that they cannot reach the gradient as 0 * inf.
    ratio = torch.exp(zero_masked(logprobs, mask) - zero_masked(old_logprobs, mask))
    advantages = zero_masked(advantages, mask)
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    loss = _mean_loss(-surrogate, mask, mean, normalizer)
    with torch.no_grad():
        clipped = masked_mean(((ratio - 1).abs() > clip).to(ratio.dtype), mask)
    return loss, {"clip_fraction": clipped, **ratio_metrics(logprobs, old_logprobs, mask)}


def reinforce_loss(
    logprobs: Tensor, advantages: Tensor, mask: Tensor, *, mean: str, normalizer: Normalizer = None
) -> Tensor:
    """-A log pi of the sampled tokens, whose gradient is the policy gradient; all tensors are (B, T).

    No gradient reaches the advantages. Correct only for samples of the current policy: nothing corrects for an
    older one. Source: Williams 1992.
    """
    each = -zero_masked(advantages, mask).detach() * zero_masked(logprobs, mask)
    return _mean_loss(each, mask, mean, normalizer)


def _reinforce(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, clip: float, **mean: Any
) -> tuple[Tensor, Metrics]:
    return reinforce_loss(logprobs, advantages, mask, **mean), ratio_metrics(logprobs, old_logprobs, mask)


def _likelihood(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float,
    mean: str,
    normalizer: Normalizer = None,
) -> tuple[Tensor, Metrics]:
    """Negative log-likelihood of the responses whose advantage is 1, over their own tokens (`learnt_mask`).

    It is right for responses of any policy, so it may be repeated (Dong et al. 2023, arXiv:2304.06767, step 3).
    """
    learnt = learnt_mask(advantages, mask)
    loss = reinforce_loss(logprobs, advantages, learnt, mean=mean, normalizer=normalizer)
    return loss, ratio_metrics(logprobs, old_logprobs, mask)


def learnt_mask(advantages: Tensor, mask: Tensor) -> Tensor:
    """The counted tokens (B, T) whose advantage is not 0."""
    return mask & (zero_masked(advantages, mask) != 0)


@dataclass(frozen=True)
class PolicyLoss:
    """A policy loss; `compute` is called like `ppo_policy_loss`.

    `corrects`: it may learn from responses of an older policy. `likelihood`: it fine-tunes on chosen responses
    (advantage 1), and its mean is over their tokens alone.
    """

    compute: Callable[..., tuple[Tensor, Metrics]]
    corrects: bool = True
    likelihood: bool = False


POLICY_LOSSES: dict[str, PolicyLoss] = {
    "clip": PolicyLoss(ppo_policy_loss),
    "reinforce": PolicyLoss(_reinforce, corrects=False),
    "nll": PolicyLoss(_likelihood, likelihood=True),
}
"""By `rl.loss`."""


def kl_loss(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    *,
    kind: KLKind,
    mean: str,
    normalizer: Normalizer = None,
) -> Tensor:
    """Mean estimate of KL(policy || reference), in nats per token, as a penalty with gradients; all (B, T).

    The mean is the policy loss's, so that a weight beta means the same here as in the reward.
    """
    each = kl_estimate(zero_masked(logprobs, mask), zero_masked(ref_logprobs, mask), kind)
    return _mean_loss(each, mask, mean, normalizer)


def ppo_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    clip: float,
    normalizer: Normalizer = None,
) -> tuple[Tensor, Metrics]:
    """Clipped value loss of PPO; all tensors are (B, T).

    0.5 * max((V - R)^2, (clamp(V, V_old - clip, V_old + clip) - R)^2); `clip` <= 0 keeps only the first term.
    Metrics: `value_loss`, `explained_variance` = 1 - var(R - V) / var(R) (NaN if R is constant).
    Source: Huang et al. 2024 (arXiv:2403.17031).
    """
    values, old_values, returns = (zero_masked(x, mask) for x in (values, old_values, returns))
    error = (values - returns) ** 2
    if clip > 0:
        clipped = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (clipped - returns) ** 2)
    loss = normalise(0.5 * masked_sum(error, mask), mask.sum(), normalizer)
    with torch.no_grad():
        spread = masked_var(returns, mask)
        explained = 1 - masked_var(returns - values, mask) / spread
        explained = torch.where(spread > 0, explained, torch.full_like(explained, float("nan")))
        metrics = {"value_loss": loss.detach(), "explained_variance": explained}
    return loss, metrics
