"""stage=sample: the response pairs that the labeler compares, sampled from the policy or read from the task."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rlaif.data.encode import Cuts
from rlaif.errors import UserError
from rlaif.inference.sampler import Decoding, Sampled, sample
from rlaif.io import digest, write_records
from rlaif.models.split import Top
from rlaif.records import Pair, Prompt, Sample
from rlaif.stages.context import Context, plain
from rlaif.stages.cuts import cut_metrics, no_pairs
from rlaif.stages.graph import Parents, Stage, Work
from rlaif.stages.sft import policy_top, sft_parent
from rlaif.stages.sizes import prompt_tokens, response_tokens

logger = logging.getLogger(__name__)

PAIRS_FILE = "pairs.jsonl"


def source(ctx: Context) -> str:
    """`dataset` or `policy`; auto takes the data set's pairs where it has some (as the paper does)."""
    wanted = ctx.cfg.sample.source
    if wanted not in ("auto", "dataset", "policy"):
        raise UserError(f"sample.source={wanted} is not known: write auto, dataset or policy")
    if wanted == "dataset" and not ctx.task.pairs:
        raise UserError(
            f"sample.source=dataset, but task {ctx.task.name} has no pairs: write sample.source=policy"
        )
    return ("dataset" if ctx.task.pairs else "policy") if wanted == "auto" else wanted


def rl_prompts(ctx: Context, limit: int | None) -> list[Prompt]:
    """Training prompts for sampling and RL, taken from the end of the split: the rows that SFT saw last, if at all."""
    return ctx.encoder.fitting(reversed(ctx.task.train), limit=limit)


def draw(
    ctx: Context,
    top: Top,
    prompts: Sequence[Prompt],
    keys: Sequence[Any],
    decoding: Decoding,
    max_rows: int,
    what: str,
) -> list[Sampled]:
    """One response for each prompt; `keys[i]` decides its noise."""
    seeds = [int(digest(key, 15), 16) for key in keys]
    encoded = [ctx.encoder.prompt(p.prompt) for p in prompts]
    with ctx.progress.task(f"sampling ({what})", len(prompts)) as advance:
        return sample(
            top, encoded, seeds, decoding, eos_id=ctx.model().eos_id, max_rows=max_rows, progress=advance
        )


def to_sample(ctx: Context, prompt: Prompt, drawn: Sampled) -> Sample:
    """A drawn response as a record."""
    text = ctx.encoder.decode(drawn.ids)
    return Sample(prompt.id, prompt.prompt, text, len(drawn.ids), drawn.finished, prompt.reference)


def _draw_pairs(ctx: Context, top: Top) -> tuple[list[Pair], dict[str, Any]]:
    """Pairs of different responses; equal ones are redrawn `max_redraws` times, then dropped and counted."""
    node, seed = ctx.cfg.sample, ctx.cfg.seeds.sample
    prompts = rl_prompts(ctx, node.num_prompts)
    decoding = Decoding(ctx.cfg.task.max_response_tokens, node.temperature, node.top_k)
    slots = [(p, n, side) for p in prompts for n in range(node.num_samples) for side in "ab"]
    texts: dict[tuple[str, int, str], Sample] = {}
    pending, redrawn = slots, 0
    for attempt in range(node.max_redraws + 1):
        keys = [[seed, p.id, n, side, attempt] for p, n, side in pending]
        drawn = draw(ctx, top, [p for p, _, _ in pending], keys, decoding, node.max_rows, "pairs")
        for (prompt, n, side), got in zip(pending, drawn, strict=True):
            texts[prompt.id, n, side] = to_sample(ctx, prompt, got)
        equal = [
            (p, n)
            for p in prompts
            for n in range(node.num_samples)
            if texts[p.id, n, "a"].response == texts[p.id, n, "b"].response
        ]
        if not equal or attempt == node.max_redraws:
            break
        pending = [(p, n, "b") for p, n in equal]
        redrawn += len(pending)
    dropped = {(p.id, n) for p, n in equal}
    pairs = [
        Pair(
            f"{p.id}#{n}",
            p.id,
            p.prompt,
            texts[p.id, n, "a"].response,
            texts[p.id, n, "b"].response,
            "policy",
        )
        for p in prompts
        for n in range(node.num_samples)
        if (p.id, n) not in dropped
    ]
    every = list(texts.values())
    metrics = {
        "sample/redrawn": redrawn,
        "sample/identical_dropped": len(dropped),
        "sample/mean_tokens": fmean(s.tokens for s in every) if every else 0.0,
        "sample/eos_rate": fmean(s.finished for s in every) if every else 0.0,
    }
    return pairs, metrics


def _build(ctx: Context, folder: Path, parents: Parents) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    if source(ctx) == "dataset":
        cuts = Cuts()
        pairs = ctx.encoder.fitting(ctx.task.pairs, limit=ctx.cfg.sample.num_prompts, cuts=cuts)
        metrics = cut_metrics(ctx, "sample", cuts, "pairs")
        if not pairs:
            raise UserError(no_pairs(ctx, cuts))
    else:
        pairs, metrics = _draw_pairs(ctx, policy_top(ctx, parents).frozen_copy())
    if not pairs:
        raise UserError(
            "no pairs to label: every prompt was too long or every pair identical; see task.max_prompt_tokens"
        )
    write_records(folder / PAIRS_FILE, pairs)
    return {"sample/n": len(pairs), **metrics}


def _parents(ctx: Context) -> tuple[str, ...]:
    return sft_parent(ctx) if source(ctx) == "policy" else ()


def _config(ctx: Context) -> dict[str, Any]:
    node = plain(ctx.cfg.sample)
    node.pop("max_rows")  # how many rows are decoded at once does not change what is drawn
    if source(ctx) == "dataset":
        node = {"num_prompts": node["num_prompts"]}
    return {"sample": node, "source": source(ctx), "model": ctx.model_identity, "encoding": ctx.encoding}


def _work(ctx: Context) -> Work:
    if source(ctx) == "dataset":
        return Work()
    node = ctx.cfg.sample
    rows = 2 * node.num_samples * min(node.num_prompts, len(ctx.task.train))
    return Work(forward=rows * prompt_tokens(ctx), decoded=rows * response_tokens(ctx))


def _check(ctx: Context) -> None:
    source(ctx)


STAGE = Stage("sample", 2, "sample", _parents, _config, _build, _work, _check)
