"""The reward on prompts that no reward model was trained on, beside the one on RL's own prompts.

The reward model learnt from pairs of RL's own prompts, so its reward for responses to them may rise by memorisation.
Here it is measured on validation prompts whose conversations it never saw, with the same noise each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

from rlaif.inference.rollouts import RolloutCollector
from rlaif.models.split import Top
from rlaif.ops import by_first
from rlaif.records import Prompt
from rlaif.stages.common.context import Context
from rlaif.stages.common.limits import drawing_work, prompt_tokens, response_tokens
from rlaif.stages.common.measures.joining import with_bounds
from rlaif.stages.common.rewards.kinds import reward_parents
from rlaif.stages.common.rewards.reward import Reward
from rlaif.stages.common.sources import part_of, source
from rlaif.stages.common.stage import Work
from rlaif.stages.rl.online.options import rl_collector
from rlaif.stats import paired_test

NAME = "rl/reward_held_out"


@dataclass(frozen=True)
class HeldOut:
    """Measures the reward of `policy`, which starts as `reference`, on `prompts`.

    It does so before every `every`th of `iterations` iterations and before the last one, on the same policies whose
    rewards on RL's own prompts are in the history.
    """

    ctx: Context
    prompts: Sequence[Prompt]
    policy: Top
    reference: Top
    reward: Reward
    every: int
    iterations: int
    _start: list[float] = field(default_factory=list)

    def at(self, iteration: int) -> dict[str, float]:
        """Metrics of the policy before `iteration` if a measurement is due; else none."""
        if iteration % self.every and iteration != self.iterations - 1:
            return {}
        rewards = self._rewards(self.policy)
        if iteration == 0:
            self._start[:] = rewards
        return {NAME: fmean(rewards)}

    def told(self) -> dict[str, float]:
        """The summary's metrics of the current policy: its reward, the start's, and the gain with its interval."""
        end = self._rewards(self.policy)
        start = self._start or self._rewards(self.reference)  # a resumed run has not seen its start
        gain, _ = paired_test(end, start, [prompt.cluster for prompt in self.prompts], outcomes=False)
        return {
            NAME: fmean(end),
            f"{NAME}_start": fmean(start),
            **with_bounds(f"{NAME}_gain", gain),
            f"{NAME}_n": len(end),
        }

    def _rewards(self, top: Top) -> list[float]:
        rollout = self._collector.each(top.frozen_copy())
        return by_first(lambda: [float(reward) for reward in self.reward(rollout)])

    @cached_property
    def _collector(self) -> RolloutCollector:
        return rl_collector(self.ctx, self.prompts)


def unseen(ctx: Context, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Those of `prompts` whose conversations (or own pairs) the job's reward model was not trained on.

    All of them if the reward has no reward model. Pairs that chose its epoch (the validation part) count as seen.
    """
    if "rm" not in reward_parents(ctx) or source(ctx) == "policy":
        return list(prompts)  # sampled pairs belong to the training prompts
    seen = {pair.cluster for pair in ctx.task.pairs if part_of(ctx, pair.cluster) != "test"}
    return [prompt for prompt in prompts if prompt.cluster not in seen]


def make_held_out(
    ctx: Context, policy: Top, reference: Top, reward: Reward, iterations: int
) -> HeldOut | None:
    """The configured measurement; None if it is off or no reward model is trained.

    Without any unseen prompt it is skipped, with a warning.
    """
    options, every = ctx.options.rl.held_out, _every(ctx)
    if every is None:
        return None
    prompts = ctx.encoder.fitting(unseen(ctx, ctx.task.validation), limit=options.num_prompts)
    if not prompts:
        ctx.warn(
            "no held-out prompts",
            f"rl: none of the {len(ctx.task.validation)} validation prompts is new to the reward model, so its reward "
            "is only known on prompts that it may remember: write a larger task.validation_fraction, or "
            "rl.held_out.every=null",
        )
        return None
    return HeldOut(ctx, prompts, policy, reference, reward, every, iterations)


def _every(ctx: Context) -> int | None:
    """Iterations between two measurements; None if nothing is to be measured."""
    return ctx.options.rl.held_out.every if "rm" in reward_parents(ctx) else None


def held_out_work(ctx: Context, iterations: int) -> Work:
    """What measuring takes over a run of this many iterations, including its summary."""
    options, every = ctx.options.rl.held_out, _every(ctx)
    if every is None:
        return Work()
    prompts, times = min(options.num_prompts, len(ctx.task.validation)), -(-iterations // every) + 3
    scored = times * prompts * (prompt_tokens(ctx) + response_tokens(ctx))
    return drawing_work(ctx, prompts, ctx.options.rl.max_rows, times) + Work(scored=scored)
