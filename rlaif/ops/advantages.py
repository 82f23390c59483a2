"""Advantages without a learned critic: returns against a baseline, and responses against their group."""

from __future__ import annotations

import torch
from torch import Tensor

from rlaif.ops.gae import gae

# Added to a group's standard deviation, so that nearly equal scores are not blown up to size one.
_STD_FLOOR = 1e-4


def reinforce_advantages(
    rewards: Tensor, baseline: Tensor, mask: Tensor, *, gamma: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both (B, T), of REINFORCE with a `baseline`; all tensors are (B, T).

    return_t = sum of gamma^i r over the counted tokens from t on, i = 0 at t; A_t = return_t - baseline_t,
    which is GAE with lambda 1. Masked positions give 0. Source: paper.md section 4 (value baseline);
    a baseline of zeros is plain REINFORCE.
    """
    return gae(rewards, baseline, mask, gamma=gamma, lam=1.0)


def rloo_advantages(scores: Tensor, group: int) -> Tensor:
    """(N,) scores less the mean score of the other responses to the same prompt.

    The `group` responses of a prompt stand together. Leaving the response itself out keeps the policy
    gradient unbiased. Raises ValueError when `group` is below 2 or does not divide N.
    Source: Kool et al. 2019; Ahmadian et al. 2024, section 3.
    """
    rows = _groups(scores, group)
    others = (rows.sum(1, keepdim=True) - rows) / (group - 1)
    return (rows - others).flatten()


def grpo_advantages(scores: Tensor, group: int) -> Tensor:
    """(N,) scores standardised within their prompt's group: mean 0, population standard deviation 1.

    The `group` responses of a prompt stand together; equal scores give 0.
    Raises ValueError when `group` is below 2 or does not divide N. Source: Shao et al. 2024, section 4.1.
    """
    rows = _groups(scores, group)
    centred = rows - rows.mean(1, keepdim=True)
    return (centred / (rows.std(1, correction=0, keepdim=True) + _STD_FLOOR)).flatten()


def _groups(scores: Tensor, group: int) -> Tensor:
    if group < 2 or len(scores) % group:
        raise ValueError(f"{len(scores)} scores are no groups of {group}: a group has two responses or more")
    return scores.view(-1, group)


def penalised_scores(
    scores: Tensor,
    finished: Tensor,
    lengths: Tensor,
    *,
    missing_eos_penalty: float,
    missing_eos_score: float | None,
    length_penalty: float,
) -> Tensor:
    """Scores (N,) less what a response pays for its form; `finished` (N,) boolean, `lengths` (N,) in tokens.

    `length_penalty` is taken for each token, `missing_eos_penalty` from a response that did not end; a
    `missing_eos_score` stands in for the whole score of such a response (checklist 21 has both forms).
    """
    unfinished = (~finished).to(scores)
    scores = scores - missing_eos_penalty * unfinished - length_penalty * lengths.to(scores)
    if missing_eos_score is None:
        return scores
    return torch.where(finished, scores, torch.full_like(scores, missing_eos_score))
