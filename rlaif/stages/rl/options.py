"""The algorithm of stage=rl as configuration: which options of `rl` go together, what they say, how they sample."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

from rlaif.errors import UserError
from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.rollouts import RolloutCollector
from rlaif.ops import ALGORITHMS, LOSS_MEANS, POLICY_LOSSES
from rlaif.ops.advantages import Algorithm
from rlaif.records import Prompt
from rlaif.stages.common.context import Context
from rlaif.stages.rl.module import PPOOptions

KNOWN: Mapping[str, Collection[str]] = {
    "algorithm": ALGORITHMS,
    "value": ("shared", "separate", "none"),
    "loss": POLICY_LOSSES,
    "loss_mean": LOSS_MEANS,
    "kl": ("reward", "loss"),
    "kl_estimator": ("k1", "k2", "k3"),
    "kl_controller": ("fixed", "adaptive"),
}
AT_LEAST_ONE = (
    "num_prompts",
    "prompts_per_iteration",
    "samples_per_prompt",
    "minibatch_rollouts",
    "ppo_epochs",
)


def rl_options(ctx: Context) -> PPOOptions:
    """The module's options: keys of `rl` by the same names, the responses' limit, and the stage's seed."""
    names = {field.name for field in fields(PPOOptions)} - {"seed", "max_response_tokens"}
    return PPOOptions(
        **{name: ctx.cfg.rl[name] for name in names},
        max_response_tokens=ctx.cfg.task.max_response_tokens,
        seed=ctx.cfg.seeds.rl,
    )


def check_rl(node: Any) -> None:
    """Raises UserError for values of `rl` that are not known, or that make no sense together."""
    for key, values in KNOWN.items():
        if node[key] not in values:
            *first, last = values
            raise UserError(f"rl.{key}={node[key]} is not known: write {', '.join(first)} or {last}")
    algorithm = ALGORITHMS[node.algorithm]
    if algorithm.advantage != node.advantage:
        raise UserError(
            f"rl.algorithm={node.algorithm} does not go with rl.advantage={node.advantage}: "
            f"write rl={node.algorithm}, which sets both"
        )
    _check_numbers(node)
    _check_critic(node, algorithm)
    if algorithm.groups:
        _check_groups(node)
    _check_kl(node)


def _check_numbers(node: Any) -> None:
    for key in AT_LEAST_ONE:
        if node[key] < 1:
            raise UserError(f"rl.{key}={node[key]} trains nothing: write 1 or more")
    if node.temperature <= 0:
        raise UserError(f"rl.temperature={node.temperature} explores nothing: write a number above 0")
    if (node.prompts_per_iteration * node.samples_per_prompt) % node.minibatch_rollouts:
        raise UserError("rl.minibatch_rollouts must divide rl.prompts_per_iteration * rl.samples_per_prompt")
    if node.loss == "reinforce" and node.ppo_epochs > 1:
        raise UserError(
            f"rl.ppo_epochs={node.ppo_epochs} would learn from responses of an older policy, which "
            "rl.loss=reinforce does not correct for: write rl.ppo_epochs=1 or rl.loss=clip"
        )
    if node.missing_eos_score is not None and node.missing_eos_penalty:
        raise UserError(
            "rl.missing_eos_score replaces the score that rl.missing_eos_penalty is taken from: "
            "write rl.missing_eos_penalty=0, or rl.missing_eos_score=null"
        )


def _check_critic(node: Any, algorithm: Algorithm) -> None:
    if algorithm.critic and node.value == "none":
        raise UserError(
            f"rl.advantage={node.advantage} needs a critic: write rl.value=shared or rl.value=separate"
        )
    if algorithm.groups and node.value != "none":
        raise UserError(f"rl.advantage={node.advantage} reads no critic: write rl.value=none")


def _check_groups(node: Any) -> None:
    if node.samples_per_prompt < 2:
        raise UserError(
            f"rl.samples_per_prompt={node.samples_per_prompt} gives rl.advantage={node.advantage} nothing to "
            "compare a response with: write 2 or more"
        )
    if node.whiten_rewards:
        raise UserError(
            f"rl.whiten_rewards rescales single tokens, rl.advantage={node.advantage} compares whole responses: "
            "write rl.whiten_rewards=false"
        )
    if node.gamma != 1:
        raise UserError(
            f"rl.gamma={node.gamma} discounts tokens, rl.advantage={node.advantage} compares whole responses: "
            "write rl.gamma=1"
        )


def _check_kl(node: Any) -> None:
    if node.max_kl is not None and node.max_kl <= 0:
        raise UserError(
            f"rl.max_kl={node.max_kl} would stop before the first update: write a number above 0, or null"
        )
    if node.beta < 0:
        raise UserError(f"rl.beta={node.beta} would reward the KL: write 0 or more")
    if node.kl == "loss" and node.kl_estimator == "k1":
        raise UserError(
            "rl.kl_estimator=k1 has no gradient on average as a loss: write rl.kl_estimator=k2 or k3, or "
            "rl.kl=reward"
        )
    if node.kl == "reward" and node.kl_estimator != "k1" and (node.beta or node.kl_controller == "adaptive"):
        raise UserError(
            f"rl.kl_estimator={node.kl_estimator} as a reward hardly holds the policy back: its gradient is a few "
            "hundredths to two fifths of the KL's, and may point away from the reference: write rl.kl_estimator=k1, "
            "or rl.kl=loss"
        )
    if node.convex_kl and (node.beta >= 1 or node.kl_controller == "adaptive"):
        raise UserError(
            "rl.convex_kl=true weighs the score by 1 - beta, so that beta must stay below 1: write a rl.beta "
            "below 1 with rl.kl_controller=fixed"
        )
    if node.kl_controller == "adaptive" and min(node.beta, node.kl_target, node.kl_horizon) <= 0:
        raise UserError(
            "rl.kl_controller=adaptive multiplies rl.beta towards rl.kl_target over rl.kl_horizon responses: "
            "write numbers above 0 for all three"
        )


def rl_collector(ctx: Context, prompts: Sequence[Prompt], *, samples_per_prompt: int = 1) -> RolloutCollector:
    """What samples responses to `prompts` as RL does: its length, temperature, ends and noise."""
    return RolloutCollector(
        prompts,
        [ctx.encoder.prompt(prompt.prompt) for prompt in prompts],
        ctx.encoder.decode,
        Decoding(ctx.cfg.task.max_response_tokens, ctx.cfg.rl.temperature),
        eos_ids=ctx.model().eos_ids,
        samples_per_prompt=samples_per_prompt,
        max_rows=ctx.cfg.rl.max_rows,
        seed=ctx.cfg.seeds.rl,
    )
