"""A policy's first responses, criticised and rewritten by the labeler's engine or by the policy itself."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rlaif.backends.base import Backend
from rlaif.backends.transformers import TransformersBackend
from rlaif.data.encode import Cuts
from rlaif.errors import UserError
from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.decoding.sampler import Sampled
from rlaif.io import append_jsonl, write_jsonl, write_records
from rlaif.labelers import Estimate, FirstResponse, Revised, Reviser
from rlaif.labelers.revision.reviser import Split
from rlaif.models.split import Top
from rlaif.options.read import need, plain
from rlaif.options.training import ON_REVISIONS, REVISING, Revising
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
from rlaif.stages.common.sources import rl_prompts
from rlaif.stages.common.stage import Work

REVISIONS_FILE = "revisions.jsonl"
FIRST_FILE = "first.jsonl"
SPENT: Mapping[str, Mapping[str, str]] = {
    "sft": {
        "sft/reused": "reused",
        "sft/tokens_in": "tokens_in",
        "sft/tokens_out": "tokens_out",
        "sft/tokens_cached": "tokens_cached",
    },
    "rl": {
        "rl/reused": "reused",
        "rl/tokens_in": "tokens_in",
        "rl/tokens_out": "tokens_out",
        "rl/tokens_cached": "tokens_cached",
    },
}
"""Metrics of the stage that learns from the revisions, and the counters of the calls that they are."""
DOUBTFUL = 0.5  # share of revisions with one fault above which an alert is raised

Slot = tuple[Split, Prompt]


def validation_rows(train: int) -> int:
    """How many rows SFT is validated on, if it is trained on so many."""
    return max(8, train // 8)


def revising(ctx: Context) -> Revising:
    """How responses are revised. Raises UserError if nothing is trained on revisions, or two policies would be."""
    own = ctx.options.revising
    if own is None:
        raise UserError(
            "stage=revise makes what sft=revisions or rl=sft_revisions is trained on: write one of them beside it, "
            "sft=revisions without sft.enabled=false"
        )
    if own.place == "rl":
        need(ctx.options.rl, "rl", ON_REVISIONS, "rl=sft_revisions")
        if ctx.options.sft.revised:
            raise UserError(
                "sft=revisions and rl=sft_revisions would revise twice in one job: write one of them; for more rounds "
                "of critique and revision sft.revisions or rl.revisions"
            )
    return own


def slots(ctx: Context, cuts: Cuts) -> list[Slot]:
    """The prompts whose responses are revised, whether or not they have references.

    For `sft=revisions` those that SFT trains and is validated on, for `rl=sft_revisions` those of RL.
    """
    if revising(ctx).place == "rl":
        return [("train", prompt) for prompt in rl_prompts(ctx, ctx.options.rl.num_prompts, cuts)]
    train = ctx.encoder.fitting(ctx.task.train, limit=ctx.options.sft.num_rows, cuts=cuts)
    held = ctx.encoder.fitting(ctx.task.validation, limit=validation_rows(len(train)))
    return [("train", prompt) for prompt in train] + [("validation", prompt) for prompt in held]


def make_revisions(
    ctx: Context, folder: Path, top: Top, content: Any, asked: Sequence[Slot], cuts: Cuts
) -> dict[str, Any]:
    """Write the revisions of `top`'s responses to the prompts; returns the metrics.

    `content` identifies the policy's weights, for answers that it gives itself. Raises UserError if more of the
    engine's calls failed than `labeler.max_unparsed` allows.
    """
    own = revising(ctx)
    reviser = ctx.reviser(own, stored=True, writer=_writer(ctx, own, content, top))
    first, tokens = _first_responses(ctx, folder / "work" / FIRST_FILE, top, asked)
    result = reviser.revise(first)
    _check_failed(ctx, result.revisions)
    write_records(folder / REVISIONS_FILE, result.revisions)
    if told := dropped(result.revisions):
        ctx.warn(
            "revisions dropped", f"of {len(result.revisions)} revisions, {told}: they are not trained on"
        )
    metrics = _metrics(result, own.place)
    _warn_of_no_revisions(ctx, metrics, own)
    if own.place == "rl":
        metrics |= _budget(own, result, tokens)
    # What the limits do to revisions is known once they are trained on.
    cut = cut_metrics(ctx, own.place, cuts, "prompts")
    paid = cost_metrics(ctx, "labeler", result.counters, own.place) if own.reviser == "labeler" else {}
    return metrics | paid | cut


def _writer(ctx: Context, own: Revising, content: Any, top: Top | None = None) -> Backend | None:
    """The policy as the engine that writes; None if the labeler's is to. Without `top`, only good for its identity."""
    if own.reviser == "labeler":
        return None
    identity = {**ctx.model_identity, "policy": content}
    return TransformersBackend(identity, ctx.model, top=top, max_rows=own.max_rows)


