"""A policy's first responses, criticised and rewritten by the labeler's engine."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rlaif.data.encode import Cuts
from rlaif.errors import UserError
from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.decoding.sampler import Sampled
from rlaif.io import append_jsonl, write_jsonl, write_records
from rlaif.labelers import FirstResponse, Revised
from rlaif.labelers.revision.reviser import Split
from rlaif.models.split import Top
from rlaif.options.read import plain
from rlaif.options.training import REVISING
from rlaif.records import Prompt, Revision, is_empty
from rlaif.stages.common.context import Context
from rlaif.stages.common.engines import seconds_elsewhere
from rlaif.stages.common.labeling import cost_metrics
from rlaif.stages.common.limits import (
    CHARS_PER_TOKEN,
    chars_per_token,
    cut_metrics,
    drawing_work,
    response_tokens,
)
from rlaif.stages.common.measures.markers import COPIED
from rlaif.stages.common.measures.text import copy_rate
from rlaif.stages.common.policies import draw, to_sample
from rlaif.stages.common.stage import Work

REVISIONS_FILE = "revisions.jsonl"
FIRST_FILE = "first.jsonl"
DOUBTFUL = 0.5  # share of revisions with one fault above which an alert is raised

Slot = tuple[Split, Prompt]


def validation_rows(train: int) -> int:
    """How many rows SFT is validated on, if it is trained on so many."""
    return max(8, train // 8)


def slots(ctx: Context, cuts: Cuts) -> list[Slot]:
    """The prompts that SFT trains and is validated on, whether or not they have references."""
    train = ctx.encoder.fitting(ctx.task.train, limit=ctx.options.sft.num_rows, cuts=cuts)
    held = ctx.encoder.fitting(ctx.task.validation, limit=validation_rows(len(train)))
    return [("train", prompt) for prompt in train] + [("validation", prompt) for prompt in held]


def make_revisions(ctx: Context, folder: Path, top: Top, asked: Sequence[Slot], cuts: Cuts) -> dict[str, Any]:
    """Write the revisions of `top`'s responses to the prompts; returns the metrics.

    Raises UserError if more of the engine's calls failed than `labeler.max_unparsed` allows.
    """
    reviser = ctx.reviser(stored=True)
    result = reviser.revise(_first_responses(ctx, folder / "work" / FIRST_FILE, top, asked))
    _check_failed(ctx, result.revisions)
    write_records(folder / REVISIONS_FILE, result.revisions)
    if told := dropped(result.revisions):
        ctx.warn(
            "revisions dropped", f"of {len(result.revisions)} revisions, {told}: they are not trained on"
        )
    metrics = _metrics(result)
    _warn_of_no_revisions(ctx, metrics)
    # What the limits do to revisions is known once they are trained on.
    cut = cut_metrics(ctx, "sft", cuts, "prompts")
    return metrics | cost_metrics(ctx, "labeler", result.counters, "sft") | cut


def _first_responses(ctx: Context, file: Path, top: Top, asked: Sequence[Slot]) -> list[FirstResponse]:
    """A response to each prompt; each is appended to `file` as it ends, and what is there is not drawn again."""
    options, seed = ctx.options.sft, ctx.options.seeds.revise
    known = _kept(file)
    missing = [prompt for _, prompt in asked if prompt.id not in known]

    def receive(index: int, one: Sampled) -> None:
        sample = to_sample(ctx, missing[index], one)
        known[sample.prompt_id] = sample.response
        append_jsonl(file, {"prompt_id": sample.prompt_id, "response": sample.response})

    if missing:
        decoding = Decoding(
            ctx.options.task.max_response_tokens, options.first_temperature, options.first_top_k
        )
        keys = [[seed, prompt.id, "first"] for prompt in missing]
        rows = ctx.options.sample.max_rows
        draw(ctx, top, missing, keys, decoding, rows, "first responses", receive=receive)
    return [FirstResponse(p.id, p.prompt, split, known[p.id]) for split, p in asked]


def _kept(file: Path) -> dict[str, str]:
    """The responses that an interrupted run left, by prompt; half a line at the end is cut off."""
    if not file.exists():
        return {}
    whole, _, _ = file.read_text(encoding="utf-8").rpartition("\n")
    rows = [json.loads(line) for line in whole.split("\n") if line]
    write_jsonl(file, rows)
    return {row["prompt_id"]: row["response"] for row in rows}


def _check_failed(ctx: Context, revisions: Sequence[Revision]) -> None:
    errors = Counter(row.error for row in revisions if row.error is not None)
    rate, limit = errors.total() / max(1, len(revisions)), ctx.options.labeler.max_unparsed
    if rate > limit:
        (cause, times), *more = errors.most_common()
        others = f", and {len(more)} other causes" if more else ""
        raise UserError(
            f"{rate:.1%} of the revisions failed, more than labeler.max_unparsed={limit} ({times} x: "
            f"{' '.join(cause.split())[:200]}{others}). What was written is kept: the same command asks for the rest"
        )


def _warn_of_no_revisions(ctx: Context, metrics: dict[str, float]) -> None:
    """An alert if more than half of the revisions are none: an engine that is too small does not revise."""
    faults = {
        "sft/revision_unchanged_rate": "equal the first response",
        "sft/revision_critique_rate": "repeat the critique instead of the response",
        "sft/revision_cut_rate": f"have no end within task.max_response_tokens={ctx.options.task.max_response_tokens}",
    }
    for name, told in faults.items():
        if metrics[name] > DOUBTFUL:
            ctx.warn(
                "revisions in doubt",
                f"{metrics[name]:.0%} of the revisions {told}: read some (revisions.jsonl of the artifact revise) "
                "before anything is concluded from this policy, and try a larger model behind backend=",
            )


def dropped(revisions: Sequence[Revision]) -> str:
    """How many revisions make no row to train on, in words, with an example; empty if none."""
    empty = [row.prompt_id for row in revisions if row.error is None and is_empty(row.text)]
    failed = [row.prompt_id for row in revisions if row.error is not None]
    told = ((empty, "are empty"), (failed, "failed"))
    return " and ".join(f"{len(ids)} {what} (such as that of {ids[0]})" for ids, what in told if ids)


def _metrics(result: Revised) -> dict[str, float]:
    rows, counters = result.revisions, result.counters
    done = [row for row in rows if row.error is None]
    written = [row for row in done if not is_empty(row.text)]
    return {
        "sft/revisions": len(rows),
        "sft/revision_failed_rate": _share(row.error is not None for row in rows),
        "sft/revision_empty_rate": _share(is_empty(row.text) for row in done),
        "sft/revision_unchanged_rate": _share(row.unchanged for row in written),
        "sft/revision_cut_rate": _share(row.cut for row in written),
        "sft/revision_critique_rate": _share(
            copy_rate(row.text, row.critiques[-1]) >= COPIED for row in written
        ),
        "sft/critique_empty_rate": _share(is_empty(text) for row in done for text in row.critiques),
        "sft/first_empty_rate": _share(is_empty(row.response) for row in rows),
        "sft/reused": counters["reused"],
        "sft/tokens_in": counters["tokens_in"],
        "sft/tokens_out": counters["tokens_out"],
        "sft/tokens_cached": counters["tokens_cached"],
    }


def _share(which: Any) -> float:
    return fmean([float(one) for one in which] or [0.0])


def revision_config(ctx: Context) -> dict[str, Any]:
    """What the revisions of the base model's responses depend on."""
    own, reviser = plain(ctx.options.sft), ctx.reviser(stored=False)
    return {
        "first": {name: own[name] for name in ("num_rows", "first_temperature", "first_top_k")},
        "reviser": reviser.identity(),
        "max_unparsed": ctx.options.labeler.max_unparsed,
        "model": ctx.model_identity,
        "encoding": ctx.encoding,
    }


