"""stage=ppo: RL fine-tuning of the SFT policy against the reward model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from rlaif.data.datamodule import PromptCursor
from rlaif.errors import UserError
from rlaif.evaluation import copy_rate, distinct_ngram_share
from rlaif.inference.sampler import Decoding
from rlaif.io import write_jsonl
from rlaif.models.split import ScalarHead
from rlaif.models.weights import TOP_FILE, load_reward, save_modules
from rlaif.modules import PPOModule, PPOOptions
from rlaif.modules.reward import sequence_scores
from rlaif.rollout import Rollout, RolloutCollector
from rlaif.stages.context import Context, plain
from rlaif.stages.graph import Parents, Stage, Work
from rlaif.stages.sample import rl_prompts
from rlaif.stages.sft import policy_top, sft_parent
from rlaif.stages.sizes import prompt_tokens, response_tokens
from rlaif.stages.training import fit, make_trainer, optim_options

HISTORY_FILE = "history.jsonl"
LAST = 3  # iterations averaged for the end's figures


def iterations(ctx: Context, prompts: int) -> int:
    """Iterations of the configured passes over the prompts (at least one)."""
    node = ctx.cfg.rl
    return max(1, node.num_epochs * prompts // node.prompts_per_iteration)


def model_reward(ctx: Context, parents: Parents) -> Callable[[Rollout], Tensor]:
    """The members' mean normalised reward of each response, read from the rollout's own trunk features."""
    members = [member.frozen_copy() for member in load_reward(ctx.model(), parents["rm"].path)]

    def reward(rollout: Rollout) -> Tensor:
        parts = []
        for start in range(0, len(rollout), 64):
            features, last = rollout.features[start : start + 64], rollout.last[start : start + 64]
            rewards = [sequence_scores(m.top, m.head, features, last) + m.shift for m in members]
            parts.append(torch.stack(rewards).mean(0))
        return torch.cat(parts)

    return reward


def _diagnose(rollout: Rollout) -> dict[str, float]:
    pairs = list(zip(rollout.responses, rollout.prompts, strict=True))
    return {
        "ppo/copy_rate": fmean(copy_rate(response, prompt.prompt) for response, prompt in pairs),
        "ppo/distinct_3": distinct_ngram_share(rollout.responses, 3),
    }


def _options(ctx: Context) -> PPOOptions:
    node = ctx.cfg.rl
    return PPOOptions(
        temperature=node.temperature,
        beta=node.beta,
        gamma=node.gamma,
        lam=node.lam,
        clip=node.clip,
        value_clip=node.value_clip,
        value_coefficient=node.value_coefficient,
        ppo_epochs=node.ppo_epochs,
        minibatch_rollouts=node.minibatch_rollouts,
        whiten_advantages=node.whiten_advantages,
        missing_eos_penalty=node.missing_eos_penalty,
        value_lr_factor=node.value_lr_factor,
        max_kl=node.max_kl,
        seed=ctx.cfg.seeds.rl,
    )


def _check(ctx: Context) -> None:
    node = ctx.cfg.rl
    if node.algorithm != "ppo":
        raise UserError(f"rl.algorithm={node.algorithm} is not known: write ppo")
    if node.value not in ("shared", "separate"):
        raise UserError(f"rl.value={node.value} is not known: write shared or separate")
    if ctx.cfg.reward.kind != "rm":
        raise UserError(f"reward.kind={ctx.cfg.reward.kind} is not known: write reward=rm")
    if node.max_kl is not None and node.max_kl <= 0:
        raise UserError(
            f"rl.max_kl={node.max_kl} would stop before the first update: write a number above 0, or null"
        )
    if (node.prompts_per_iteration * node.samples_per_prompt) % node.minibatch_rollouts:
        raise UserError("rl.minibatch_rollouts must divide rl.prompts_per_iteration * rl.samples_per_prompt")


def _module(ctx: Context, parents: Parents) -> tuple[PPOModule, int]:
    """The PPO module with its collector, and the number of iterations."""
    node, model = ctx.cfg.rl, ctx.model()
    prompts = rl_prompts(ctx, node.num_prompts)
    if not prompts:
        raise UserError("no prompt fits task.max_prompt_tokens: write a higher limit")
    count, rollouts = iterations(ctx, len(prompts)), node.prompts_per_iteration * node.samples_per_prompt
    collector = RolloutCollector(
        prompts,
        [ctx.encoder.prompt(p.prompt) for p in prompts],
        ctx.encoder.decode,
        Decoding(ctx.cfg.task.max_response_tokens, node.temperature),
        eos_id=model.eos_id,
        samples_per_prompt=node.samples_per_prompt,
        max_rows=node.max_rows,
        seed=ctx.cfg.seeds.rl,
    )
    cursor = PromptCursor(len(prompts), node.prompts_per_iteration, ctx.cfg.seeds.rl)
    policy = policy_top(ctx, parents)
    module = PPOModule(
        policy,
        ScalarHead(model.trunk.config.hidden_size),
        policy_top(ctx, parents) if node.value == "separate" else None,
        policy_top(ctx, parents).frozen_copy(),
        # A copy in the compute dtype decodes without casting the masters at every token.
        collect=lambda iteration: collector.collect(
            policy.frozen_copy(), cursor.indices(iteration), iteration
        ),
        reward=model_reward(ctx, parents),
        diagnose=_diagnose,
        rollouts_per_iteration=rollouts,
        options=_options(ctx),
        optim=optim_options(node, count * node.ppo_epochs * rollouts // node.minibatch_rollouts),
    )
    return module, count


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every metric that the last row has."""
    return {name: fmean(row[name] for row in rows) for name in rows[-1]}


