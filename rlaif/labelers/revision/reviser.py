"""Critiques and revisions by an LLM engine, through the label store.

Constitutional AI's supervised phase (Bai et al. 2022, arXiv:2212.08073, section 3.1): the model criticises a response
in the light of a principle, then rewrites it. The policy is fine-tuned on what was rewritten.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlaif.backends.base import Backend, Comparing, Generation, Message
from rlaif.errors import UserError
from rlaif.io import digest
from rlaif.labelers.asking import Asker, Progress, Stopped, bound_error
from rlaif.labelers.cost import Meter
from rlaif.labelers.estimate import Estimate, tokens_of
from rlaif.labelers.revision.principles import drawn_principles
from rlaif.labelers.store import LabelStore
from rlaif.labelers.templates import TemplateSet
from rlaif.records import Revision

CRITIQUE_CUE, REVISION_CUE = "Critique:", "Revision:"
"""How the model's own turn begins."""

Split = Literal["train", "validation"]


@dataclass(frozen=True)
class FirstResponse:
    """A policy's response to a prompt of the task's part `split`, before any revision."""

    prompt_id: str
    prompt: str
    split: Split
    response: str


@dataclass(frozen=True)
class ReviserOptions:
    """Rounds, and how the engine writes: `temperature` 0 is greedy; the lengths are in its own tokens.

    `batch_size` prompts reach the engine at once and are committed to the store together.
    """

    rounds: int
    temperature: float
    max_critique_tokens: int
    max_revision_tokens: int
    batch_size: int
    seed: int

    def identity(self) -> dict[str, Any]:
        """What the texts depend on; `batch_size` changes no more than the last bits of a low-precision sum.

        The seed always draws the principles.
        """
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "batch_size"}


@dataclass(frozen=True)
class Revised:
    """The revisions in the responses' order, and what their calls cost (`Counters` as numbers).

    `written`: tokens of all critiques and revisions, asked for now or before.
    """

    revisions: tuple[Revision, ...]
    counters: dict[str, float]
    written: int


