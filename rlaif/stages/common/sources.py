"""Where a path's pairs and prompts come from, and which of the pairs train a reward model."""

from __future__ import annotations

from typing import Literal

from rlaif.data.encode import Cuts
from rlaif.errors import UserError
from rlaif.io import stable_uniform
from rlaif.records import Prompt
from rlaif.stages.common.context import Context

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
PAIRS_FILE = "pairs.jsonl"


def part_of(ctx: Context, cluster: str) -> Part:
    """The part of a pair: train, validation (chooses the epoch) or test (is reported). Conversations stay whole."""
    options, place = ctx.options.rm, stable_uniform("rm-split", cluster)
    if place < options.test_fraction:
        return "test"
    return "validation" if place < options.test_fraction + options.validation_fraction else "train"


def source(ctx: Context) -> str:
    """`dataset` or `policy`; auto takes the data set's pairs if it has any, as Lee et al. 2023 do.

    Pairs of the data set that all measure alignment count too: the question is then how good a labeler is on them.
    """
    wanted, own = ctx.options.sample.source, bool(ctx.task.pairs) or all_held_out(ctx) > 0
    if wanted == "dataset" and not own:
        raise UserError(
            f"sample.source=dataset, but task {ctx.task.name} has no pairs: write sample.source=policy"
        )
    return ("dataset" if own else "policy") if wanted == "auto" else wanted


def all_held_out(ctx: Context) -> int:
    """How many pairs people have labelled, if all of them are gold and no other pair is left to train on; else 0."""
    return 0 if ctx.task.pairs else sum(pair.gold_source == "human" for pair in ctx.task.gold_pairs)


def rl_prompts(ctx: Context, limit: int | None, cuts: Cuts) -> list[Prompt]:
    """Training prompts for sampling and RL, from the end of the split: the rows that SFT saw last, if at all.

    `cuts` counts those that are cut or left out.
    """
    return ctx.encoder.fitting(reversed(ctx.task.train), limit=limit, cuts=cuts)