def _build(ctx: Context, folder: Path, parents: Parents) -> dict[str, Any]:
    module, count = _module(ctx, parents)
    trainer = make_trainer(
        ctx,
        folder / "work",
        max_epochs=count,
        log_every=1,
        limit_val=False,
    )
    rollouts = ctx.cfg.rl.prompts_per_iteration * ctx.cfg.rl.samples_per_prompt
    with ctx.progress.task("PPO (rollouts)", count * rollouts) as advance:
        fit(trainer, module, folder / "work")
        advance(count * rollouts)
    save_modules(folder / TOP_FILE, {"top": module.policy})
    history = module.history
    write_jsonl(folder / HISTORY_FILE, [{"step": i, **row} for i, row in enumerate(history)])
    # The iteration that `rl.max_kl` stops has rollouts but no updates: a shorter row.
    updated = [row for row in history if "ppo/ratio_first" in row]
    metrics: dict[str, Any] = {**_means(updated[-LAST:]), **_means(history[-LAST:])}
    metrics["ppo/ratio_first"] = max(row["ppo/ratio_first"] for row in updated)
    metrics["ppo/reward_start"] = history[0]["ppo/reward"]
    metrics["ppo/iterations"] = len(history)
    return metrics


def _config(ctx: Context) -> dict[str, Any]:
    node = plain(ctx.cfg.rl)
    node.pop("max_rows")
    return {
        "rl": node,
        "reward": plain(ctx.cfg.reward),
        "model": ctx.model_identity,
        "encoding": ctx.encoding,
    }


def _work(ctx: Context) -> Work:
    node = ctx.cfg.rl
    rollouts = (
        iterations(ctx, min(node.num_prompts, len(ctx.task.train)))
        * node.prompts_per_iteration
        * node.samples_per_prompt
    )
    prompt, response = prompt_tokens(ctx), response_tokens(ctx)
    passes = node.ppo_epochs + 1  # scoring by policy, reference and reward model costs about one update
    return Work(
        forward=rollouts * prompt,
        decoded=rollouts * response,
        trained=rollouts * (prompt + response) * passes,
    )


STAGE = Stage("ppo", 2, "rl", lambda ctx: ("rm", *sft_parent(ctx)), _config, _build, _work, _check)
