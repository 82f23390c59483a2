"""Losses of direct preference optimisation: a policy learns from pairs of responses, without a reward model between.

Notation: N pairs; column 0 of an (N, 2) tensor is response a, column 1 response b. p_a (N,) is the probability that a
is better. Every loss is the expectation, over a hard label drawn from p_a, of that label's loss: p_a in {0, 1} is the
published loss, and swapping a and b mirrors p_a.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rlaif.ops.advantages import ALGORITHMS
from rlaif.ops.losses import Metrics, Normalizer, harden, normalise
from rlaif.ops.masks import masked_mean


@dataclass(frozen=True)
class PairLogprobs:
    """Of both responses to each prompt: log-probabilities summed over their tokens (nats), and token counts; (N, 2).

    Gradients flow through `policy` alone. `mismatch` () is the mean log-ratio of policy to reference on responses to
    other prompts, which only KTO reads.
    """

    policy: Tensor
    reference: Tensor
    tokens: Tensor
    mismatch: Tensor | None = None

    @property
    def log_ratios(self) -> Tensor:
        """log policy - log reference of whole responses, (N, 2), nats."""
        return self.policy - self.reference


@dataclass(frozen=True)
class PreferenceKnobs:
    """Settings of the losses.

    Args:
        beta: how strongly the policy is held to the reference (for `orpo`: the weight of the odds ratio).
        margin: by how much the preferred response's score has to be ahead (SimPO's gamma).
        label_smoothing: probability that a label is wrong, in [0, 0.5): `robust` corrects for it, others are cautious
            by it (conservative DPO, Mitchell 2023).
        length_normalized: read means over tokens instead of sums (`simpo` and `orpo` always do).
        nll_weight: weight of the preferred response's negative log-likelihood per token, which is added.
    """

    beta: float
    margin: float = 0.0
    label_smoothing: float = 0.0
    length_normalized: bool = False
    nll_weight: float = 0.0


def _log_ratio_scores(pairs: PairLogprobs, knobs: PreferenceKnobs) -> Tensor:
    ratios = pairs.log_ratios
    return knobs.beta * (ratios / pairs.tokens if knobs.length_normalized else ratios)


def _mean_logprob_scores(pairs: PairLogprobs, knobs: PreferenceKnobs) -> Tensor:
    return knobs.beta * pairs.policy / pairs.tokens


def _log_odds(pairs: PairLogprobs, knobs: PreferenceKnobs) -> Tensor:
    mean = pairs.policy / pairs.tokens
    # log(p / (1 - p)) with p the geometric mean of the tokens' probabilities; p = 1 would be infinite odds.
    mean = mean.clamp(max=-torch.finfo(mean.dtype).tiny)
    return mean - torch.log(-torch.expm1(mean))


def _sigmoid(ahead: Tensor, knobs: PreferenceKnobs) -> Tensor:
    return F.softplus(knobs.margin - ahead)


def _hinge(ahead: Tensor, knobs: PreferenceKnobs) -> Tensor:
    return F.relu(1 + knobs.margin - ahead)


def _squared(ahead: Tensor, knobs: PreferenceKnobs) -> Tensor:
    return ((ahead - 0.5 - knobs.margin) / knobs.beta) ** 2


def _weighted_sigmoid(ahead: Tensor, knobs: PreferenceKnobs) -> Tensor:
    return knobs.beta * F.softplus(knobs.margin - ahead)


def _nothing(ahead: Tensor, knobs: PreferenceKnobs) -> Tensor:
    return torch.zeros_like(ahead)


@dataclass(frozen=True)
class PairLoss:
    """A loss of how far the preferred response's score is ahead of the other's.

    Args:
        title: its name in reports.
        scores: (pairs, knobs) -> scores (N, 2).
        ahead: (score of the preferred minus that of the other (N,), knobs) -> losses (N,).
        corrects: `label_smoothing` is the labels' known noise, whose bias is removed.
        chooses: labels only choose a response, so they are rounded.
    """

    title: str
    scores: Callable[[PairLogprobs, PreferenceKnobs], Tensor]
    ahead: Callable[[Tensor, PreferenceKnobs], Tensor]
    corrects: bool = False
    chooses: bool = False

    def each(self, pairs: PairLogprobs, p: Tensor, knobs: PreferenceKnobs) -> Tensor:
        """Losses (N,) under the labels p (N,)."""
        scores = self.scores(pairs, knobs)
        ahead = scores[:, 0] - scores[:, 1]
        return p * self.ahead(ahead, knobs) + (1 - p) * self.ahead(-ahead, knobs)


@dataclass(frozen=True)
class PointLoss:
    """A loss of each response by itself, desirable with its own probability: the mean of both responses' losses.

    `scores` are those of `PairLoss`; `desirable` takes (scores less the reference point (N, 2)) -> losses (N, 2).
    """

    title: str
    scores: Callable[[PairLogprobs, PreferenceKnobs], Tensor]
    desirable: Callable[[Tensor], Tensor]
    corrects: bool = False
    chooses: bool = False

    def each(self, pairs: PairLogprobs, p: Tensor, knobs: PreferenceKnobs) -> Tensor:
        """Losses (N,) under the labels p (N,). Raises ValueError without `pairs.mismatch`."""
        if pairs.mismatch is None:
            raise ValueError("this loss needs the log-ratio on mismatched responses, as its reference point")
        point = knobs.beta * pairs.mismatch.detach().clamp(min=0)
        above = self.scores(pairs, knobs) - point
        both = torch.stack([p, 1 - p], dim=1)
        return (both * self.desirable(above) + (1 - both) * self.desirable(-above)).mean(dim=1)


PREFERENCE_LOSSES: dict[str, PairLoss | PointLoss] = {
    # Rafailov et al. 2023 (arXiv:2305.18290), equation 7: -log sigmoid(D), D = beta (log-ratio of a - of b).
    "sigmoid": PairLoss("DPO", _log_ratio_scores, _sigmoid),
    # Azar et al. 2023 (arXiv:2310.12036), equation 17: (D / beta - 1 / (2 beta))^2.
    "ipo": PairLoss("IPO", _log_ratio_scores, _squared),
    # Zhao et al. 2023 (SLiC-HF, arXiv:2305.10425), on log-ratios as Liu et al. 2024 (RSO, arXiv:2309.06657) have it:
    # max(0, 1 - D).
    "hinge": PairLoss("hinge DPO", _log_ratio_scores, _hinge),
    # Chowdhury et al. 2024 (arXiv:2403.00409), equation 12: unbiased if a share `label_smoothing` of labels is wrong.
    "robust": PairLoss("robust DPO", _log_ratio_scores, _sigmoid, corrects=True),
    # Meng et al. 2024 (arXiv:2405.14734), equation 6: log-probabilities per token, a margin, no reference.
    "simpo": PairLoss("SimPO", _mean_logprob_scores, _sigmoid),
    # Hong et al. 2024 (arXiv:2403.07691), equations 6 and 7, with their lambda as beta; the likelihood of the
    # preferred response is `nll_weight`'s.
    "orpo": PairLoss("ORPO", _log_odds, _weighted_sigmoid),
    # Ethayarajh et al. 2024 (arXiv:2402.01306), equation 8, with equal weights of desirable and undesirable responses.
    "kto": PointLoss("KTO", _log_ratio_scores, lambda above: torch.sigmoid(-above)),
    # Fine-tuning on the preferred responses (Sharma et al. 2024, arXiv:2402.12366): `nll_weight` is all of it.
    "sft": PairLoss("SFT on preferred responses", _mean_logprob_scores, _nothing, chooses=True),
}
"""By `rl.loss` of `rl=dpo` and `rl=online_dpo`."""


def algorithm_title(algorithm: str, loss: str) -> str | None:
    """What reports call the algorithm of `rl.algorithm` and `rl.loss`; None if there is none of that name."""
    if algorithm == "best_of_n":
        return "best-of-n"
    if algorithm in ("dpo", "online_dpo"):
        title = PREFERENCE_LOSSES[loss].title if loss in PREFERENCE_LOSSES else None
        return f"online {title}" if title and algorithm == "online_dpo" else title
    return ALGORITHMS[algorithm].title if algorithm in ALGORITHMS else None


def believed(p_a: Tensor, label_smoothing: float, *, corrects: bool) -> Tensor:
    """The labels (N,) that a loss is the expectation over, if each is wrong with probability `label_smoothing`.

    Conservative: p (1 - e) + (1 - p) e. Corrected: (p - e) / (1 - 2 e), which undoes the former and may leave [0, 1].
    Raises ValueError unless 0 <= label_smoothing < 0.5.
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label smoothing must be at least 0 and below 0.5, got {label_smoothing}")
    if corrects:
        return (p_a - label_smoothing) / (1 - 2 * label_smoothing)
    return p_a * (1 - label_smoothing) + (1 - p_a) * label_smoothing


