"""What stages share of labelers and judges: identity, planned work, cost, unread answers, and whether to trust them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from rlaif.backends.transformers import Spellings
from rlaif.errors import UserError
from rlaif.io import digest
from rlaif.labelers import Estimate, LabelerOptions, Response, Unread, estimate, estimate_harm
from rlaif.models.load import load_tokenizer
from rlaif.options.job import JUDGES
from rlaif.options.labeling import ReadoutKind
from rlaif.records import Pair, Prompt
from rlaif.stages.common.context import Context
from rlaif.stages.common.engines import ENGINES, seconds_elsewhere
from rlaif.stages.common.limits import CHARS_PER_TOKEN, chars_per_token, response_tokens
from rlaif.stages.common.stage import Work

PREFERENCES_FILE = "preferences.jsonl"


def cost_metrics(ctx: Context, key: str, counters: Mapping[str, float], prefix: str) -> dict[str, float]:
    """`<prefix>/usd` of the calls made in this run (reused answers cost nothing); a warning if the price is unknown.

    `<prefix>/usage_estimated`, the share of the calls whose token counts are estimates, if there are any.
    """
    price, estimated = ctx.price(key), counters["usage_estimated"]
    metrics = {f"{prefix}/usage_estimated": estimated / counters["asked"]} if estimated else {}
    if estimated:
        ctx.warn(
            "usage estimated",
            f"{estimated / counters['asked']:.0%} of the {key}'s answers did not report their tokens: they are"
            " counted as one per 4 bytes of text",
        )
    if price is None:
        ctx.warn(
            "cost unknown",
            f"the price of {ctx.priced_as(key)} is not in conf/prices/default.yaml: {prefix}/usd is left out",
        )
        return metrics
    usd = price.usd(*(counters[name] for name in ("tokens_in", "tokens_out", "tokens_cached")))
    return {f"{prefix}/usd": usd, **metrics}


def check_unread(
    ctx: Context, key: str, unread: Unread, what: str, hints: Sequence[str] | None = None
) -> None:
    """Raises UserError, with the cause, if a larger share of `what` than `max_unparsed` gave no value.

    This counts judgements, not preferences: if the two orders disagree, both were still read. `hints` say what to
    change if the next token is none of the choices (default: what helps the readout of pairs).
    """
    options = ctx.options.asked(key)
    if unread.rate > options.max_unparsed:
        sentence = unread.sentence(
            key,
            what,
            limit=options.max_unparsed,
            min_mass=options.min_mass,
            hints=hints or low_mass_hints(ctx, key),
        )
        if key.startswith(JUDGES):  # no key of its own
            sentence += f". {key}.KEY is judge.KEY among the overrides of {key}"
        remarks = ctx.remarks(key)
        raise UserError(f"{sentence}. Of the server: {'; '.join(remarks)}" if remarks else sentence)


def low_mass_hints(ctx: Context, key: str) -> list[str]:
    """What to change if a model's next token is none of the choices."""
    options = ctx.options.asked(key)
    cue = "score_cue" if options.readout.kind == "score" else "cue"
    hints = [f"another {cue} (conf/templates/{ctx.options.task.templates}/task.yaml)"]
    if options.readout.kind == "choice":
        hints.insert(0, f"{key}.readout.kind=text")
    return ENGINES[options.engine].hints(ctx.options.engine_at(key)) + hints


def trust_gate(ctx: Context, metrics: dict[str, Any]) -> dict[str, Any]:
    """Whether anything should be built on labels with these metrics.

    Alignment whose interval reaches below 0.5 may be chance: an alert, and `label/warning` for the summary.
    Raises UserError below `labeler.min_alignment`, or if that bound cannot be checked.
    """
    alignment, wanted = metrics.get("label/alignment"), ctx.options.labeler.min_alignment
    if alignment is None:
        if wanted is not None:
            raise UserError(
                f"labeler.min_alignment={wanted} cannot be checked, since no gold pair has a readable "
                "preference: give gold labels, or write labeler.min_alignment=null"
            )
        return {}
    if wanted is not None and alignment < wanted:
        raise UserError(
            f"the {_measured(ctx, metrics)}, below labeler.min_alignment={wanted}, so nothing is built on its "
            "labels: choose another labeler, or write a lower bound"
        )
    if not may_be_chance(metrics):
        return {}
    below = metrics["label/alignment_ci_high"] < 0.5
    doubt = "it prefers the worse responses" if below else "it may be guessing"
    return warn(
        ctx,
        "label/warning",
        "labeler below chance" if below else "labeler at chance",
        f"The {_measured(ctx, metrics)}: {doubt}, and so may all that is built on its labels.",
    )


