"""stage=sample: the response pairs that the labeler compares, sampled from the policy or read from the task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from rlaif.data.encode import Cuts
from rlaif.errors import UserError
from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.decoding.sampler import Sampled
from rlaif.inference.features import Store
from rlaif.io import write_records
from rlaif.models.split import Top
from rlaif.options.read import plain
from rlaif.records import Pair, Prompt, Sample, is_empty
from rlaif.stages.common.context import Context
from rlaif.stages.common.limits import cut_metrics, no_pairs, prompt_tokens, response_tokens
from rlaif.stages.common.policies import draw, policy_top, sft_parent, to_sample
from rlaif.stages.common.sources import PAIRS_FILE, all_held_out, rl_prompts, source
from rlaif.stages.common.stage import Parents, Stage, Work

Slot = tuple[Prompt, int, str]
"""A response to be drawn: its prompt, which of the prompt's pairs it is in, and the side, a or b."""

Place = tuple[str, int, str]
"""A slot by its prompt's id."""


class _Draws:
    """The responses drawn so far. The trunk's features of a pair are stored as soon as it is settled and kept.

    Until then those of its responses that stay wait here, so that none of what is redrawn or dropped is stored.
    """

    def __init__(self, ctx: Context, top: Top, store: Store | None) -> None:
        self._ctx, self._top, self._store = ctx, top, store
        self.samples: dict[Place, Sample] = {}
        self._waiting: dict[Place, Tensor] = {}

    def draw(self, pending: Sequence[Slot], attempt: int, *, last: bool) -> None:
        """Draw responses, which replace those of earlier attempts; after the `last` one no pair is redrawn."""
        options, seed = self._ctx.options.sample, self._ctx.options.seeds.sample
        decoding = Decoding(self._ctx.options.task.max_response_tokens, options.temperature, options.top_k)
        keys = [[seed, p.id, n, side, attempt] for p, n, side in pending]
        due = Counter((p.id, n) for p, n, _ in pending)

        def receive(index: int, one: Sampled) -> None:
            prompt, n, side = pending[index]
            self.samples[prompt.id, n, side] = to_sample(self._ctx, prompt, one)
            if one.features is not None:
                self._waiting[prompt.id, n, side] = one.features
            due[prompt.id, n] -= 1
            if self._store and not due[prompt.id, n]:
                self._settle(self._store, prompt, n, [] if last else _again(prompt, n, self.samples))

        draw(
            self._ctx,
            self._top,
            [p for p, _, _ in pending],
            keys,
            decoding,
            options.max_rows,
            "pairs",
            keep_features=self._store is not None,
            receive=receive,
        )

    def _settle(self, store: Store, prompt: Prompt, n: int, again: Sequence[Slot]) -> None:
        """Store the features of a pair that is kept; drop those of what is redrawn, or of a pair that is not."""
        both = [(prompt.id, n, side) for side in "ab"]
        if not again and not _equal(*(self.samples[place].response for place in both)):
            ids = self._ctx.encoder.prompt(prompt.prompt)
            for place in both:
                store(ids, self.samples[place].ids or (), self._waiting[place])
        for place in [(p.id, n, side) for p, n, side in again] or both:
            del self._waiting[place]


def _draw_pairs(ctx: Context, top: Top) -> tuple[list[Pair], dict[str, Any]]:
    """Pairs of different responses.

    Equal and empty responses are redrawn up to `max_redraws` times. Pairs that are still equal are dropped and
    counted; an empty response beside a text is kept, as the bad answer that it is.
    """
    options, cuts = ctx.options.sample, Cuts()
    prompts = rl_prompts(ctx, options.num_prompts, cuts)
    places = [(p, n) for p in prompts for n in range(options.num_samples)]
    pending: list[Slot] = [(p, n, side) for p, n in places for side in "ab"]
    redrawn = 0
    with ctx.features.storing(ctx.model()) as store:
        draws = _Draws(ctx, top, store)
        for attempt in range(options.max_redraws + 1):
            last = attempt == options.max_redraws
            draws.draw(pending, attempt, last=last)
            pending = [slot for p, n in places for slot in _again(p, n, draws.samples)]
            if not pending or last:
                break
            redrawn += len(pending)
    drawn = draws.samples
    pairs = [Pair.between(drawn[p.id, n, "a"], drawn[p.id, n, "b"], f"{p.id}#{n}") for p, n in places]
    kept = [pair for pair in pairs if not _equal(pair.response_a, pair.response_b)]
    every = list(drawn.values())
    metrics = {
        "sample/redrawn": redrawn,
        "sample/identical_dropped": len(pairs) - len(kept),
        "sample/empty_rate": fmean(is_empty(s.response) for s in every) if every else 0.0,
        "sample/mean_tokens": fmean(s.tokens for s in every) if every else 0.0,
        "sample/eos_rate": fmean(s.finished for s in every) if every else 0.0,
    }
    return kept, metrics | cut_metrics(ctx, "sample", cuts, "prompts")


