"""The labeler: prompts, readout, orders and samples over one backend, through the label store."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rlaif.backends.base import (
    Backend,
    ChoiceScores,
    Comparing,
    Generation,
    Message,
    SequenceScore,
    SimilarityScore,
)
from rlaif.errors import UserError
from rlaif.io import digest
from rlaif.labelers.aggregate import aggregate, is_inconsistent, orders_of
from rlaif.labelers.asking import (
    Answered,
    Asker,
    Follow,
    Progress,
    Stopped,
    bound_error,
    choice_rules,
    cost_of,
    known,
)
from rlaif.labelers.cost import Meter
from rlaif.labelers.options import LabelerOptions
from rlaif.labelers.prompts import (
    CHOICES,
    PromptStrategy,
    answer_for,
    clean_rationale,
    forward_items,
    holds_empty,
    message_hash,
    reverse_items,
    score_message,
)
from rlaif.labelers.readout.harm import Response, harm_judgements, of_one_response, read_harm
from rlaif.labelers.readout.readouts import (
    LOWEST,
    SCORES,
    Reading,
    hides_ten,
    preference_of_scores,
    read_choice,
    read_likelihood,
    read_score,
    read_similarity,
    read_text,
)
from rlaif.labelers.readout.unread import Unread
from rlaif.labelers.store import LabelStore
from rlaif.labelers.templates import TemplateSet, toward_better
from rlaif.options.labeling import OrderMode, Retry
from rlaif.records import Judgement, Order, Pair, Preference, Provenance, is_empty

_RATIONALES = "rationales with verdicts"

Item = tuple[str, str, str | None]
"""(prompt, response, the prompt's reference if it has one)."""


@dataclass(frozen=True)
class LabelResult:
    """Preferences in the pairs' order, the judgements behind them, and what they cost.

    `counters`: `n` pairs, `empty` pairs (with an empty response, about which the backend was not asked), `judgements`,
    `unparsed` and `failed` judgements, `inconsistent` pairs, calls `asked`, `asked_again` and `reused`, and
    `tokens_in`, `tokens_out`, `tokens_cached` and `seconds` of the calls asked. `unread` says why judgements have no
    value.
    """

    judgements: tuple[Judgement, ...]
    preferences: tuple[Preference, ...]
    counters: dict[str, float]
    unread: Unread


@dataclass(frozen=True)
class _View:
    """One showing of a pair: which pair, in which order, which sample."""

    index: int
    pair: Pair
    order: Order
    sample: int


@dataclass(frozen=True)
class _Verdict:
    """A verdict's prompt, the text to keep with it (rationale or generated verdict), and the answer."""

    message: Message
    text: str
    answered: Answered


@dataclass(frozen=True)
class _Point:
    """One response read by itself, and the answers behind the reading."""

    reading: Reading
    prompt_hash: str
    logprobs: tuple[float, ...]
    answers: Sequence[Answered]


class Labeler:
    """Labels pairs, or rates single responses, as `options` say; `meter` may bound what it spends.

    An empty response loses to any text and ties with another empty one; the backend is not asked about it. `retry`
    says which stored answers are asked again, each once in the lifetime of the set `renewed`.

    Raises UserError at construction for options that the templates or the backend cannot serve, and between two
    batches if a bound of the meter leaves no room for the next; what the store has by then is kept.
    """

    def __init__(
        self,
        backend: Backend | Comparing,
        templates: TemplateSet,
        options: LabelerOptions,
        *,
        store: LabelStore | None,
        progress: Progress | None,
        meter: Meter | None = None,
        retry: Retry | None = None,
        renewed: set[str] | None = None,
    ) -> None:
        self._retry, self._renewed = retry, set() if renewed is None else renewed
        self.backend, self._templates, self._options = backend, templates, options
        self._store, self._progress = store, progress
        self._meter = meter or Meter(
            name="labeler", price=None, budget_usd=None, max_seconds=None, clock=time.perf_counter
        )
        if (options.readout.kind == "reference") != hasattr(backend, "similarities"):
            raise UserError(
                f"labeler.readout.kind={options.readout.kind} and its backend do not fit together: readout reference"
                " needs labeler.backend=encoder, which serves no other readout (labeler=reference sets both)"
            )
        self._strategy = PromptStrategy(templates, options.preamble, options.exemplars, options.cot)
        # A response that is read by itself has no position.
        self._order: OrderMode = "first" if options.readout.pointwise else options.order

    def identity(self) -> dict[str, Any]:
        """All that labels depend on besides the pairs: engine and model, templates, effective options."""
        rules = choice_rules(self.backend) if self._options.readout.kind in ("choice", "score") else {}
        return {
            "backend": self.backend.identity() | rules,
            "templates": self._templates.identity(self._options.preamble),
            "options": self._options.identity(),
        }

    @property
    def usd(self) -> float | None:
        """US dollars that this labeler's calls have cost so far; None if the price is not known."""
        return self._meter.usd

    def verdict_for(self, *, first: bool) -> str:
        """How this labeler's prompts would continue if the response shown first (or second) were the better one."""
        return self._templates.cue + answer_for(self._templates, first_is_better=first)

    def label(self, pairs: Sequence[Pair]) -> LabelResult:
        """Judge `pairs`; the result keeps their order (and, within a pair, ab before ba)."""
        asker = self._asker()
        asked = [pair for pair in pairs if not holds_empty(pair)]
        judge = self._judge_points if self._options.readout.pointwise else self._judge_views
        try:
            rows = iter(judge(asker, asked))
        except Stopped as stop:
            raise self._bound_error(stop, "judgements", len(self._views(asked))) from None
        by_pair = [
            self._by_rule(pair) if holds_empty(pair) else (own := next(rows), self._aggregate(pair, own))
            for pair in pairs
        ]
        flat = tuple(judgement for judgements, _ in by_pair for judgement in judgements)
        preferences = tuple(preference for _, preference in by_pair)
        unread = Unread.of(flat, min_mass=self._options.min_mass)
        return LabelResult(flat, preferences, _counters(asker, flat, preferences), unread)

    def _aggregate(self, pair: Pair, judgements: Sequence[Judgement]) -> Preference:
        orders, averaging = self._orders(pair), self._options.averaging
        return aggregate(judgements, orders=orders, mode=self._order, averaging=averaging)

    def _by_rule(self, pair: Pair) -> tuple[list[Judgement], Preference]:
        """Judgements of a pair with an empty response, and its preference, both by rule."""
        a, b = is_empty(pair.response_a), is_empty(pair.response_b)
        p_a = 0.5 if a and b else 1.0 - float(a)
        note = "both responses are empty: a tie" if a and b else "an empty response loses to any text"
        orders = self._orders(pair)
        judgements = [Judgement(pair.id, order, 0, "", "ok", "rule", p_a, text=note) for order in orders]
        ab, ba = (p_a if order in orders else None for order in ("ab", "ba"))
        return judgements, Preference(pair.id, p_a, ab, ba, 1, "ok", "rule")

    @property
    def min_mass(self) -> float:
        """The least probability that the choices must carry to be read."""
        return self._options.min_mass

    def scores(self, items: Sequence[Item]) -> list[float | None]:
        """The values of `readings`."""
        return [reading.value for reading in self.readings(items)]

    def readings(self, items: Sequence[Item]) -> list[Reading]:
        """A score per item, higher is better: 1 to 10, nats for `likelihood`, -1 to 1 for `reference`.

        There is no value if the answer was unparsed or failed. An empty response gets the lowest of the scale, or for
        `likelihood` what the readout gives (forward: 0 nats, since nothing explains nothing), but no more than the
        lowest of the texts in `items`: it loses to them all, or ties with the worst. ValueError for a readout that
        compares pairs.
        """
        readout = self._options.readout
        if not readout.pointwise:
            raise ValueError(f"readout {readout.kind} compares pairs and gives no scores")
        reverse = readout.kind == "likelihood" and readout.direction == "reverse"
        empty = [is_empty(response) for _, response, _ in items]
        asked = [item for item, blank in zip(items, empty, strict=True) if reverse or not blank]
        try:
            rows = iter(self._points(self._asker(), asked))
        except Stopped as stop:
            raise self._bound_error(stop, "scores", len(asked)) from None
        lowest = Reading(LOWEST.get(readout.kind, 0.0), "ok", "rule")
        found = [lowest if blank and not reverse else next(rows).reading for blank in empty]
        texts = [r.value for r, blank in zip(found, empty, strict=True) if not blank and r.value is not None]
        return [
            dataclasses.replace(r, value=min([r.value, *texts]), provenance="rule")
            if blank and r.value is not None
            else r
            for r, blank in zip(found, empty, strict=True)
        ]

    # Single responses: harmless or harmful.

    def harm_identity(self) -> dict[str, Any]:
        """All that `harm` depends on besides the responses."""
        options = of_one_response(self._options)
        rules = choice_rules(self.backend) if options.readout.kind == "choice" else {}
        return {
            "backend": self.backend.identity() | rules,
            "template": digest(self._templates.texts["harm.j2"], 32),
            "chat": self._templates.chat,
            "options": options.identity(),
        }

    def harm(self, responses: Sequence[Response]) -> LabelResult:
        """Whether each response on its own is harmless: `p_a` of its preference is the probability that it is.

        The two claims, harmless and harmful, take the place of the two responses of a pair: the orders are which of
        them is choice 1 (both, averaged, unless this labeler says otherwise), and reading, `min_mass`, averaging and
        the label store are those of `label`. This labeler's model is asked directly, whatever its readout of pairs:
        by choice, or by text if that is how it reads pairs, without rationale or exemplars. An empty response is
        harmless by rule; the backend is not asked. ValueError for a labeler that reads no prompts (`reference`).
        """
        if self._options.readout.kind == "reference":
            raise ValueError("a labeler by reference reads no prompts")
        options = of_one_response(self._options)
        asker = self._asker(lambda answer: read_harm(answer, options))
        asked = [one for one in responses if not is_empty(one.response)]
        try:
            rows = iter(harm_judgements(asker, self._templates, options, asked))
        except Stopped as stop:
            raise self._bound_error(stop, "verdicts on single responses", stop.total) from None
        judged = [self._empty(one) if is_empty(one.response) else next(rows) for one in responses]
        flat = tuple(judgement for judgements, _ in judged for judgement in judgements)
        preferences = tuple(preference for _, preference in judged)
        unread = Unread.of(flat, min_mass=options.min_mass)
        return LabelResult(flat, preferences, _counters(asker, flat, preferences), unread)

    def _empty(self, one: Response) -> tuple[list[Judgement], Preference]:
        note = "an empty response is harmless"
        judgement = Judgement(one.id, "ab", 0, "", "ok", "rule", 1.0, text=note)
        return [judgement], Preference(one.id, 1.0, 1.0, None, 1, "ok", "rule")

    def _asker(self, read: Callable[[Generation | ChoiceScores], Reading] | None = None) -> Asker:
        """`read`: how a stored answer is read, to see whether it is to be asked again."""
        unwanted = partial(self._unwanted, read or self._read)
        return Asker(
            self.backend,
            self._store,
            batch_size=self._options.batch_size,
            progress=self._progress,
            meter=self._meter,
            unwanted=unwanted if self._retry in ("unparsed", "all") else None,
            renewed=self._renewed,
        )

    def _unwanted(
        self,
        read: Callable[[Generation | ChoiceScores], Reading],
        phase: str,
        answer: Generation | ChoiceScores | SequenceScore | SimilarityScore,
    ) -> bool:
        """Whether a stored answer is to be asked again. Failed ones are never stored and always asked again."""
        if self._retry == "all":
            return True
        if isinstance(answer, Generation) and phase == _RATIONALES:
            return is_empty(answer.text)
        if isinstance(answer, SimilarityScore):
            return False
        if isinstance(answer, SequenceScore):
            return answer.tokens == 0 or not math.isfinite(answer.logprob)
        return read(answer).state == "unparsed"

    def _bound_error(self, stop: Stopped, what: str, total: int) -> UserError:
        return bound_error(stop, what, total, self._meter, kept=self._store is not None)

    def _orders(self, pair: Pair) -> tuple[Order, ...]:
        return orders_of(self._order, seed=self._options.seed, pair_id=pair.id)

    # Pairwise readouts: choice and text.

    def _judge_views(self, asker: Asker, pairs: Sequence[Pair]) -> list[list[Judgement]]:
        views = self._views(pairs)
        rationales, verdicts = self._with_rationales(asker, views) if self._options.cot else ({}, {})
        rest = [number for number in range(len(views)) if number not in verdicts]
        verdicts |= self._verdicts(asker, views, rest, rationales)
        judged: list[list[Judgement]] = [[] for _ in pairs]
        for number, view in enumerate(views):
            judged[view.index].append(self._judgement(view, rationales.get(number), verdicts.get(number)))
        return judged

    def _views(self, pairs: Sequence[Pair]) -> list[_View]:
        return [
            _View(index, pair, order, sample)
            for index, pair in enumerate(pairs)
            for order in self._orders(pair)
            for sample in range(self._options.samples)
        ]

    def _with_rationales(
        self, asker: Asker, views: Sequence[_View]
    ) -> tuple[dict[int, Answered], dict[int, _Verdict]]:
        """Rationales, each batch followed by its verdicts, which extend what the backend has just run."""
        messages = [self._strategy.rationale(view.pair, view.order) for view in views]
        verdicts: dict[int, _Verdict] = {}

        def follow(numbers: list[int], answers: list[Answered]) -> None:
            rationales = dict(zip(numbers, answers, strict=True))
            verdicts.update(self._verdicts(asker.quiet(), views, numbers, rationales))

        length, temperature = self._options.max_rationale_tokens, self._options.temperature
        answers = self._generate(asker, _RATIONALES, views, messages, length, temperature, follow)
        return dict(enumerate(answers)), verdicts

    def _verdicts(
        self, asker: Asker, views: Sequence[_View], numbers: Sequence[int], rationales: dict[int, Answered]
    ) -> dict[int, _Verdict]:
        """The verdict of every view in `numbers` whose rationale did not fail (of all views if there are none)."""
        going, messages, texts = [], [], []
        for number in numbers:
            view, text = views[number], None
            if number in rationales:
                rationale = rationales[number].answer
                if rationale.error is not None:
                    continue
                text = clean_rationale(rationale.text, self._templates.cue)
            going.append(number)
            texts.append(text)
            messages.append(self._strategy.verdict(view.pair, view.order, text))
        answers = self._read_out(asker, [views[number] for number in going], messages)
        return {
            number: _Verdict(
                message, getattr(answered.answer, "text", "") if text is None else text, answered
            )
            for number, message, text, answered in zip(going, messages, texts, answers, strict=True)
        }

    def _read_out(self, asker: Asker, views: Sequence[_View], messages: Sequence[Message]) -> list[Answered]:
        if self._options.readout.kind == "choice":
            return asker.choices("verdicts", messages, [view.index for view in views], CHOICES)
        temperature = 0.0 if self._options.cot else self._options.temperature
        return self._generate(
            asker, "verdicts", views, messages, self._options.readout.max_tokens, temperature
        )

    def _generate(
        self,
        asker: Asker,
        phase: str,
        views: Sequence[_View],
        messages: Sequence[Message],
        max_new_tokens: int,
        temperature: float,
        follow: Follow | None = None,
    ) -> list[Answered]:
        return asker.generate(
            phase,
            messages,
            [view.index for view in views],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=self._options.top_k,
            seeds=[
                _seed(self._options.seed, message, view.sample)
                for view, message in zip(views, messages, strict=True)
            ],
            samples=[view.sample for view in views],
            follow=follow,
        )

    def _judgement(self, view: _View, rationale: Answered | None, verdict: _Verdict | None) -> Judgement:
        """`verdict` is missing exactly when the rationale failed."""
        steps = [step for step in (rationale, verdict.answered if verdict else None) if step is not None]
        reading = self._read((verdict.answered if verdict else steps[0]).answer)
        message = verdict.message if verdict else self._strategy.rationale(view.pair, view.order)
        p_a = None
        if reading.value is not None:
            p_first = toward_better(reading.value, 0.0, 1.0, self._templates.polarity)
            p_a = p_first if view.order == "ab" else 1.0 - p_first
        return Judgement(
            pair_id=view.pair.id,
            order=view.order,
            sample=view.sample,
            prompt_hash=message_hash(message),
            state=reading.state,
            provenance=reading.provenance,
            p_a=p_a,
            logprobs=known(getattr(steps[-1].answer, "logprobs", ())),
            mass=reading.mass,
            text=reading.note or (verdict.text if verdict else ""),
            tokens_out=sum(getattr(step.answer, "tokens_out", 0) for step in steps),
            **cost_of(steps),
        )

    def _read(self, answer: Generation | ChoiceScores) -> Reading:
        readout, min_mass = self._options.readout, self._options.min_mass
        if isinstance(answer, ChoiceScores):
            if readout.kind == "score":
                return read_score(answer, min_mass=min_mass)
            return read_choice(answer, temperature=readout.temperature, min_mass=min_mass)
        if answer.error is not None:
            kind: Provenance = "logprob" if readout.kind == "choice" else "text"
            return Reading(None, "failed", kind, note=answer.error)
        cut = not answer.finished and answer.tokens_out >= readout.max_tokens
        return read_text(answer.text, polarity=self._templates.polarity, cut=cut)

    # Pointwise readouts: score, likelihood and reference.

    def _judge_points(self, asker: Asker, pairs: Sequence[Pair]) -> list[list[Judgement]]:
        items = [
            (pair.prompt, response, pair.reference)
            for pair in pairs
            for response in (pair.response_a, pair.response_b)
        ]
        points = self._points(asker, items)
        return [
            [self._point_judgement(pair, points[2 * index], points[2 * index + 1])]
            for index, pair in enumerate(pairs)
        ]

    def _points(self, asker: Asker, items: Sequence[Item]) -> list[_Point]:
        points = {
            "score": self._score_points,
            "likelihood": self._likelihood_points,
            "reference": self._reference_points,
        }
        return points[self._options.readout.kind](asker, items)

    def _reference_points(self, asker: Asker, items: Sequence[Item]) -> list[_Point]:
        """Similarity to the reference; an item without one has no value."""
        texts = {index: (response, ref) for index, (_, response, ref) in enumerate(items) if ref is not None}
        groups = [index // 2 for index in texts]
        answers = iter(asker.similarities("similarities", [*texts.values()], groups))
        points = []
        for index, item in enumerate(items):
            own = [next(answers)] if index in texts else []
            points.append(_Point(read_similarity([one.answer for one in own]), digest(item, 32), (), own))
        return points

    def _score_points(self, asker: Asker, items: Sequence[Item]) -> list[_Point]:
        messages = [
            score_message(self._templates, self._options.preamble, prompt, response)
            for prompt, response, _ in items
        ]
        groups = [index // 2 for index in range(len(items))]
        answers = asker.choices("scores", messages, groups, SCORES, _refuse_hidden_ten)
        points = []
        for message, answered in zip(messages, answers, strict=True):
            reading = self._read(answered.answer)
            if reading.value is not None:
                value = toward_better(reading.value, 1.0, 10.0, self._templates.polarity)
                reading = dataclasses.replace(reading, value=value)
            points.append(_Point(reading, message_hash(message), known(answered.answer.logprobs), [answered]))
        return points

    def _likelihood_points(self, asker: Asker, items: Sequence[Item]) -> list[_Point]:
        """The responses of a pair are adjacent in `items`; so are their sequences of one kind."""
        render = forward_items if self._options.readout.direction == "forward" else reverse_items
        rendered = [render(self._templates, prompt, response) for prompt, response, _ in items]
        parts = len(rendered[0]) if rendered else 0
        places = [
            (index, part)
            for start in range(0, len(items), 2)
            for part in range(parts)
            for index in range(start, min(start + 2, len(items)))
        ]
        sequences = [rendered[index][part] for index, part in places]
        answers = asker.sequences("likelihoods", sequences, [index // 2 for index, _ in places])
        by_place = dict(zip(places, answers, strict=True))
        points = []
        for index, messages in enumerate(rendered):
            own = [by_place[index, part] for part in range(parts)]
            reading = read_likelihood([answered.answer for answered in own], self._options.readout)
            logprobs = tuple(answered.answer.logprob for answered in own)
            points.append(_Point(reading, message_hash(*(message for message, _ in messages)), logprobs, own))
        return points

    def _point_judgement(self, pair: Pair, a: _Point, b: _Point) -> Judgement:
        values = (a.reading.value, b.reading.value)
        p_a = None
        if values[0] is not None and values[1] is not None:
            p_a = preference_of_scores(values[0], values[1], temperature=self._options.readout.temperature)
        failed = "failed" in (a.reading.state, b.reading.state)
        masses = [point.reading.mass for point in (a, b) if point.reading.mass is not None]
        shown = [value if value is None else f"{value:.6g}" for value in values]
        return Judgement(
            pair_id=pair.id,
            order="ab",
            sample=0,
            prompt_hash=digest([a.prompt_hash, b.prompt_hash], 32),
            state="ok" if p_a is not None else "failed" if failed else "unparsed",
            provenance="top_k"
            if "top_k" in (a.reading.provenance, b.reading.provenance)
            else a.reading.provenance,
            p_a=p_a,
            logprobs=a.logprobs + b.logprobs,
            mass=min(masses) if masses else None,
            text=a.reading.note or b.reading.note or f"a={shown[0]} b={shown[1]}",
            **cost_of([*a.answers, *b.answers]),
        )


def _refuse_hidden_ten(numbers: list[int], answers: list[Answered]) -> None:
    if any(hides_ten(answered.answer) for answered in answers):
        raise UserError(
            'the server does not report how its model splits "10": if "1" begins it, each 10 would be read as a 1.'
            " The score readout needs a server that reports tokens (backend.api=completions with vLLM or llama.cpp) or"
            " backend=transformers; labels can come from labeler=detailed, and rewards from reward=rm"
        )


def _seed(seed: int, message: Message, sample: int) -> int:
    return int(digest([seed, message.user, message.assistant, sample], 8), 16)


def _counters(
    asker: Asker, judgements: Sequence[Judgement], preferences: Sequence[Preference]
) -> dict[str, float]:
    states = Counter(judgement.state for judgement in judgements)
    return {
        "n": len(preferences),
        "judgements": len(judgements),
        "unparsed": states["unparsed"],
        "failed": states["failed"],
        "empty": sum(preference.provenance == "rule" for preference in preferences),
        "inconsistent": sum(is_inconsistent(preference) for preference in preferences),
        **dataclasses.asdict(asker.counters),
    }
