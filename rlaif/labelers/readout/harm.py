"""Whether a single response is harmful: the model chooses between two claims about it, shown in both orders.

A pointwise verdict as in Lee et al. 2023 (arXiv:2309.00267, section 5), who have each response rated on its own as
harmless or harmful, since ranks of two refusals say little.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from rlaif.backends.base import ChoiceScores, Generation
from rlaif.labelers.aggregate import aggregate, orders_of
from rlaif.labelers.asking import Answered, Asker, cost_of, known
from rlaif.labelers.options import LabelerOptions
from rlaif.labelers.prompts import CHOICES, harm_message, message_hash
from rlaif.labelers.readout.readouts import Reading, read_choice, read_text
from rlaif.labelers.templates import TemplateSet
from rlaif.records import Judgement, Order, Preference


@dataclass(frozen=True)
class Response:
    """A response to be judged on its own; `id` names its verdict."""

    id: str
    prompt: str
    response: str


def of_one_response(own: LabelerOptions) -> LabelerOptions:
    """A labeler's options as they apply to the question whether one response is harmful.

    The readouts that rate responses by themselves are given with `order: first`, which they do not read: here it is
    `both`. A softmax or sigmoid temperature that is not of a choice means nothing here.
    """
    kind = own.readout.kind
    readout = dataclasses.replace(
        own.readout,
        kind="text" if kind == "text" else "choice",
        temperature=own.readout.temperature if kind == "choice" else 1.0,
    )
    return dataclasses.replace(
        own,
        readout=readout,
        order="both" if own.readout.pointwise else own.order,
        preamble="base",
        exemplars=0,
        cot=False,
        samples=1,
        temperature=0.0,
    )


def read_harm(answer: Generation | ChoiceScores, options: LabelerOptions) -> Reading:
    """Which of the two choices the answer names, as the probability of the first."""
    readout = options.readout
    if isinstance(answer, ChoiceScores):
        return read_choice(answer, temperature=readout.temperature, min_mass=options.min_mass)
    if answer.error is not None:
        return Reading(None, "failed", "text", note=answer.error)
    cut = not answer.finished and answer.tokens_out >= readout.max_tokens
    # To praise a response is no answer to this question, so the stricter of the two grammars.
    return read_text(answer.text, polarity="worse", cut=cut)


def harm_judgements(
    asker: Asker, templates: TemplateSet, options: LabelerOptions, responses: Sequence[Response]
) -> list[tuple[list[Judgement], Preference]]:
    """The judgements of each response (one per order) and what they come to; `options` of `of_one_response`."""
    orders = [orders_of(options.order, seed=options.seed, pair_id=one.id) for one in responses]
    views = [(index, order) for index, own in enumerate(orders) for order in own]
    messages = [harm_message(templates, responses[i].prompt, responses[i].response, o) for i, o in views]
    groups = [index for index, _ in views]
    if options.readout.kind == "choice":
        answers = asker.choices("harm verdicts", messages, groups, CHOICES)
    else:
        answers = asker.generate(
            "harm verdicts",
            messages,
            groups,
            max_new_tokens=options.readout.max_tokens,
            temperature=0.0,
            top_k=0,
            seeds=[0] * len(views),
            samples=[0] * len(views),
        )
    judged: list[list[Judgement]] = [[] for _ in responses]
    for (index, order), message, answered in zip(views, messages, answers, strict=True):
        own = _judgement(responses[index].id, order, message_hash(message), answered, options)
        judged[index].append(own)
    return [
        (own, aggregate(own, orders=shown, mode=options.order, averaging=options.averaging))
        for own, shown in zip(judged, orders, strict=True)
    ]


def _judgement(
    name: str, order: Order, prompt_hash: str, answered: Answered, options: LabelerOptions
) -> Judgement:
    reading = read_harm(answered.answer, options)
    p_harmless = reading.value
    if p_harmless is not None and order == "ba":
        p_harmless = 1.0 - p_harmless
    return Judgement(
        pair_id=name,
        order=order,
        sample=0,
        prompt_hash=prompt_hash,
        state=reading.state,
        provenance=reading.provenance,
        p_a=p_harmless,
        logprobs=known(getattr(answered.answer, "logprobs", ())),
        mass=reading.mass,
        text=reading.note or getattr(answered.answer, "text", ""),
        tokens_out=getattr(answered.answer, "tokens_out", 0),
        **cost_of([answered]),
    )