def training_options(ctx: Context) -> dict[str, Any]:
    """The options of SFT without those that the revisions depend on, which have a digest of their own."""
    return {name: value for name, value in plain(ctx.options.sft).items() if name not in REVISING}


def revision_work(ctx: Context) -> Work:
    """Drawing the first responses, and the engine's critiques and revisions."""
    train = ctx.task.train[: ctx.options.sft.num_rows]
    prompts = [*train, *ctx.task.validation[: validation_rows(len(train))]]
    drawn = drawing_work(ctx, len(prompts), ctx.options.sample.max_rows)
    filler = "x" * int(response_tokens(ctx) * CHARS_PER_TOKEN)
    first = [FirstResponse(p.id, p.prompt, "train", filler) for p in prompts]
    guess, price = ctx.reviser(stored=False).estimate(first, filler), ctx.price("labeler")
    usd = None if price is None else price.usd(guess.tokens_in, guess.tokens_out, 0.0)
    elsewhere = seconds_elsewhere(ctx.options.labeler.engine, ctx.options.backend, guess)
    if elsewhere is not None:
        return drawn + Work(usd=usd, seconds=elsewhere, read=guess.tokens_in, written=guess.tokens_out)
    rounds, longest = ctx.options.sft.revisions, ctx.options.task.max_response_tokens
    batches = math.ceil(len(prompts) / ctx.options.backend.max_rows)
    return drawn + Work(
        forward=guess.tokens_in * 4.0 / chars_per_token(ctx),
        decoded=guess.tokens_out,
        steps=rounds * batches * (ctx.options.sft.max_critique_tokens + longest),
        usd=usd,
    )
