"""Where a path's pairs and prompts come from, and which part of the pairs trains a reward model."""

from __future__ import annotations

from typing import Literal

from rlaif.data.encode import Cuts
from rlaif.errors import UserError
from rlaif.io import stable_uniform
from rlaif.records import Prompt
from rlaif.stages.common.context import Context

Part = Literal["train", "validation", "test"]


PARTS: tuple[Part, ...] = ("train", "validation", "test")


def part_of(ctx: Context, cluster: str) -> Part:
    """Where pairs go: train, validation (chooses the epoch) or test (is reported). A conversation goes as a whole."""
    options, place = ctx.options.rm, stable_uniform("rm-split", cluster)
    if place < options.test_fraction:
        return "test"
    return "validation" if place < options.test_fraction + options.validation_fraction else "train"


PAIRS_FILE = "pairs.jsonl"


def source(ctx: Context) -> str:
    """`dataset` or `policy`; auto takes the data set's pairs where it has some (as the paper does)."""
    wanted = ctx.options.sample.source
    if wanted == "dataset" and not ctx.task.pairs:
        raise UserError(
            f"sample.source=dataset, but task {ctx.task.name} has no pairs: write sample.source=policy"
        )
    return ("dataset" if ctx.task.pairs else "policy") if wanted == "auto" else wanted


def rl_prompts(ctx: Context, limit: int | None, cuts: Cuts) -> list[Prompt]:
    """Training prompts for sampling and RL, taken from the end of the split: the rows that SFT saw last, if at all.

    `cuts` counts those that are cut or left out.
    """
    return ctx.encoder.fitting(reversed(ctx.task.train), limit=limit, cuts=cuts)
