"""The algorithm of stage=rl as configuration: which options of `rl` go together, and how it samples."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields

from rlaif.errors import UserError
from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.rollouts import RolloutCollector
from rlaif.ops import ALGORITHMS, LOSS_MEANS, POLICY_LOSSES
from rlaif.ops.advantages import Algorithm
from rlaif.options.read import need
from rlaif.options.training import ON_PAIRS, ON_REVISIONS, RLOptions
from rlaif.records import Prompt
from rlaif.stages.common.context import Context
from rlaif.stages.rl.online.module import PPOOptions


def rl_options(ctx: Context) -> PPOOptions:
    """The module's options: keys of `rl` with the same names, the limit on responses, and the stage's seed."""
    names = {field.name for field in fields(PPOOptions)} - {"seed", "max_response_tokens"}
    return PPOOptions(
        **{name: getattr(ctx.options.rl, name) for name in names},
        max_response_tokens=ctx.options.task.max_response_tokens,
        seed=ctx.options.seeds.rl,
    )


def check_rl(options: RLOptions) -> None:
    """Raises UserError for unknown values of `rl`, and for values that make no sense together."""
    algorithm = ALGORITHMS[options.algorithm]
    own = [field.name for field in fields(options) if field.name not in (*ON_PAIRS, *ON_REVISIONS, "best_of")]
    need(options, "rl", own, f"rl={options.algorithm}")
    known: Mapping[str, Collection[str]] = {
        "loss": POLICY_LOSSES,
        "loss_mean": LOSS_MEANS,
    }
    for key, values in known.items():
        found = getattr(options, key)
        if found not in values:
            *first, last = values
            raise UserError(f"rl.{key}={found} is not known: write {', '.join(first)} or {last}")
    if algorithm.advantage != options.advantage:
        raise UserError(
            f"rl.algorithm={options.algorithm} does not go with rl.advantage={options.advantage}: "
            f"write rl={options.algorithm}, which sets both"
        )
    _check_numbers(options)
    _check_critic(options, algorithm)
    if algorithm.groups:
        _check_groups(options)
    _check_choice(options, algorithm)
    _check_kl(options)


def _check_numbers(options: RLOptions) -> None:
    if (options.prompts_per_iteration * options.samples_per_prompt) % options.minibatch_rollouts:
        raise UserError("rl.minibatch_rollouts must divide rl.prompts_per_iteration * rl.samples_per_prompt")
    if options.ppo_epochs > 1 and not POLICY_LOSSES[options.loss].corrects:
        raise UserError(
            f"rl.ppo_epochs={options.ppo_epochs} would learn from responses of an older policy, which "
            f"rl.loss={options.loss} does not correct for: write rl.ppo_epochs=1 or rl.loss=clip"
        )
    check_penalties(options)


def check_penalties(options: RLOptions) -> None:
    """Raises UserError for penalties on scores that exclude each other."""
    if options.missing_eos_score is not None and options.missing_eos_penalty:
        raise UserError(
            "rl.missing_eos_score replaces the score that rl.missing_eos_penalty is taken from: "
            "write rl.missing_eos_penalty=0, or rl.missing_eos_score=null"
        )


def _check_critic(options: RLOptions, algorithm: Algorithm) -> None:
    if algorithm.critic and options.value == "none":
        raise UserError(
            f"rl.advantage={options.advantage} needs a critic: write rl.value=shared or rl.value=separate"
        )
    if algorithm.groups and options.value != "none":
        raise UserError(f"rl.advantage={options.advantage} reads no critic: write rl.value=none")


def _check_groups(options: RLOptions) -> None:
    if options.samples_per_prompt < 2:
        raise UserError(
            f"rl.samples_per_prompt={options.samples_per_prompt} gives rl.advantage={options.advantage} nothing to "
            "compare a response with: write 2 or more"
        )
    if options.whiten_rewards:
        raise UserError(
            f"rl.whiten_rewards rescales single tokens, rl.advantage={options.advantage} compares whole responses: "
            "write rl.whiten_rewards=false"
        )
    if options.gamma != 1:
        raise UserError(
            f"rl.gamma={options.gamma} discounts tokens, rl.advantage={options.advantage} compares whole responses: "
            "write rl.gamma=1"
        )


def _check_choice(options: RLOptions, algorithm: Algorithm) -> None:
    if not algorithm.chooses:
        if POLICY_LOSSES[options.loss].likelihood:
            raise UserError(
                f"rl.loss={options.loss} raises the likelihood of chosen responses, but "
                f"rl.advantage={options.advantage} chooses none: write rl=raft, or rl.loss=clip"
            )
        return
    if not POLICY_LOSSES[options.loss].likelihood:
        raise UserError(
            f"rl.loss={options.loss} reads advantages of either sign, but rl.advantage={options.advantage} only "
            "chooses a response: write rl.loss=nll"
        )
    if options.whiten_advantages:
        raise UserError(
            f"rl.whiten_advantages=true would turn the choice of rl.advantage={options.advantage} into penalties for "
            "the other responses: write rl.whiten_advantages=false"
        )
    if options.minibatch_rollouts % options.samples_per_prompt:
        raise UserError(
            f"rl.minibatch_rollouts={options.minibatch_rollouts} must be a multiple of "
            f"rl.samples_per_prompt={options.samples_per_prompt}, since rl.advantage={options.advantage} learns one "
            "response to each prompt"
        )


def _check_kl(options: RLOptions) -> None:
    if options.kl == "loss" and options.kl_estimator == "k1":
        raise UserError(
            "rl.kl_estimator=k1 as a loss has no gradient on average: write rl.kl_estimator=k2 or k3, or "
            "rl.kl=reward"
        )
    adaptive = options.kl_controller == "adaptive"
    if options.kl == "reward" and options.kl_estimator != "k1" and (options.beta or adaptive):
        raise UserError(
            f"rl.kl_estimator={options.kl_estimator} as a reward hardly holds the policy back: its gradient is a few "
            "hundredths to two fifths of the KL's, and may point away from the reference: write rl.kl_estimator=k1, "
            "or rl.kl=loss"
        )
    if options.convex_kl and (options.beta >= 1 or adaptive):
        raise UserError(
            "rl.convex_kl=true weighs the score by 1 - beta, so beta must stay below 1: write an rl.beta "
            "below 1 with rl.kl_controller=fixed"
        )
    if adaptive and not options.beta:
        raise UserError(
            "rl.kl_controller=adaptive scales rl.beta towards rl.kl_target: write an rl.beta above 0"
        )


def rl_collector(ctx: Context, prompts: Sequence[Prompt], *, samples_per_prompt: int = 1) -> RolloutCollector:
    """Samples responses to `prompts` as RL does: with its length, temperature, ends and noise."""
    return RolloutCollector(
        prompts,
        [ctx.encoder.prompt(prompt.prompt) for prompt in prompts],
        ctx.encoder.decode,
        Decoding(ctx.options.task.max_response_tokens, ctx.options.rl.temperature),
        eos_ids=ctx.model().eos_ids,
        samples_per_prompt=samples_per_prompt,
        max_rows=ctx.options.rl.max_rows,
        seed=ctx.options.seeds.rl,
    )
