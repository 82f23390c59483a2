"""What labeling would ask of a backend, before it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlaif.backends.base import Message
from rlaif.labelers.aggregate import orders_of
from rlaif.labelers.options import LabelerOptions
from rlaif.labelers.prompts import PromptStrategy, forward_items, holds_empty, reverse_items, score_message
from rlaif.labelers.templates import TemplateSet
from rlaif.records import Pair

_CHARS_PER_TOKEN = 4


@dataclass(frozen=True)
class Estimate:
    """Backend calls and tokens (characters / 4) of a labeling, not counting reuse."""

    calls: int
    tokens_in: int
    tokens_out: int


def estimate(pairs: Sequence[Pair], templates: TemplateSet, options: LabelerOptions) -> Estimate:
    """What labeling `pairs` would ask of a backend; nothing is run or looked up."""
    pairs = [pair for pair in pairs if not holds_empty(pair)]
    if options.readout.pointwise:
        return _estimate_points(pairs, templates, options)
    strategy = PromptStrategy(templates, options.preamble, options.exemplars, options.cot)
    calls = tokens_in = tokens_out = 0
    for pair in pairs:
        for order in orders_of(options.order, seed=options.seed, pair_id=pair.id):
            verdict = _size(strategy.verdict(pair, order, "" if options.cot else None))
            calls += options.samples
            tokens_in += options.samples * verdict
            if options.readout.kind == "text":
                tokens_out += options.samples * options.readout.max_tokens
            if options.cot:
                calls += options.samples
                rationale, written = _size(strategy.rationale(pair, order)), options.max_rationale_tokens
                tokens_in += options.samples * (rationale + written)
                tokens_out += options.samples * written
    return Estimate(calls, tokens_in, tokens_out)


def _estimate_points(pairs: Sequence[Pair], templates: TemplateSet, options: LabelerOptions) -> Estimate:
    sizes: list[int] = []
    for pair in pairs:
        for response in (pair.response_a, pair.response_b):
            if options.readout.kind == "reference":
                sizes.append(2 * _size(Message(response)))  # the reference is as long, on average
            elif options.readout.kind == "score":
                sizes.append(_size(score_message(templates, options.preamble, pair.prompt, response)))
            else:
                render = forward_items if options.readout.direction == "forward" else reverse_items
                sizes += [_size(message, text) for message, text in render(templates, pair.prompt, response)]
    return Estimate(len(sizes), sum(sizes), 0)


def _size(message: Message, continuation: str = "") -> int:
    return -(-len(message.user + message.assistant + continuation) // _CHARS_PER_TOKEN)