def _again(prompt: Prompt, n: int, drawn: Mapping[Place, Sample]) -> list[Slot]:
    """The sides of a pair to draw again."""
    a, b = (drawn[prompt.id, n, side].response for side in "ab")
    empty = [(prompt, n, side) for side, text in (("a", a), ("b", b)) if is_empty(text)]
    return empty or ([(prompt, n, "b")] if a == b else [])


def _equal(a: str, b: str) -> bool:
    return a == b or (is_empty(a) and is_empty(b))


def _build(ctx: Context, folder: Path, parents: Parents) -> dict[str, Any]:
    metrics: dict[str, Any]
    if "error" in (ctx.encoder.too_long, ctx.encoder.too_long_responses):
        # What labeling would reject is rejected before anything is kept.
        ctx.encoder.fitting(ctx.task.gold_pairs)
    if source(ctx) == "dataset":
        cuts = Cuts()
        pairs = ctx.encoder.fitting(ctx.task.pairs, limit=ctx.options.sample.num_prompts, cuts=cuts)
        metrics = cut_metrics(ctx, "sample", cuts, "pairs")
        # Where the task holds out all its pairs, the gold pairs alone are labelled.
        alone = all_held_out(ctx) and ctx.encoder.fitting(ctx.task.gold_pairs, cuts=cuts)
        if not pairs and not alone:
            raise UserError(no_pairs(ctx, cuts))
    else:
        pairs, metrics = _draw_pairs(ctx, policy_top(ctx, parents).frozen_copy())
        if not pairs:
            raise UserError(_no_pairs(ctx, metrics))
    write_records(folder / PAIRS_FILE, pairs)
    return {"sample/n": len(pairs), **metrics}


def _no_pairs(ctx: Context, metrics: Mapping[str, Any]) -> str:
    """Why there is nothing to label."""
    if metrics.get("sample/empty_rate") == 1.0:
        model = ctx.model()
        ends = ", ".join(f"{model.tokenizer.convert_ids_to_tokens(i)} ({i})" for i in model.eos_ids)
        return (
            f"100% of the responses are empty: the policy ends at once with {ends}; fine-tune it first "
            "(sft.enabled=true, more sft.num_epochs), or check what ends a response in generation_config.json"
        )
    if metrics.get("sample/identical_dropped"):
        return (
            "no pairs to label: both responses of every prompt are the same; write a higher sample.temperature or "
            "task.max_response_tokens"
        )
    return (
        f"no pairs to label: no prompt fits task.max_prompt_tokens={ctx.options.task.max_prompt_tokens}; write a "
        "higher limit, or task.too_long=truncate"
    )


def _config(ctx: Context) -> dict[str, Any]:
    options = plain(ctx.options.sample)
    options.pop("max_rows")  # how many rows are decoded at once does not change the samples
    if source(ctx) == "dataset":
        options = {"num_prompts": options["num_prompts"]}
    return {"sample": options, "source": source(ctx), "model": ctx.model_identity, "encoding": ctx.encoding}


def _work(ctx: Context) -> Work:
    if source(ctx) == "dataset":
        return Work()
    options = ctx.options.sample
    prompts = min(options.num_prompts, len(ctx.task.train))
    rows = 2 * options.num_samples * prompts
    return Work(forward=prompts * prompt_tokens(ctx), decoded=rows * response_tokens(ctx))


def _check(ctx: Context) -> None:
    source(ctx)


STAGE = Stage(
    "sample",
    4,
    "sample",
    lambda ctx: sft_parent(ctx) if source(ctx) == "policy" else (),
    _config,
    _build,
    _work,
    _check,
)
