"""stage=revise: the base model's responses, criticised and rewritten, as the targets of `sft=revisions`."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from rlaif.data.encode import Cuts
from rlaif.errors import UserError
from rlaif.io import read_records
from rlaif.records import Revision, to_dict
from rlaif.stages.common.context import Context
from rlaif.stages.common.policies import policy_top
from rlaif.stages.common.revisions.making import (
    REVISIONS_FILE,
    make_revisions,
    revision_config,
    revision_work,
    slots,
)
from rlaif.stages.common.stage import Parents, Row, Stage


def _build(ctx: Context, folder: Path, parents: Parents) -> dict[str, Any]:
    cuts = Cuts()
    asked = slots(ctx, cuts)
    if {split for split, _ in asked} != {"train", "validation"}:
        limit = ctx.options.task.max_prompt_tokens
        raise UserError(
            f"sft=revisions needs prompts to train and to validate on, but too few fit task.max_prompt_tokens={limit}: "
            "write a higher limit, or task.too_long_prompts=truncate"
        )
    return make_revisions(ctx, folder, policy_top(ctx, parents).frozen_copy(), asked, cuts)


def _check(ctx: Context) -> None:
    """The principles, the templates and the engine are read, and rejected, when the reviser is created."""
    if not ctx.options.sft.revised:
        raise UserError(
            "stage=revise makes what sft=revisions is trained on: write sft=revisions beside it, without "
            "sft.enabled=false"
        )
    ctx.reviser(stored=False)
    for split in ("train", "validation"):
        if not getattr(ctx.task, split):
            raise UserError(
                f"sft=revisions needs prompts to train and to validate on, but task {ctx.options.task.name} has none "
                f"for {split}: write other fractions than task.test_fraction={ctx.options.task.test_fraction} and "
                f"task.validation_fraction={ctx.options.task.validation_fraction}"
            )


def _tables(ctx: Context, built: Parents) -> dict[str, list[Row]]:
    """Critiques and revisions to read."""
    rows = read_records(built["revise"].file(REVISIONS_FILE), Revision)
    return {"revisions": [to_dict(row) for row in islice(rows, ctx.options.report.samples)]}


STAGE = Stage(
    "revise",
    1,
    "revise",
    lambda ctx: (),
    revision_config,
    _build,
    revision_work,
    _check,
    tables=_tables,
)
