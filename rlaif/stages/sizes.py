"""Rough token counts for plans, from characters: no tokenizer is loaded for an estimate."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from rlaif.records import Pair
from rlaif.stages.context import Context

CHARS_PER_TOKEN = 3.3


def prompt_tokens(ctx: Context) -> float:
    """Mean tokens of an encoded prompt that fits."""
    chars_per_token = 1.0 if ctx.cfg.models.tiny else CHARS_PER_TOKEN
    overhead = len(ctx.cfg.task.prefix + ctx.cfg.task.suffix) / chars_per_token + (
        25 if ctx.cfg.task.chat else 0
    )
    sizes = [len(p.prompt) / chars_per_token + overhead for p in ctx.task.train[:400]]
    fitting = [min(size, ctx.cfg.task.max_prompt_tokens) for size in sizes] or [0.0]
    return fmean(fitting)


def pair_tokens(ctx: Context, pairs: Sequence[Pair]) -> float:
    """Mean tokens of a pair's prompt and two responses."""
    chars_per_token = 1.0 if ctx.cfg.models.tiny else CHARS_PER_TOKEN
    texts = [len(p.prompt) + len(p.response_a) + len(p.response_b) for p in pairs]
    return fmean(texts) / chars_per_token if texts else 0.0


def response_tokens(ctx: Context) -> float:
    """Mean tokens of a response: the references' where there are some, else the limit."""
    sizes = [len(p.reference) / CHARS_PER_TOKEN + 1 for p in ctx.task.train[:400] if p.reference]
    limit = float(ctx.cfg.task.max_response_tokens)
    return min(fmean(sizes), limit) if sizes else limit