class Reviser:
    """Has an engine criticise and rewrite responses, each by principles drawn for its prompt.

    `place` is the group of settings that asks for it. Raises UserError at construction for an engine that writes no
    text and for too few principles, and between two batches if a bound of the meter leaves no room for the next; what
    the store has by then is kept.
    """

    def __init__(
        self,
        backend: Backend | Comparing,
        templates: TemplateSet,
        principles: Sequence[str],
        options: ReviserOptions,
        *,
        store: LabelStore | None,
        progress: Progress | None,
        meter: Meter,
        place: str = "sft",
    ) -> None:
        if not hasattr(backend, "generate"):
            raise UserError(
                f"{'sft=revisions' if place == 'sft' else 'rl.reviser=labeler'} has the labeler's engine write "
                "critiques and revisions, but labeler=reference compares texts and writes none: choose another "
                "labeler, such as labeler=detailed"
            )
        drawn_principles(principles, options.rounds, seed=options.seed, prompt_id="", place=place)
        self._backend, self._templates, self._principles = backend, templates, tuple(principles)
        self._options, self._store, self._progress, self._meter = options, store, progress, meter

    def identity(self) -> dict[str, Any]:
        """All that the texts depend on besides the responses: engine and model, templates, principles, options."""
        return {
            "backend": self._backend.identity(),
            "templates": self._templates.revising(),
            "chat": self._templates.chat,
            "principles": list(self._principles),
            "options": self._options.identity(),
        }

    def revise(self, responses: Sequence[FirstResponse]) -> Revised:
        """Each response after all rounds of critique and revision."""
        asker = Asker(
            self._backend,
            self._store,
            batch_size=self._options.batch_size,
            progress=self._progress,
            meter=self._meter,
        )
        going = [_Going(first, self._drawn(first.prompt_id)) for first in responses]
        for number in range(self._options.rounds):
            what = f" (round {number + 1})" if self._options.rounds > 1 else ""
            self._write(asker, f"critiques{what}", going, "critique")
            self._write(asker, f"revisions{what}", going, "revision")
        written = sum(one.written for one in going)
        return Revised(tuple(one.record() for one in going), dataclasses.asdict(asker.counters), written)

    def estimate(self, responses: Iterable[FirstResponse], revision: str) -> Estimate:
        """What `revise` would ask if no answer were stored and each revision were as long as the text `revision`.

        A critique counts as long as it may become.
        """
        calls = read = 0
        options, long = self._options, "x" * 4 * self._options.max_critique_tokens
        for first in responses:
            one = _Going(first, self._drawn(first.prompt_id))
            for _ in range(options.rounds):
                read += sum(
                    tokens_of(m.user + m.assistant) for m in (self._critique(one), self._revision(one, long))
                )
                one.critiques.append(long)
                one.revisions.append(revision)
                calls += 2
        written = calls // 2 * (options.max_critique_tokens + tokens_of(revision))
        return Estimate(calls, read, written, read)

    def _drawn(self, prompt_id: str) -> tuple[str, ...]:
        return drawn_principles(
            self._principles, self._options.rounds, seed=self._options.seed, prompt_id=prompt_id
        )

    def _critique(self, one: _Going) -> Message:
        first = one.first
        return self._message(
            "critique", CRITIQUE_CUE, principle=one.principle, context=first.prompt, response=one.now
        )

    def _revision(self, one: _Going, critique: str) -> Message:
        shown = {"context": one.first.prompt, "response": one.now, "critique": critique}
        return self._message("revision", REVISION_CUE, principle=one.principle, **shown)

    def _message(self, template: str, cue: str, **values: str) -> Message:
        text = self._templates.render(template, **values)
        return Message(text if self._templates.chat else f"{text}\n\n", cue, self._templates.chat)

    def _write(self, asker: Asker, phase: str, going: Sequence[_Going], step: str) -> None:
        """One step of a round for all responses whose calls have not failed so far."""
        asked = [one for one in going if one.error is None]
        if step == "critique":
            messages, limit = [self._critique(one) for one in asked], self._options.max_critique_tokens
        else:
            messages = [self._revision(one, one.critiques[-1]) for one in asked]
            limit = self._options.max_revision_tokens
        for one, answer in zip(asked, self._generate(asker, phase, messages, limit), strict=True):
            one.take(step, answer)

    def _generate(
        self, asker: Asker, phase: str, messages: Sequence[Message], limit: int
    ) -> list[Generation]:
        groups: list[Hashable] = list(range(len(messages)))
        try:
            answers = asker.generate(
                phase,
                messages,
                groups,
                max_new_tokens=limit,
                temperature=self._options.temperature,
                top_k=0,
                seeds=[_seed(self._options.seed, message) for message in messages],
                samples=[0] * len(messages),
            )
        except Stopped as stop:
            kept = self._store is not None
            raise bound_error(stop, phase, len(messages), self._meter, kept=kept) from None
        return [answered.answer for answered in answers]


@dataclass
class _Going:
    """A response on its way through the rounds."""

    first: FirstResponse
    principles: tuple[str, ...]
    critiques: list[str] = dataclasses.field(default_factory=list)
    revisions: list[str] = dataclasses.field(default_factory=list)
    cut: bool = False
    error: str | None = None
    written: int = 0

    @property
    def principle(self) -> str:
        """Of the round that is being done."""
        return self.principles[len(self.revisions)]

    @property
    def now(self) -> str:
        """The text as it stands."""
        return self.revisions[-1] if self.revisions else self.first.response

    def take(self, step: str, answer: Generation) -> None:
        """Note what the engine wrote."""
        self.written += answer.tokens_out
        if answer.error is not None:
            self.error = answer.error
        elif step == "critique":
            self.critiques.append(own_words(answer.text, CRITIQUE_CUE))
        else:
            self.revisions.append(own_words(answer.text, REVISION_CUE))
            self.cut = not answer.finished

    def record(self) -> Revision:
        """What becomes of it."""
        first = self.first
        texts = (self.principles, tuple(self.critiques), tuple(self.revisions))
        return Revision(
            first.prompt_id, first.prompt, first.split, first.response, *texts, self.cut, self.error
        )


def own_words(text: str, cue: str) -> str:
    """What a model wrote, without the cue that a server's model may repeat before it."""
    return text.strip().removeprefix(cue).strip()


def _seed(seed: int, message: Message) -> int:
    return int(digest([seed, message.user, message.assistant], 8), 16)
