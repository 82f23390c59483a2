"""What the limits on prompts and responses do to a stage's rows, and roughly how many tokens are left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import torch

from rlaif.data.encode import Cuts
from rlaif.inference.cache import bytes_per_token
from rlaif.inference.decoding.sampler import cache_bytes
from rlaif.records import Pair
from rlaif.stages.common.context import Context
from rlaif.stages.common.stage import Work

CHARS_PER_TOKEN = 3.3


def cut_metrics(
    ctx: Context, stage: str, cuts: Cuts, what: str, *, shown_whole: bool = False
) -> dict[str, int]:
    """`<stage>/prompts_cut` and so on, those above 0; a warning says them in words.

    `shown_whole`: the stage shows texts that are too long without a cut, so none is counted.
    """
    prompt_limit = f"task.max_prompt_tokens={ctx.options.task.max_prompt_tokens}"
    limit = f"task.max_response_tokens={ctx.options.task.max_response_tokens}"
    words = {
        "prompts_cut": f"prompts are cut to {prompt_limit}",
        "prompts_dropped": f"are dropped, their prompt longer than {prompt_limit}",
        "responses_cut": f"responses are cut to {limit} and lose their end (EOS)",
        "responses_dropped": f"are dropped, a response longer than {limit}",
        "equal_cut": f"have responses that are equal once cut to {limit}: no reward model is trained on them",
    }
    names = [name for name in words if not (shown_whole and name.endswith("s_cut"))]
    counts = {name: getattr(cuts, name) for name in names if getattr(cuts, name)}
    for name, count in counts.items():
        ctx.warn(
            "texts beyond the limits",
            f"{stage}: of {cuts.rows} {what}, {count} {words[name]} (such as {cuts.first[name]})",
        )
    return {f"{stage}/{name}": count for name, count in counts.items()}


def no_pairs(ctx: Context, cuts: Cuts) -> str:
    """Why no pair of a data set is left, and what to change."""
    reasons = {
        "whose prompt is too long": cuts.prompts_dropped,
        "with a response that is too long": cuts.responses_dropped,
    }
    told = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
    return (
        f"no pairs to label: all {cuts.rows} pairs were dropped ({told}); write a higher task.max_prompt_tokens "
        f"(now {ctx.options.task.max_prompt_tokens}) or task.max_response_tokens "
        f"(now {ctx.options.task.max_response_tokens})"
    )


def chars_per_token(ctx: Context) -> float:
    """About how many characters a token of the base model stands for."""
    return 1.0 if ctx.options.models.tiny else CHARS_PER_TOKEN


def prompt_tokens(ctx: Context) -> float:
    """Mean tokens of an encoded prompt that fits; one that does not fit is dropped or cut."""
    own, chars = ctx.options.task, chars_per_token(ctx)
    overhead = len(own.prefix + own.suffix) / chars + (25 if own.chat else 0)
    sizes = [len(p.prompt) / chars + overhead for p in ctx.task.train[:400]]
    return fmean([min(size, own.max_prompt_tokens) for size in sizes] or [0.0])


def drawing_work(ctx: Context, rows: float, max_rows: int, times: float = 1) -> Work:
    """The work of drawing `rows` responses, each from a prompt of its own, `times` over."""
    model, longest = ctx.model(), ctx.options.task.max_response_tokens
    tokens = prompt_tokens(ctx) + longest
    room = cache_bytes(torch.device(model.device)) / bytes_per_token(model.trunk)
    batches = math.ceil(rows / max(1, min(max_rows, room // tokens)))
    drawn = times * rows
    return Work(
        forward=drawn * prompt_tokens(ctx),
        decoded=drawn * response_tokens(ctx),
        steps=times * batches * longest,
    )


def pair_tokens(ctx: Context, pairs: Sequence[Pair]) -> float:
    """Mean tokens of a pair's prompt and two responses."""
    texts = [len(p.prompt) + len(p.response_a) + len(p.response_b) for p in pairs]
    return fmean(texts) / chars_per_token(ctx) if texts else 0.0


def response_tokens(ctx: Context) -> float:
    """Mean tokens of a response: that of the references if there are any, else the limit."""
    sizes = [len(p.reference) / CHARS_PER_TOKEN + 1 for p in ctx.task.train[:400] if p.reference]
    limit = float(ctx.options.task.max_response_tokens)
    return min(fmean(sizes), limit) if sizes else limit
