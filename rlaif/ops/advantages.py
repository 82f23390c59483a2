"""RL algorithms by how they credit a response's tokens: with a critic, against a baseline, within a group.

To add an algorithm, write its estimator here, an entry of `ALGORITHMS` and conf/rl/NAME.yaml.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlaif.ops.gae import gae
from rlaif.ops.masks import zero_masked

# Added to a group's standard deviation, so that nearly equal scores are not blown up to unit size.
_STD_FLOOR = 1e-4


Credit = tuple[Tensor, Tensor]
"""Advantages and returns."""


def reinforce_advantages(rewards: Tensor, baseline: Tensor, mask: Tensor, *, gamma: float) -> Credit:
    """Credit of REINFORCE with a `baseline`; all tensors are (B, T).

    return_t = sum of gamma^i r over the counted tokens from t on (i = 0 at t); A_t = return_t - baseline_t,
    which is GAE with lambda 1. Masked positions give 0. A baseline of zeros is plain REINFORCE; Lee et al. 2023
    (arXiv:2309.00267) use a value baseline.
    """
    return gae(rewards, baseline, mask, gamma=gamma, lam=1.0)


def rloo_advantages(scores: Tensor, group: int) -> Tensor:
    """Scores (N,) minus the mean score of the other responses to the same prompt.

    The `group` responses of a prompt are adjacent. Leaving the response itself out keeps the policy gradient
    unbiased. Raises ValueError if `group` is below 2 or does not divide N.
    Source: Kool et al. 2019; Ahmadian et al. 2024, section 3.
    """
    rows = _groups(scores, group)
    others = (rows.sum(1, keepdim=True) - rows) / (group - 1)
    return (rows - others).flatten()


def grpo_advantages(scores: Tensor, group: int) -> Tensor:
    """Scores (N,) standardised within their prompt's group: mean 0, population standard deviation 1.

    Groups and errors as in `rloo_advantages`; equal scores give 0. Source: Shao et al. 2024, section 4.1.
    """
    rows = _groups(scores, group)
    centred = rows - rows.mean(1, keepdim=True)
    return (centred / (rows.std(1, correction=0, keepdim=True) + _STD_FLOOR)).flatten()


def drgrpo_advantages(scores: Tensor, group: int) -> Tensor:
    """Scores (N,) minus their group's mean, not divided by its standard deviation.

    So a prompt whose responses are all about equally good weighs no more than any other ("GRPO done right").
    Groups and errors as in `rloo_advantages`. Source: Liu et al. 2025 (arXiv:2503.20783), section 3.2.
    """
    rows = _groups(scores, group)
    return (rows - rows.mean(1, keepdim=True)).flatten()


def best_of_group(scores: Tensor, group: int) -> Tensor:
    """1 for the highest score (N,) of each prompt's group, the first of equal ones, and 0 for all others.

    As weights of log-probabilities they fine-tune on the best responses: RAFT, or expert iteration by rejection
    sampling. Groups and errors as in `rloo_advantages`. Source: Dong et al. 2023 (arXiv:2304.06767), algorithm 1.
    """
    rows = _groups(scores, group)
    highest = rows == rows.amax(1, keepdim=True)
    return (highest & (highest.cumsum(1) == 1)).to(scores).flatten()


def _groups(scores: Tensor, group: int) -> Tensor:
    if group < 2 or len(scores) % group:
        raise ValueError(f"{len(scores)} scores are not groups of {group}: a group has two or more responses")
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
    """Scores (N,) minus penalties on a response's form; `finished` (N,) is boolean, `lengths` (N,) in tokens.

    `length_penalty` is per token. A response that did not end loses `missing_eos_penalty` (as in TRL), or gets
    `missing_eos_score` as its whole score (the "EOS trick" of Huang et al. 2024, arXiv:2403.17031).
    """
    unfinished = (~finished).to(scores)
    scores = scores - missing_eos_penalty * unfinished - length_penalty * lengths.to(scores)
    if missing_eos_score is None:
        return scores
    return torch.where(finished, scores, torch.full_like(scores, missing_eos_score))


@dataclass(frozen=True)
class Horizon:
    """What an estimator may read besides rewards and values; a prompt's `group` responses are adjacent."""

    gamma: float
    lam: float
    group: int


Estimator = Callable[[Tensor, Tensor, Tensor, Horizon], Credit]
"""(rewards, values, mask), all (N, T), and the horizon -> (advantages, returns), both (N, T), 0 where masked."""


def of_groups(compare: Callable[[Tensor, int], Tensor]) -> Estimator:
    """An estimator that compares whole responses by `compare` (scores (N,), group -> (N,)): one value per response."""

    def estimate(rewards: Tensor, values: Tensor, mask: Tensor, horizon: Horizon) -> Credit:
        totals = rewards.sum(1)
        advantages = compare(totals, horizon.group)[:, None].expand_as(rewards)
        return zero_masked(advantages, mask), zero_masked(totals[:, None].expand_as(rewards), mask)

    return estimate


def _gae(rewards: Tensor, values: Tensor, mask: Tensor, horizon: Horizon) -> Credit:
    return gae(rewards, values, mask, gamma=horizon.gamma, lam=horizon.lam)


def _return(rewards: Tensor, values: Tensor, mask: Tensor, horizon: Horizon) -> Credit:
    return reinforce_advantages(rewards, values, mask, gamma=horizon.gamma)


@dataclass(frozen=True)
class Algorithm:
    """An RL algorithm: its title in reports, the name of its advantages (`rl.advantage`), and their estimator.

    `groups`: it compares the responses to one prompt, without a critic. `critic`: it needs one. `chooses`: its
    advantages are 1 for one response to each prompt, which is learnt, and 0 for the others.
    """

    title: str
    advantage: str
    estimate: Estimator
    groups: bool = False
    critic: bool = False
    chooses: bool = False


ALGORITHMS: dict[str, Algorithm] = {
    "ppo": Algorithm("PPO", "gae", _gae, critic=True),
    "reinforce": Algorithm("REINFORCE", "return", _return),
    "rloo": Algorithm("RLOO", "rloo", of_groups(rloo_advantages), groups=True),
    "grpo": Algorithm("GRPO", "grpo", of_groups(grpo_advantages), groups=True),
    "drgrpo": Algorithm("Dr. GRPO", "drgrpo", of_groups(drgrpo_advantages), groups=True),
    "raft": Algorithm("RAFT", "raft", of_groups(best_of_group), groups=True, chooses=True),
}
"""By `rl.algorithm`. Reports find the title by the advantages used, so that none is called by another's name."""


def by_advantage(name: str) -> Algorithm:
    """The algorithm of `rl.advantage=name`. Raises ValueError unless there is exactly one."""
    found = [algorithm for algorithm in ALGORITHMS.values() if algorithm.advantage == name]
    if len(found) != 1:
        raise ValueError(f"{len(found)} entries of ALGORITHMS have the advantage {name!r}: give each its own")
    return found[0]