def _budget(own: Revising, result: Revised, tokens: int) -> dict[str, float]:
    """What was written to train on: first responses, of `tokens` tokens, and revisions; critiques count as tokens."""
    revised = sum(len(row.revisions) for row in result.revisions)
    return {
        "rl/responses": len(result.revisions) + revised,
        "rl/tokens_generated": tokens + (result.written if own.reviser == "policy" else 0),
    }


def _first_responses(
    ctx: Context, file: Path, top: Top, asked: Sequence[Slot]
) -> tuple[list[FirstResponse], int]:
    """A response to each prompt, and their tokens.

    Each is appended to `file` as it ends, and what is there is not drawn again.
    """
    own, seed = revising(ctx), ctx.options.seeds.revise
    known = _kept(file)
    missing = [prompt for _, prompt in asked if prompt.id not in known]

    def receive(index: int, one: Sampled) -> None:
        sample = to_sample(ctx, missing[index], one)
        row = {"prompt_id": sample.prompt_id, "response": sample.response, "tokens": sample.tokens}
        known[sample.prompt_id] = row
        append_jsonl(file, row)

    if missing:
        decoding = Decoding(ctx.options.task.max_response_tokens, own.first_temperature, own.first_top_k)
        keys = [[seed, prompt.id, "first"] for prompt in missing]
        draw(ctx, top, missing, keys, decoding, own.max_rows, "first responses", receive=receive)
    first = [FirstResponse(p.id, p.prompt, split, known[p.id]["response"]) for split, p in asked]
    return first, sum(known[prompt.id].get("tokens", 0) for _, prompt in asked)


def _kept(file: Path) -> dict[str, dict[str, Any]]:
    """The responses that an interrupted run left, by prompt; half a line at the end is cut off."""
    if not file.exists():
        return {}
    whole, _, _ = file.read_text(encoding="utf-8").rpartition("\n")
    rows = [json.loads(line) for line in whole.split("\n") if line]
    write_jsonl(file, rows)
    return {row["prompt_id"]: row for row in rows}


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


def _warn_of_no_revisions(ctx: Context, metrics: dict[str, float], own: Revising) -> None:
    """An alert if more than half of the revisions are none: an engine that is too small does not revise."""
    faults = {
        "unchanged": "equal the first response",
        "critique": "repeat the critique instead of the response",
        "cut": f"have no end within task.max_response_tokens={ctx.options.task.max_response_tokens}",
    }
    larger = "model behind backend=" if own.reviser == "labeler" else "model=, which revises itself"
    for name, told in faults.items():
        rate = metrics[f"{own.place}/revision_{name}_rate"]
        if rate > DOUBTFUL:
            ctx.warn(
                "revisions in doubt",
                f"{rate:.0%} of the revisions {told}: read some (revisions.jsonl of the artifact revise) before "
                f"anything is concluded from this policy, and try a larger {larger}",
            )


def dropped(revisions: Sequence[Revision]) -> str:
    """How many revisions make no row to train on, in words, with an example; empty if none."""
    empty = [row.prompt_id for row in revisions if row.error is None and is_empty(row.text)]
    failed = [row.prompt_id for row in revisions if row.error is not None]
    told = ((empty, "are empty"), (failed, "failed"))
    return " and ".join(f"{len(ids)} {what} (such as that of {ids[0]})" for ids, what in told if ids)


