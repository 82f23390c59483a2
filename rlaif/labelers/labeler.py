"""The labeler: prompts, readout, orders and samples over one backend, through the label store."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.backends.base import Backend, ChoiceScores, Message
from rlaif.errors import UserError
from rlaif.io import digest
from rlaif.labelers.aggregate import aggregate, is_inconsistent, orders_of
from rlaif.labelers.asking import Answered, Asker, Follow, Progress, Sampling, Stopped, choice_rules
from rlaif.labelers.cost import Meter
from rlaif.labelers.options import LabelerOptions
from rlaif.labelers.prompts import (
    CHOICES,
    PromptStrategy,
    answer_for,
    clean_rationale,
    forward_items,
    reverse_items,
    score_message,
)
from rlaif.labelers.readouts import (
    SCORES,
    Reading,
    preference_of_scores,
    read_choice,
    read_likelihood,
    read_score,
    read_text,
)
from rlaif.labelers.store import LabelStore
from rlaif.labelers.templates import TemplateSet, toward_better
from rlaif.records import Judgement, Order, Pair, Preference, Provenance

_CHARS_PER_TOKEN = 4


@dataclass(frozen=True)
class LabelResult:
    """Preferences in the pairs' order, the judgements behind them, and what they cost.

    `counters`: `n` pairs, `judgements`, `unparsed` and `failed` judgements, `inconsistent` pairs, calls
    `asked` and `reused`, `tokens_in`, `tokens_out`, `tokens_cached` and `seconds` of the calls asked.
    """

    judgements: tuple[Judgement, ...]
    preferences: tuple[Preference, ...]
    counters: dict[str, float]


@dataclass(frozen=True)
class Estimate:
    """What labeling would ask for, reuse aside: backend calls and tokens (characters / 4)."""

    calls: int
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True)
class _View:
    """One showing of a pair: which, in which order, which sample."""

    index: int
    pair: Pair
    order: Order
    sample: int


@dataclass(frozen=True)
class _Verdict:
    """A verdict's prompt, the text to keep with it (rationale or generated verdict) and the answer."""

    message: Message
    text: str
    answered: Answered


@dataclass(frozen=True)
class _Point:
    """One response read by itself, with what reading it cost."""

    reading: Reading
    prompt_hash: str
    logprobs: tuple[float, ...]
    tokens_in: int
    tokens_cached: int
    seconds: float


