"""What a policy answers to the evaluation's prompts: one response each, or the best of several by a reward.

Answers are artifacts: whatever compares a policy with another reads the ones that it has given before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif.data.encode import Cuts
from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.decoding.sampler import Sampled
from rlaif.io import digest, read_records, write_records
from rlaif.models.split import Top
from rlaif.models.weights import load_top
from rlaif.records import Pair, Prompt, Sample
from rlaif.stages.common.context import Context
from rlaif.stages.common.policies import best_of, draw, policy_top, sft_parent, to_sample
from rlaif.stages.common.rewards.kinds import make_reward, reward_parents
from rlaif.stages.common.rewards.reward import Reward
from rlaif.stages.common.rows import encode_pairs
from rlaif.store import Artifact, ArtifactSpec

ANSWERS_FILE = "answers.jsonl"
VERSION = 2


@dataclass(frozen=True)
class Policy:
    """What answers prompts: `top`, or the best of `best_of` of its responses by `reward`.

    `sources` are the artifacts that hold them; none for the base model.
    """

    top: Top
    sources: tuple[Artifact, ...] = ()
    best_of: int = 1
    reward: Reward | None = None


def load_policy(ctx: Context, built: Mapping[str, Artifact]) -> Policy:
    """The policy of the artifact `rl` in `built`, which has those that its reward reads beside it."""
    own = built["rl"]
    top, count = load_top(ctx.model(), own.path), best_of(own.path)
    if count == 1:
        return Policy(top, (own,))
    read = (built[kind] for kind in reward_parents(ctx))
    return Policy(top, (own, *read), count, make_reward(ctx, built))


def load_baseline(ctx: Context, built: Mapping[str, Artifact]) -> Policy:
    """The SFT policy, or the base model if it is passed through."""
    return Policy(policy_top(ctx, built), tuple(built[kind] for kind in sft_parent(ctx)))


def answers(
    ctx: Context, policy: Policy, what: str, cuts: Cuts, own: Sequence[Prompt] | None = None
) -> list[Sample]:
    """The policy's response to each prompt of the evaluation that fits; `cuts` counts those that do not.

    `own` are other prompts to answer instead. All policies sample with the same noise: a comparison is of the policies,
    not of their luck. Of several responses, the first is the one that a single draw gives.
    """
    if own is None:
        prompts = ctx.encoder.fitting(ctx.task.test, limit=ctx.options.eval.num_prompts, cuts=cuts)
    else:
        prompts = ctx.encoder.fitting(own, cuts=cuts)

    def build(folder: Path) -> dict[str, Any]:
        every = _every(ctx, policy, prompts, what)
        write_records(folder / ANSWERS_FILE, _chosen(ctx, policy, every))
        drawn = [sample for samples in every for sample in samples]
        return {"eval/responses": len(drawn), "eval/tokens_generated": sum(one.tokens for one in drawn)}

    kept = ctx.store.get_or_build(_spec(ctx, policy, own), build, force=ctx.options.force == "all")
    return read_records(kept.file(ANSWERS_FILE), Sample)


def spent(ctx: Context, policy: Policy) -> dict[str, Any]:
    """How many responses, of how many tokens, the policy has drawn for its answers to the evaluation's prompts."""
    found = ctx.store.find(_spec(ctx, policy))
    return {} if found is None else found.metrics


def _spec(ctx: Context, policy: Policy, own: Sequence[Prompt] | None = None) -> ArtifactSpec:
    """The identity of a policy's answers: what it is made of by content, since a rebuilt artifact keeps its name."""
    options = ctx.options.eval
    named: dict[str, Any] = {"num_prompts": options.num_prompts}
    if own is not None:
        named = {"prompts": digest([[prompt.id, prompt.prompt] for prompt in own], 32)}
    return ArtifactSpec(
        kind="answers",
        config={
            "eval": {**named, "temperature": options.temperature, "top_k": options.top_k},
            "files": [source.manifest["files"] for source in policy.sources],
            "model": ctx.model_identity,
            "encoding": ctx.encoding,
        },
        parents=policy.sources,
        seed=ctx.options.seeds.eval,
        version=VERSION,
        data_hash=ctx.task.fingerprint,
    )


def _every(ctx: Context, policy: Policy, prompts: Sequence[Prompt], what: str) -> list[list[Sample]]:
    """The policy's first responses to all prompts, its second ones, and so on."""
    drawn = _drawn(ctx, policy.top, [(prompt, n) for n in range(policy.best_of) for prompt in prompts], what)
    return [drawn[i : i + len(prompts)] for i in range(0, len(drawn), len(prompts))]


def _chosen(ctx: Context, policy: Policy, every: Sequence[list[Sample]]) -> list[Sample]:
    """The response to each prompt that the policy gives, of all that it has drawn."""
    if policy.reward is None:
        return every[0]
    rewards = _rewards(ctx, policy.reward, every)
    # Of equal ones the first.
    chosen = (max(range(len(every)), key=lambda n, i=i: rewards[n][i]) for i in range(len(every[0])))  # type: ignore[misc]
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