def _metrics(result: Revised, stage: str) -> dict[str, float]:
    rows, counters = result.revisions, result.counters
    done = [row for row in rows if row.error is None]
    written = [row for row in done if not is_empty(row.text)]
    return {
        f"{stage}/revisions": len(rows),
        f"{stage}/revision_failed_rate": _share(row.error is not None for row in rows),
        f"{stage}/revision_empty_rate": _share(is_empty(row.text) for row in done),
        f"{stage}/revision_unchanged_rate": _share(row.unchanged for row in written),
        f"{stage}/revision_cut_rate": _share(row.cut for row in written),
        f"{stage}/revision_critique_rate": _share(
            copy_rate(row.text, row.critiques[-1]) >= COPIED for row in written
        ),
        f"{stage}/critique_empty_rate": _share(is_empty(text) for row in done for text in row.critiques),
        f"{stage}/first_empty_rate": _share(is_empty(row.response) for row in rows),
        **{name: counters[counter] for name, counter in SPENT[stage].items()},
    }


def _share(which: Any) -> float:
    return fmean([float(one) for one in which] or [0.0])


def revision_config(ctx: Context) -> dict[str, Any]:
    """What the revisions depend on besides the policy's weights."""
    own = revising(ctx)
    rows = "num_rows" if own.place == "sft" else "num_prompts"
    return {
        "first": {
            rows: getattr(getattr(ctx.options, own.place), rows),
            "first_temperature": own.first_temperature,
            "first_top_k": own.first_top_k,
        },
        "reviser": _unstored(ctx).identity(),
        "max_unparsed": ctx.options.labeler.max_unparsed,
        "model": ctx.model_identity,
        "encoding": ctx.encoding,
    }


def _unstored(ctx: Context) -> Reviser:
    """The reviser, only good for its identity, which does not cover the policy's weights, and for estimates."""
    own = revising(ctx)
    return ctx.reviser(own, stored=False, writer=_writer(ctx, own, "as the first responses"))


def check_reviser(ctx: Context) -> None:
    """Raises UserError for principles, templates or an engine that cannot be used."""
    _unstored(ctx)


def training_options(ctx: Context) -> dict[str, Any]:
    """The options of SFT without those that the revisions depend on, which have a digest of their own."""
    return {name: value for name, value in plain(ctx.options.sft).items() if name not in REVISING}


def _prompts(ctx: Context, own: Revising) -> Sequence[Prompt]:
    """About the prompts of `slots`, before it is known which fit."""
    if own.place == "rl":
        return ctx.task.train[-ctx.options.rl.num_prompts :]
    train = ctx.task.train[: ctx.options.sft.num_rows]
    return [*train, *ctx.task.validation[: validation_rows(len(train))]]


def revision_work(ctx: Context) -> Work:
    """Drawing the first responses, and the critiques and revisions."""
    own = revising(ctx)
    prompts = _prompts(ctx, own)
    drawn = drawing_work(ctx, len(prompts), own.max_rows)
    filler = "x" * int(response_tokens(ctx) * CHARS_PER_TOKEN)
    first = [FirstResponse(p.id, p.prompt, "train", filler) for p in prompts]
    guess = _unstored(ctx).estimate(first, filler)
    if own.reviser == "policy":
        return drawn + _written_here(ctx, own, guess, len(prompts), own.max_rows, 0.0)
    price = ctx.price("labeler")
    usd = None if price is None else price.usd(guess.tokens_in, guess.tokens_out, 0.0)
    elsewhere = seconds_elsewhere(ctx.options.labeler.engine, ctx.options.backend, guess)
    if elsewhere is not None:
        return drawn + Work(usd=usd, seconds=elsewhere, read=guess.tokens_in, written=guess.tokens_out)
    return drawn + _written_here(ctx, own, guess, len(prompts), ctx.options.backend.max_rows, usd)


def _written_here(
    ctx: Context, own: Revising, guess: Estimate, rows: int, max_rows: int, usd: float | None
) -> Work:
    """Critiques and revisions of `rows` responses by a model in this process, `max_rows` at once."""
    longest, batches = ctx.options.task.max_response_tokens, math.ceil(rows / max_rows)
    return Work(
        forward=guess.tokens_in * 4.0 / chars_per_token(ctx),
        decoded=guess.tokens_out,
        steps=own.rounds * batches * (own.max_critique_tokens + longest),
        usd=usd,
    )