def preference_loss(
    name: str,
    pairs: PairLogprobs,
    p_a: Tensor,
    knobs: PreferenceKnobs,
    *,
    weight: Tensor | None = None,
    normalizer: Normalizer = None,
) -> tuple[Tensor, Metrics]:
    """The loss `name` of `PREFERENCE_LOSSES`: the weighted sum over pairs, divided by the sum of weights (N,).

    Metrics over pairs, those with `p_a` = 0.5 left out (NaN if none is left): `accuracy` (of the scores' order, equal
    ones count half), `margin` (by how much the preferred response's score is ahead), `preferred_log_ratio` and
    `other_log_ratio` (log policy - log reference of the preferred response and of the other, nats per response).
    """
    loss = PREFERENCE_LOSSES[name]
    p_a = p_a.to(pairs.policy.dtype)
    chosen = harden(p_a) if loss.chooses else p_a
    p = believed(chosen, knobs.label_smoothing, corrects=loss.corrects)
    each = loss.each(pairs, p, knobs)
    if knobs.nll_weight:
        nll = -pairs.policy / pairs.tokens
        each = each + knobs.nll_weight * (p * nll[:, 0] + (1 - p) * nll[:, 1])
    weight = torch.ones_like(each) if weight is None else weight.to(each.dtype)
    summed = normalise((weight * each).sum(), weight.sum(), normalizer)
    with torch.no_grad():
        scores = loss.scores(pairs, knobs)
        return summed, _metrics(scores, pairs.log_ratios, p_a)


def _metrics(scores: Tensor, log_ratios: Tensor, p_a: Tensor) -> Metrics:
    decided, a_better = p_a != 0.5, (p_a > 0.5)[:, None]
    ahead = (scores[:, 0] - scores[:, 1]) * torch.where(p_a > 0.5, 1.0, -1.0)
    preferred, other = torch.where(a_better, log_ratios, log_ratios.flip(1)).unbind(dim=1)
    return {
        "accuracy": masked_mean((torch.sign(ahead) + 1) / 2, decided),
        "margin": masked_mean(ahead, decided),
        "preferred_log_ratio": masked_mean(preferred, decided),
        "other_log_ratio": masked_mean(other, decided),
    }
