"""People's verdicts on the pairs that are labelled: the data set's own or, where it has none, simulated ones.

Simulated people know the author's reference and prefer the response nearer to it in meaning; they stand for people as
AlpacaFarm's simulated annotators do (Dubois et al. 2023, arXiv:2305.14387). They are always called simulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rlaif.errors import UserError
from rlaif.io import stable_uniform
from rlaif.options.read import plain
from rlaif.records import Pair
from rlaif.stages.common.context import Context
from rlaif.stages.common.labeling import labeler_identity
from rlaif.stages.common.sources import source


def simulates(ctx: Context) -> bool:
    """Whether people are simulated. Raises UserError if `people.simulated=always` cannot be had."""
    wanted, task = ctx.options.people.simulated, ctx.task
    if wanted == "never":
        return False
    referenced = any(prompt.reference for prompt in (*task.train, *task.test))
    labelled = source(ctx) == "dataset" and any(
        pair.gold is not None for pair in (*task.pairs, *task.gold_pairs)
    )
    if wanted == "auto":
        return referenced and not any(pair.gold_source == "human" for pair in (*task.pairs, *task.gold_pairs))
    if labelled or not referenced:
        why = (
            "has people's own preferences for its pairs" if labelled else "has no references to know them by"
        )
        raise UserError(
            f"people.simulated=always, but task {ctx.options.task.name} {why}: write people.simulated=auto"
        )
    return True


def with_gold(ctx: Context, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs with people's verdicts as gold: their own, simulated, or none."""
    if not pairs or not simulates(ctx):
        return list(pairs)
    verdicts = ctx.labeler("people", 0, stored=True).label(pairs).preferences
    return [
        pair if verdict.p_a is None else replace(pair, gold=verdict.p_a, gold_source="simulated")
        for pair, verdict in zip(pairs, verdicts, strict=True)
    ]


def people_identity(ctx: Context) -> dict[str, Any]:
    """What gold depends on besides the pairs, as an entry for digests; empty if it comes with the pairs."""
    return {"people": labeler_identity(ctx, "people", 0)} if simulates(ctx) else {}


def people_labels(ctx: Context, pairs: Sequence[Pair]) -> dict[str, float]:
    """The labels that people give for training, by pair id: gold, with the noise and the number that are asked for."""
    options = ctx.options.people
    drawn = sorted(
        (pair for pair in pairs if pair.gold is not None),
        key=lambda pair: stable_uniform("people-n", options.seed, pair.id),
    )
    labels = {pair.id: pair.gold for pair in drawn[: options.n] if pair.gold is not None}
    return {
        name: 1 - gold if stable_uniform("people-noise", options.seed, name) < options.noise else gold
        for name, gold in labels.items()
    }


def people_options(ctx: Context) -> dict[str, Any]:
    """The options of `people_labels`, for digests."""
    return {name: plain(ctx.options.people)[name] for name in ("noise", "n", "seed")}


def need_references(ctx: Context, key: str) -> None:
    """Raises UserError if the labeler at `key` compares with references and the task has none."""
    if ctx.options.asked(key).readout.kind != "reference":
        return
    prompts = (*ctx.task.train, *ctx.task.test)
    if not any(prompt.reference for prompt in prompts):
        raise UserError(
            f"{key}=reference compares with the author's reference, but no prompt of task {ctx.options.task.name} has"
            f" one: write another {key}, or a task with references (docs, tldr, or a file with a column reference)"
        )
