"""Revisions as rows to train on."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif.data.datamodule import EncodedRow
from rlaif.data.encode import Cuts
from rlaif.records import Revision, is_empty
from rlaif.stages.common.context import Context
from rlaif.stages.common.rows import encode_ids


def revised_rows(ctx: Context, revisions: Sequence[Revision], what: str, cuts: Cuts) -> list[EncodedRow]:
    """Each (prompt, revision) as a row with the trunk's features; a revision that is empty or failed makes none.

    A revision that ran into the limit, or is beyond it in the policy's tokens, has no end: as the task says of texts
    that are too long (`too_long_responses`), it is trained on without EOS, or dropped. `cuts` counts both.
    """
    encoder, found = ctx.encoder, []
    for row in revisions:
        if is_empty(row.text):
            continue
        ids, limit = encoder.raw_response(row.text), ctx.options.task.max_response_tokens
        cuts.rows += 1
        if row.cut or len(ids) > limit:
            kept = encoder.too_long_responses == "truncate"
            cuts.add("responses_cut" if kept else "responses_dropped", row.prompt_id)
            if not kept:
                continue
            ids = ids[:-1][:limit]
        found.append((tuple(encoder.prompt(row.prompt)), tuple(ids)))
    return encode_ids(ctx, found, what)
