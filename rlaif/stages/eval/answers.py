"""What a policy answers to the evaluation's prompts: one response each, or the best of several by a reward."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.data.encode import Cuts
from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.decoding.sampler import Sampled
from rlaif.models.split import Top
from rlaif.models.weights import load_top
from rlaif.records import Pair, Prompt, Sample
from rlaif.stages.common.context import Context
from rlaif.stages.common.policies import best_of, draw, to_sample
from rlaif.stages.common.rewards.kinds import make_reward
from rlaif.stages.common.rewards.reward import Reward
from rlaif.stages.common.rows import encode_pairs
from rlaif.store import Artifact


@dataclass(frozen=True)
class Policy:
    """What answers prompts: `top`, or the best of `best_of` of its responses by `reward`."""

    top: Top
    best_of: int = 1
    reward: Reward | None = None


def load_policy(ctx: Context, built: Mapping[str, Artifact]) -> Policy:
    """The policy of the artifact `rl` in `built`, which has those that its reward reads beside it."""
    folder = built["rl"].path
    count = best_of(folder)
    return Policy(load_top(ctx.model(), folder), count, make_reward(ctx, built) if count > 1 else None)


def answers(ctx: Context, policy: Policy, what: str, cuts: Cuts) -> list[Sample]:
    """The policy's response to each prompt of the evaluation that fits; `cuts` counts those that do not.

    All policies sample with the same noise: a comparison is of the policies, not of their luck. Of several responses,
    the first is the one that a single draw gives.
    """
    options = ctx.options.eval
    prompts = ctx.encoder.fitting(ctx.task.test, limit=options.num_prompts, cuts=cuts)
    drawn = _drawn(ctx, policy.top, [(prompt, n) for n in range(policy.best_of) for prompt in prompts], what)
    every = [drawn[i : i + len(prompts)] for i in range(0, len(drawn), len(prompts))]
    if policy.reward is None:
        return every[0]
    rewards = _rewards(ctx, policy.reward, every)
    # Of equal ones the first.
    chosen = (max(range(len(every)), key=lambda n, i=i: rewards[n][i]) for i in range(len(prompts)))  # type: ignore[misc]
    return [every[n][i] for i, n in enumerate(chosen)]


def _drawn(ctx: Context, top: Top, slots: Sequence[tuple[Prompt, int]], what: str) -> list[Sample]:
    """A response for each (prompt, which of its responses)."""
    options, seed = ctx.options.eval, ctx.options.seeds.eval
    decoding = Decoding(ctx.options.task.max_response_tokens, options.temperature, options.top_k)
    keys = [[seed, prompt.id, n] if n else [seed, prompt.id] for prompt, n in slots]
    prompts = [prompt for prompt, _ in slots]
    with ctx.features.storing(ctx.model()) as store:
        # Decoding computes what `encode_pairs` will read.
        def keep(index: int, got: Sampled) -> None:
            if store and got.features is not None:
                store(ctx.encoder.prompt(prompts[index].prompt), got.ids, got.features)

        more: dict[str, Any] = {"keep_features": store is not None, "receive": keep}
        drawn = draw(ctx, top.frozen_copy(), prompts, keys, decoding, options.max_rows, what, **more)
    return [to_sample(ctx, prompt, got) for prompt, got in zip(prompts, drawn, strict=True)]


def _rewards(ctx: Context, reward: Reward, every: Sequence[Sequence[Sample]]) -> list[list[float]]:
    """The reward of every response, in the shape of `every`; -inf if it has none, as an unreadable score."""
    read: list[list[float]] = []
    for first in range(0, len(every), 2):
        one, two = every[first], every[min(first + 1, len(every) - 1)]
        rows = encode_pairs(ctx, [Pair.between(a, b) for a, b in zip(one, two, strict=True)], "best of n")
        both = [pair or (-math.inf, -math.inf) for pair in reward.of_pairs((one, two), rows)]
        read += [[a for a, _ in both], [b for _, b in both]]
    return read[: len(every)]
