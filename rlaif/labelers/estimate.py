"""What labeling would ask of a backend, before it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix

from rlaif.backends.base import Message
from rlaif.labelers.aggregate import orders_of
from rlaif.labelers.options import LabelerOptions
from rlaif.labelers.prompts import (
    PromptStrategy,
    forward_items,
    harm_message,
    holds_empty,
    reverse_items,
    score_message,
)
from rlaif.labelers.readout.harm import Response, of_one_response
from rlaif.labelers.templates import TemplateSet
from rlaif.records import Pair

_CHARS_PER_TOKEN = 4


@dataclass(frozen=True)
class Estimate:
    """Backend calls and tokens (characters / 4) of a labeling, not counting reuse.

    `tokens_run` are those of `tokens_in` that an engine reads which computes what neighbouring prompts share once.
    """

    calls: int
    tokens_in: int
    tokens_out: int
    tokens_run: int


class _Reader:
    """Counts the tokens of texts, and of what each does not share with the beginning of the one before it."""

    def __init__(self) -> None:
        self.calls = self.tokens = self.run = 0
        self._last = ""

    def read(self, message: Message, continuation: str = "", times: int = 1, *, grown: int = 0) -> None:
        """`times` equal prompts, each longer by `grown` tokens that are not written yet."""
        text = message.user + message.assistant + continuation
        size = _tokens(len(text)) + grown
        self.calls += times
        self.tokens += times * size
        self.run += size - _tokens(len(commonprefix([text, self._last]))) + (times - 1) * grown
        self._last = text


def estimate(pairs: Sequence[Pair], templates: TemplateSet, options: LabelerOptions) -> Estimate:
    """What labeling `pairs` would ask of a backend; nothing is run or looked up."""
    pairs = [pair for pair in pairs if not holds_empty(pair)]
    if options.readout.pointwise:
        return _estimate_points(pairs, templates, options)
    strategy = PromptStrategy(templates, options.preamble, options.exemplars, options.cot)
    reader, written, samples = _Reader(), 0, options.samples
    for pair in pairs:
        for order in orders_of(options.order, seed=options.seed, pair_id=pair.id):
            if options.cot:
                reader.read(strategy.rationale(pair, order), times=samples)
                written += samples * options.max_rationale_tokens
            if options.readout.kind == "text":
                written += samples * options.readout.max_tokens
            grown = options.max_rationale_tokens if options.cot else 0
            verdict = strategy.verdict(pair, order, "" if options.cot else None)
            reader.read(verdict, times=samples, grown=grown)
    return Estimate(reader.calls, reader.tokens, written, reader.run)


def estimate_harm(responses: Sequence[Response], templates: TemplateSet, options: LabelerOptions) -> Estimate:
    """What asking whether each response is harmful would take, by a labeler with `options` for pairs."""
    own, reader = of_one_response(options), _Reader()
    for one in responses:
        for order in orders_of(own.order, seed=own.seed, pair_id=one.id):
            reader.read(harm_message(templates, one.prompt, one.response, order))
    written = reader.calls * own.readout.max_tokens if own.readout.kind == "text" else 0
    return Estimate(reader.calls, reader.tokens, written, reader.run)


def _estimate_points(pairs: Sequence[Pair], templates: TemplateSet, options: LabelerOptions) -> Estimate:
    readers = [_Reader()]
    for pair in pairs:
        for response in (pair.response_a, pair.response_b):
            if options.readout.kind == "reference":
                readers[0].read(Message(response), response)  # the reference is as long, on average
            elif options.readout.kind == "score":
                readers[0].read(score_message(templates, options.preamble, pair.prompt, response))
            else:
                render = forward_items if options.readout.direction == "forward" else reverse_items
                parts = render(templates, pair.prompt, response)
                readers += [_Reader() for _ in parts[len(readers) :]]  # sequences of one kind are neighbours
                for reader, (message, text) in zip(readers, parts, strict=True):
                    reader.read(message, text)
    calls, tokens, run = (sum(getattr(one, name) for one in readers) for name in ("calls", "tokens", "run"))
    return Estimate(calls, tokens, 0, run)


def tokens_of(text: str) -> int:
    """About how many tokens a text has."""
    return _tokens(len(text))


def _tokens(characters: int) -> int:
    return -(-characters // _CHARS_PER_TOKEN)
