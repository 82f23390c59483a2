"""Pairs as rows with the trunk's features, and the rewards that reward models give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlaif.data.datamodule import PreferenceRow, collate_preferences
from rlaif.inference.batches import forward_batches
from rlaif.inference.features import MAX_ROWS
from rlaif.inference.packing import SharedPrefix
from rlaif.models.split import ScalarHead, Top
from rlaif.modules.reward import pair_scores
from rlaif.records import Pair
from rlaif.stages.context import Context


@dataclass(frozen=True)
class EncodedPair:
    """Features of the prompt (P, D) and of both responses (A, D), (B, D); ids (P,), (A,), (B,) if `full`."""

    prompt: Tensor
    a: Tensor
    b: Tensor


def response_ids(ctx: Context, pair: Pair) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids of (a, b): those that a policy wrote, where one did, else the text's with EOS, cut to the limit."""
    written = ((pair.ids_a, pair.response_a), (pair.ids_b, pair.response_b))
    a, b = (tuple(ctx.encoder.response(text)) if ids is None else ids for ids, text in written)
    return a, b


def encode_pairs(ctx: Context, pairs: Sequence[Pair], what: str) -> list[EncodedPair]:
    """Each pair with the trunk's features; one prompt's pass serves all its responses."""
    encoder = ctx.encoder
    prompts = {text: tuple(encoder.prompt(text)) for text in {pair.prompt for pair in pairs}}
    groups = [SharedPrefix(prompts[pair.prompt], response_ids(ctx, pair)) for pair in pairs]
    with ctx.progress.task(f"trunk pass ({what}, by prompt)", len(prompts)) as advance:
        features = ctx.features.get(ctx.model(), groups, advance)
    return [EncodedPair(own.prefix, *own.suffixes) for own in features]


@torch.no_grad()
def score_pairs(
    ctx: Context,
    members: Sequence[tuple[Top, ScalarHead]],
    rows: Sequence[EncodedPair | PreferenceRow],
) -> list[list[tuple[float, float]]]:
    """Rewards (of a, of b) of each pair in order, member by member, computed in the model's compute dtype."""
    device = ctx.model().device
    frozen = [(top.frozen_copy().to(device), head.to(device)) for top, head in members]
    scores = [[(0.0, 0.0)] * len(rows) for _ in members]
    lengths = [len(row.prompt) + len(row.a) + len(row.b) for row in rows]
    for indices in forward_batches(lengths, device, max_rows=MAX_ROWS):
        chosen = [PreferenceRow(rows[i].prompt, rows[i].a, rows[i].b, p_a=0.5, weight=1.0) for i in indices]
        batch = collate_preferences(chosen).to(device)
        for own, (top, head) in zip(scores, frozen, strict=True):
            rewards = torch.stack(pair_scores(top, head, batch), dim=1).tolist()
            for index, (a, b) in zip(indices, rewards, strict=True):
                own[index] = (a, b)
    return scores
