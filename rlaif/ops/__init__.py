"""Pure torch maths of the algorithms. Masks are boolean (B, T), True = counts. Imports torch alone."""

from rlaif.ops.gae import gae
from rlaif.ops.kl import KLKind, kl_estimate, kl_shaped_rewards
from rlaif.ops.logprobs import head_logprobs, token_entropy, token_logprobs
from rlaif.ops.losses import (
    bradley_terry_loss,
    confidence_weight,
    harden,
    ppo_policy_loss,
    ppo_value_loss,
    sft_loss,
)
from rlaif.ops.masks import (
    last_index,
    masked_mean,
    masked_sum,
    masked_var,
    moment_sums,
    moments_from_sums,
    whiten,
    zero_masked,
)

__all__ = [
    "KLKind",
    "bradley_terry_loss",
    "confidence_weight",
    "gae",
    "harden",
    "kl_estimate",
    "kl_shaped_rewards",
    "last_index",
    "masked_mean",
    "masked_sum",
    "masked_var",
    "moment_sums",
    "moments_from_sums",
    "ppo_policy_loss",
    "ppo_value_loss",
    "sft_loss",
    "token_entropy",
    "head_logprobs",
    "token_logprobs",
    "whiten",
    "zero_masked",
]
