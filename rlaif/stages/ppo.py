"""stage=ppo: RL fine-tuning of the SFT policy against the configured reward."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from rlaif.data.datamodule import PromptCursor
from rlaif.errors import UserError
from rlaif.evaluation import copy_rate, distinct_ngram_share
from rlaif.inference.sampler import Decoding
from rlaif.io import write_jsonl
from rlaif.models.split import ScalarHead
from rlaif.models.weights import TOP_FILE, save_modules
from rlaif.modules import PPOModule
from rlaif.rollout import Rollout, RolloutCollector
from rlaif.stages.context import Context, plain
from rlaif.stages.graph import Parents, Stage, Work
from rlaif.stages.rewards import check_reward, make_reward, reward_config, reward_parents, reward_work
from rlaif.stages.rl import check_rl, rl_options
from rlaif.stages.sample import rl_prompts
from rlaif.stages.sft import policy_top, sft_parent
from rlaif.stages.sizes import prompt_tokens, response_tokens
from rlaif.stages.training import fit, make_trainer, optim_options

HISTORY_FILE = "history.jsonl"
LAST = 3  # iterations averaged for the end's figures


def iterations(ctx: Context, prompts: int) -> int:
    """Iterations of the configured passes over the prompts (at least one)."""
    node = ctx.cfg.rl
    return max(1, int(node.num_epochs * prompts) // node.prompts_per_iteration)


def _diagnose(rollout: Rollout) -> dict[str, float]:
    pairs = list(zip(rollout.responses, rollout.prompts, strict=True))
    return {
        "ppo/copy_rate": fmean(copy_rate(response, prompt.prompt) for response, prompt in pairs),
        "ppo/distinct_3": distinct_ngram_share(rollout.responses, 3),
    }


def _check(ctx: Context) -> None:
    check_rl(ctx.cfg.rl)
    check_reward(ctx)


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
    policy, reward = policy_top(ctx, parents), make_reward(ctx, parents)
    module = PPOModule(
        policy,
        None if node.value == "none" else ScalarHead(model.trunk.config.hidden_size),
        policy_top(ctx, parents) if node.value == "separate" else None,
        policy_top(ctx, parents).frozen_copy(),
        # A copy in the compute dtype decodes without casting the masters at every token.
        collect=lambda iteration: collector.collect(
            policy.frozen_copy(), cursor.indices(iteration), iteration
        ),
        reward=reward,
        diagnose=lambda rollout: _diagnose(rollout) | reward.measures,
        rollouts_per_iteration=rollouts,
        options=rl_options(ctx),
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
    if "ppo/usd" in metrics:
        metrics["ppo/usd"] = sum(row["ppo/usd"] for row in history)
    return metrics


def _config(ctx: Context) -> dict[str, Any]:
    node = plain(ctx.cfg.rl)
    node.pop("max_rows")
    return {
        "rl": node,
        "reward": reward_config(ctx),
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
    scoring = reward_work(ctx, rollouts)
    return Work(
        forward=rollouts * prompt + (scoring.forward if scoring.seconds is None else 0.0),
        decoded=rollouts * response,
        trained=rollouts * (prompt + response) * passes,
        usd=scoring.usd,
    )


def _parents(ctx: Context) -> tuple[str, ...]:
    return (*reward_parents(ctx), *sft_parent(ctx))


STAGE = Stage("ppo", 3, "rl", _parents, _config, _build, _work, _check)
