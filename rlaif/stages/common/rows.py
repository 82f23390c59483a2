"""Texts as rows with the trunk's features: pairs, and prompts with their references."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlaif.data.datamodule import EncodedRow, PreferenceRow
from rlaif.data.encode import Cuts, Encoder
from rlaif.inference.packing import SharedPrefix
from rlaif.records import Pair, Prompt
from rlaif.stages.common.context import Context


def response_ids(ctx: Context, pair: Pair) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids of (a, b): those that a policy wrote, if one did; else the text's with EOS, cut to the limit."""
    written = ((pair.ids_a, pair.response_a), (pair.ids_b, pair.response_b))
    a, b = (tuple(ctx.encoder.response(text)) if ids is None else ids for ids, text in written)
    return a, b


def encode_pairs(ctx: Context, pairs: Sequence[Pair], what: str) -> list[PreferenceRow]:
    """Each pair, not yet labelled, with the trunk's features; one pass over a prompt serves all its responses."""
    encoder = ctx.encoder
    prompts = {text: tuple(encoder.prompt(text)) for text in {pair.prompt for pair in pairs}}
    groups = [SharedPrefix(prompts[pair.prompt], response_ids(ctx, pair)) for pair in pairs]
    with ctx.progress.task(f"trunk pass ({what}, by prompt)", len(prompts)) as advance:
        features = ctx.features.get(ctx.model(), groups, advance)
    suffixes = (own.suffixes for own in features)
    return [
        PreferenceRow(pair, own.prefix, a, b)
        for pair, own, (a, b) in zip(pairs, features, suffixes, strict=True)
    ]


def reference_rows(
    ctx: Context, prompts: Sequence[Prompt], limit: int | None, what: str, cuts: Cuts | None = None
) -> list[EncodedRow]:
    """Encoded (prompt, reference) rows with the trunk's features: the first `limit` that have a reference and fit."""
    referenced = [p for p in prompts if p.reference]
    fitting = ctx.encoder.fitting(referenced, references=True, limit=limit, cuts=cuts)
    return encode_texts(ctx, ctx.encoder, [(p.prompt, p.reference or "") for p in fitting], f"{what} rows")


def encode_texts(
    ctx: Context, encoder: Encoder, texts: Sequence[tuple[str, str]], what: str
) -> list[EncodedRow]:
    """Each (prompt, response) as a row with the trunk's features; a response is cut to the limit."""
    return encode_ids(ctx, [(tuple(encoder.prompt(p)), tuple(encoder.response(r))) for p, r in texts], what)


def encode_ids(
    ctx: Context, texts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], what: str
) -> list[EncodedRow]:
    """Each (prompt, response), as token ids, as a row with the trunk's features."""
    if not texts:
        return []
    groups = [SharedPrefix(prompt, (response,)) for prompt, response in texts]
    with ctx.progress.task(f"trunk pass ({what})", len(groups)) as advance:
        features = ctx.features.get(ctx.model(), groups, advance)
    return [
        EncodedRow(torch.tensor([*g.prefix, *g.suffixes[0]]), f.prefix, f.suffixes[0])
        for g, f in zip(groups, features, strict=True)
    ]
