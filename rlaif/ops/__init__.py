"""Pure torch maths of the algorithms. Masks are boolean (B, T), True = counts. Imports torch alone."""

from rlaif.ops.advantages import ALGORITHMS, Horizon, by_advantage, penalised_scores
from rlaif.ops.gae import gae
from rlaif.ops.kl import KLKind, adapted_beta, kl_estimate, kl_shaped_rewards
from rlaif.ops.logprobs import head_logprobs, token_entropy, token_logprobs
from rlaif.ops.losses import (
    LOSS_MEANS,
    POLICY_LOSSES,
    bradley_terry_loss,
    confidence_weight,
    harden,
    kl_loss,
    learnt_mask,
    ppo_policy_loss,
    ppo_value_loss,
    reinforce_loss,
    sft_loss,
)
from rlaif.ops.masks import last_index, masked_mean, masked_sum, masked_var, whiten, zero_masked
from rlaif.ops.preference import (
    PREFERENCE_LOSSES,
    PairLogprobs,
    PointLoss,
    PreferenceKnobs,
    algorithm_title,
    preference_loss,
)
from rlaif.ops.ranks import by_first, joined, own_share, rank, ranks, total
from rlaif.ops.rewards import combine_members, empty_last, length_reward

__all__ = [
    "ALGORITHMS",
    "LOSS_MEANS",
    "POLICY_LOSSES",
    "PREFERENCE_LOSSES",
    "Horizon",
    "KLKind",
    "PairLogprobs",
    "PointLoss",
    "PreferenceKnobs",
    "adapted_beta",
    "algorithm_title",
    "bradley_terry_loss",
    "by_advantage",
    "by_first",
    "combine_members",
    "confidence_weight",
    "empty_last",
    "gae",
    "harden",
    "head_logprobs",
    "joined",
    "kl_estimate",
    "kl_loss",
    "kl_shaped_rewards",
    "last_index",
    "learnt_mask",
    "length_reward",
    "masked_mean",
    "masked_sum",
    "masked_var",
    "own_share",
    "penalised_scores",
    "ppo_policy_loss",
    "ppo_value_loss",
    "preference_loss",
    "rank",
    "ranks",
    "reinforce_loss",
    "sft_loss",
    "token_entropy",
    "token_logprobs",
    "total",
    "whiten",
    "zero_masked",
]