class Labeler:
    """Labels pairs, or rates single responses, as `options` say; `meter` may bound what it spends.

    Raises UserError at construction for options that the templates cannot serve, and between two batches
    when a bound of the meter leaves no room for the next: what the store has by then is kept.
    """

    def __init__(
        self,
        backend: Backend,
        templates: TemplateSet,
        options: LabelerOptions,
        *,
        store: LabelStore | None,
        progress: Progress | None,
        meter: Meter | None = None,
    ) -> None:
        self.backend = backend
        self._templates = templates
        self._options = options
        self._store = store
        self._progress = progress
        self._meter = meter or _unbounded()
        self._strategy = _strategy(templates, options)

    def identity(self) -> dict[str, Any]:
        """All that labels depend on besides the pairs: engine and model, templates, effective options."""
        rules = choice_rules(self.backend) if self._options.readout.kind in ("choice", "score") else {}
        return {
            "backend": self.backend.identity() | rules,
            "templates": self._templates.identity,
            "options": self._options.identity(),
        }

    @property
    def usd(self) -> float | None:
        """US dollars that this labeler's calls have cost so far; None where the price is not known."""
        return self._meter.usd

    def verdict_for(self, *, first: bool) -> str:
        """How this labeler's prompts would go on if the response shown first (or second) were the better one."""
        return self._templates.cue + answer_for(self._templates, first_is_better=first)

    def label(self, pairs: Sequence[Pair]) -> LabelResult:
        """Judge `pairs`; the result keeps their order (and, within a pair, ab before ba)."""
        asker = self._asker()
        pointwise = self._options.readout.pointwise
        try:
            judged = self._judge_points(asker, pairs) if pointwise else self._judge_views(asker, pairs)
        except Stopped as stop:
            total = len(pairs) if pointwise else len(self._views(pairs))
            raise self._bound_error(stop, "judgements", total) from None
        preferences = tuple(
            aggregate(
                judgements,
                orders=("ab",) if pointwise else self._orders(pair),
                mode="first" if pointwise else self._options.order,
                averaging=self._options.averaging,
            )
            for pair, judgements in zip(pairs, judged, strict=True)
        )
        flat = tuple(judgement for judgements in judged for judgement in judgements)
        return LabelResult(flat, preferences, _counters(asker, flat, preferences))

    def scores(self, items: Sequence[tuple[str, str]]) -> list[float | None]:
        """Each (prompt, response)'s own score, higher is better: 1 to 10, or nats for `likelihood`.

        None where the answer was unparsed or failed. ValueError for a readout that compares pairs.
        """
        if not self._options.readout.pointwise:
            raise ValueError(f"readout {self._options.readout.kind} compares pairs and gives no scores")
        try:
            points = self._points(self._asker(), items)
        except Stopped as stop:
            raise self._bound_error(stop, "scores", len(items)) from None
        return [point.reading.value for point in points]

    def _asker(self) -> Asker:
        return Asker(
            self.backend,
            self._store,
            batch_size=self._options.batch_size,
            progress=self._progress,
            meter=self._meter,
        )

    def _bound_error(self, stop: Stopped, what: str, total: int) -> UserError:
        """The items of a phase are judgements, or equal parts of one."""
        done = stop.done * total // stop.total
        kept = "they are kept" if self._store else "without a label store nothing is kept"
        return UserError(
            f"{stop.bound} has no room for another batch: {done} of {total} {what} are done, for"
            f" {self._meter} in this run; {kept}, and the same command with a higher bound goes on from there"
        )

    def _orders(self, pair: Pair) -> tuple[Order, ...]:
        return orders_of(self._options.order, seed=self._options.seed, pair_id=pair.id)

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
        """Rationales, each batch's verdicts right after it: they go on from what the backend just ran."""
        messages = [self._strategy.rationale(view.pair, view.order) for view in views]
        verdicts: dict[int, _Verdict] = {}

        def follow(numbers: list[int], answers: list[Answered]) -> None:
            rationales = dict(zip(numbers, answers, strict=True))
            verdicts.update(self._verdicts(asker.quiet(), views, numbers, rationales))

        length, temperature = self._options.max_rationale_tokens, self._options.temperature
        answers = self._generate(
            asker, "rationales with verdicts", views, messages, length, temperature, follow
        )
        return dict(enumerate(answers)), verdicts

    def _verdicts(
        self, asker: Asker, views: Sequence[_View], numbers: Sequence[int], rationales: dict[int, Answered]
    ) -> dict[int, _Verdict]:
        """The verdict of every view in `numbers` whose rationale did not fail (all of them without one)."""
        going, messages, texts = [], [], []
        for number in numbers:
            view = views[number]
            if number in rationales and rationales[number].answer.error is not None:
                continue
            text = None
            if number in rationales:
                text = clean_rationale(rationales[number].answer.text, self._templates.cue)
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
            sampling=Sampling(max_new_tokens, temperature, self._options.top_k),
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
        reading = self._reading(verdict.answered if verdict else steps[0])
        message = verdict.message if verdict else self._strategy.rationale(view.pair, view.order)
        p_a = None
        if reading.value is not None:
            p_first = toward_better(reading.value, 0.0, 1.0, self._templates.polarity)
            p_a = p_first if view.order == "ab" else 1.0 - p_first
        return Judgement(
            pair_id=view.pair.id,
            order=view.order,
            sample=view.sample,
            prompt_hash=_hash(message),
            state=reading.state,
            provenance=reading.provenance,
            p_a=p_a,
            logprobs=_known(getattr(steps[-1].answer, "logprobs", ())),
            mass=reading.mass,
            text=reading.note or (verdict.text if verdict else ""),
            tokens_in=sum(step.answer.tokens_in for step in steps),
            tokens_out=sum(getattr(step.answer, "tokens_out", 0) for step in steps),
            tokens_cached=sum(step.answer.tokens_cached for step in steps),
            seconds=sum(step.seconds for step in steps),
        )

    def _reading(self, answered: Answered) -> Reading:
        if isinstance(answered.answer, ChoiceScores):
            return read_choice(answered.answer, temperature=self._options.readout.temperature)
        if answered.answer.error is not None:
            kind: Provenance = "logprob" if self._options.readout.kind == "choice" else "text"
            return Reading(None, "failed", kind, note=answered.answer.error)
        return read_text(answered.answer.text)

    # Pointwise readouts: score and likelihood.

    def _judge_points(self, asker: Asker, pairs: Sequence[Pair]) -> list[list[Judgement]]:
        items = [(pair.prompt, response) for pair in pairs for response in (pair.response_a, pair.response_b)]
        points = self._points(asker, items)
        return [
            [self._point_judgement(pair, points[2 * index], points[2 * index + 1])]
            for index, pair in enumerate(pairs)
        ]

    def _points(self, asker: Asker, items: Sequence[tuple[str, str]]) -> list[_Point]:
        if self._options.readout.kind == "score":
            return self._score_points(asker, items)
        return self._likelihood_points(asker, items)

    def _score_points(self, asker: Asker, items: Sequence[tuple[str, str]]) -> list[_Point]:
        messages = [
            score_message(self._templates, self._options.preamble, prompt, response)
            for prompt, response in items
        ]
        answers = asker.choices("scores", messages, [index // 2 for index in range(len(items))], SCORES)
        points = []
        for message, answered in zip(messages, answers, strict=True):
            reading = read_score(answered.answer)
            if reading.value is not None:
                value = toward_better(reading.value, 1.0, 10.0, self._templates.polarity)
                reading = dataclasses.replace(reading, value=value)
            logprobs = _known(answered.answer.logprobs)
            points.append(_point(reading, _hash(message), logprobs, [answered]))
        return points

    def _likelihood_points(self, asker: Asker, items: Sequence[tuple[str, str]]) -> list[_Point]:
        """Items come as responses of one pair side by side; so do their sequences of one kind."""
        render = forward_items if self._options.readout.direction == "forward" else reverse_items
        rendered = [render(self._templates, prompt, response) for prompt, response in items]
        parts = len(rendered[0]) if rendered else 0
        places = [
            (index, part)
            for start in range(0, len(items), 2)
            for part in range(parts)
            for index in range(start, min(start + 2, len(items)))
        ]
        answers = asker.sequences(
            "likelihoods",
            [rendered[index][part] for index, part in places],
            [index // 2 for index, _ in places],
        )
        by_place = dict(zip(places, answers, strict=True))
        points = []
        for index, sequences in enumerate(rendered):
            own = [by_place[index, part] for part in range(parts)]
            reading = read_likelihood([answered.answer for answered in own], self._options.readout)
            logprobs = tuple(answered.answer.logprob for answered in own)
            points.append(_point(reading, _hash(*(message for message, _ in sequences)), logprobs, own))
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
            tokens_in=a.tokens_in + b.tokens_in,
            tokens_cached=a.tokens_cached + b.tokens_cached,
            seconds=a.seconds + b.seconds,
        )


def estimate(pairs: Sequence[Pair], templates: TemplateSet, options: LabelerOptions) -> Estimate:
    """What labeling `pairs` would ask of a backend, without one: nothing is run or looked up."""
    if options.readout.pointwise:
        return _estimate_points(pairs, templates, options)
    strategy = _strategy(templates, options)
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
                tokens_in += options.samples * (
                    _size(strategy.rationale(pair, order)) + options.max_rationale_tokens
                )
                tokens_out += options.samples * options.max_rationale_tokens
    return Estimate(calls, tokens_in, tokens_out)


def _estimate_points(pairs: Sequence[Pair], templates: TemplateSet, options: LabelerOptions) -> Estimate:
    sizes: list[int] = []
    for pair in pairs:
        for response in (pair.response_a, pair.response_b):
            if options.readout.kind == "score":
                sizes.append(_size(score_message(templates, options.preamble, pair.prompt, response)))
            else:
                render = forward_items if options.readout.direction == "forward" else reverse_items
                sizes += [_size(message, text) for message, text in render(templates, pair.prompt, response)]
    return Estimate(len(sizes), sum(sizes), 0)


def _unbounded() -> Meter:
    return Meter(name="labeler", price=None, budget_usd=None, max_seconds=None, clock=time.perf_counter)


def _strategy(templates: TemplateSet, options: LabelerOptions) -> PromptStrategy:
    return PromptStrategy(templates, options.preamble, options.exemplars, options.cot)


def _size(message: Message, continuation: str = "") -> int:
    return -(-len(message.user + message.assistant + continuation) // _CHARS_PER_TOKEN)


def _seed(seed: int, message: Message, sample: int) -> int:
    return int(digest([seed, message.user, message.assistant, sample], 8), 16)


def _hash(*messages: Message) -> str:
    return digest([dataclasses.asdict(message) for message in messages], 32)


def _known(logprobs: Sequence[float | None]) -> tuple[float, ...]:
    """The log-probabilities if the engine gave them all (a part would not say which choice it is of)."""
    known = tuple(value for value in logprobs if value is not None)
    return known if len(known) == len(logprobs) else ()


def _point(
    reading: Reading, prompt_hash: str, logprobs: tuple[float, ...], answers: Sequence[Answered]
) -> _Point:
    return _Point(
        reading,
        prompt_hash,
        logprobs,
        sum(answered.answer.tokens_in for answered in answers),
        sum(answered.answer.tokens_cached for answered in answers),
        sum(answered.seconds for answered in answers),
    )


def _counters(
    asker: Asker, judgements: Sequence[Judgement], preferences: Sequence[Preference]
) -> dict[str, float]:
    states = Counter(judgement.state for judgement in judgements)
    return {
        "n": len(preferences),
        "judgements": len(judgements),
        "unparsed": states["unparsed"],
        "failed": states["failed"],
        "inconsistent": sum(is_inconsistent(preference) for preference in preferences),
        **dataclasses.asdict(asker.counters),
    }
