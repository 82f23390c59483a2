"""stage=revise: a policy's responses, criticised and rewritten, as the targets that it is fine-tuned on.

The policy is the base model for `sft=revisions`, the SFT policy for `rl=sft_revisions`.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from rlaif.data.encode import Cuts
from rlaif.errors import UserError
from rlaif.io import read_records
from rlaif.records import Revision, to_dict
from rlaif.stages.common.context import Context
from rlaif.stages.common.policies import policy_top, sft_parent
from rlaif.stages.common.revisions.making import (
    REVISIONS_FILE,
    check_reviser,
    make_revisions,
    revising,
    revision_config,
    revision_work,
    slots,
)
from rlaif.stages.common.stage import Parents, Row, Stage


def _build(ctx: Context, folder: Path, parents: Parents) -> dict[str, Any]:
    cuts, own = Cuts(), revising(ctx)
    asked = slots(ctx, cuts)
    if own.place == "rl" and not asked:
        raise UserError("no prompt fits task.max_prompt_tokens: write a higher limit")
    if own.place == "sft" and {split for split, _ in asked} != {"train", "validation"}:
        limit = ctx.options.task.max_prompt_tokens
        raise UserError(
            f"sft=revisions needs prompts to train and to validate on, but too few fit task.max_prompt_tokens={limit}: "
            "write a higher limit, or task.too_long_prompts=truncate"
        )
    # By content, since a rebuilt artifact keeps its name.
    content = [parents[kind].manifest["files"] for kind in parents]
    return make_revisions(ctx, folder, policy_top(ctx, parents).frozen_copy(), content, asked, cuts)


def _check(ctx: Context) -> None:
    """The principles, the templates and the engine are read, and rejected, when the reviser is created."""
    check_reviser(ctx)
    if revising(ctx).place == "rl":
        return
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


def _parents(ctx: Context) -> tuple[str, ...]:
    return sft_parent(ctx) if revising(ctx).place == "rl" else ()


STAGE = Stage(
    "revise",
    1,
    "revise",
    _parents,
    revision_config,
    _build,
    revision_work,
    _check,
    tables=_tables,
)