def may_be_chance(metrics: dict[str, Any]) -> bool:
    """Whether the interval of the alignment reaches below 0.5."""
    low = metrics.get("label/alignment_ci_low")
    return low is not None and low < 0.5


def warn(ctx: Context, name: str, title: str, sentence: str) -> dict[str, Any]:
    """Alert, and return the summary entry `name` that carries the sentence to the reports."""
    if ctx.run is not None:
        ctx.run.alert(title, sentence)
    return {name: sentence}


def _measured(ctx: Context, metrics: dict[str, Any]) -> str:
    estimate, low, high, count = (metrics[f"label/alignment{x}"] for x in ("", "_ci_low", "_ci_high", "_n"))
    return (
        f"labeler's alignment is {estimate:.3f} (labeler {ctx.options.labeler.name}, 95% interval {low:.3f} to "
        f"{high:.3f}, {count} {metrics.get('label/gold_source', '')} gold pairs)".replace("  ", " ")
    )


def labeler_identity(ctx: Context, key: str, seed: int) -> dict[str, Any]:
    """What the labels of `key` depend on, without loading a model."""
    return ctx.labeler(key, seed, stored=False).identity()


def filler_pairs(ctx: Context, prompts: Sequence[Prompt]) -> list[Pair]:
    """A pair of responses of the expected length for each prompt, for estimates before there are real ones."""
    size = int(response_tokens(ctx) * CHARS_PER_TOKEN)
    # No two begin alike: what real responses do not share is not read once.
    fillers = (digest(number, 16).ljust(size, "x")[:size] for number in count())
    return [Pair(p.id, p.id, p.prompt, next(fillers), next(fillers), "policy") for p in prompts]


def _readings(ctx: Context, kind: ReadoutKind) -> int:
    """How often prompts are read: again behind a space, if the tokenizer keeps it apart and a model may write it."""
    if kind not in ("choice", "score") or ctx.options.models.tiny:
        return 1
    tokenizer = load_tokenizer(ctx.labeler_spec, ctx.cache_dir)
    return 1 if Spellings.of(tokenizer, ("1", "2")).gap is None else 2


def labeling_work(ctx: Context, key: str, seed: int, pairs: Sequence[Pair]) -> Work:
    """What the labeler at `key` would read, write and cost for `pairs` if no answer were stored."""
    options = ctx.options.asked(key)
    guess = estimate(pairs, ctx.templates, LabelerOptions.of(options, seed=seed))
    return _asking_work(ctx, key, guess, options.readout.kind)


def harm_work(ctx: Context, key: str, seed: int, responses: Sequence[Response]) -> Work:
    """The same for the question whether each of `responses` is harmful."""
    options = ctx.options.asked(key)
    guess = estimate_harm(responses, ctx.templates, LabelerOptions.of(options, seed=seed))
    return _asking_work(ctx, key, guess, "text" if options.readout.kind == "text" else "choice")


def _asking_work(ctx: Context, key: str, guess: Estimate, kind: ReadoutKind) -> Work:
    options, price = ctx.options.asked(key), ctx.price(key)
    usd = None if price is None else price.usd(guess.tokens_in, guess.tokens_out, 0.0)
    elsewhere = seconds_elsewhere(options.engine, ctx.options.engine_at(key), guess)
    if elsewhere is not None:
        return Work(usd=usd, seconds=elsewhere, read=guess.tokens_in, written=guess.tokens_out)
    # The labeler's estimate, at 4 characters per token, is for prices.
    tokens = guess.tokens_run * 4.0 / chars_per_token(ctx) * _readings(ctx.of(key), kind)
    return Work(forward=tokens, decoded=guess.tokens_out, usd=usd)
