"""Labels by any server that speaks OpenAI's API: vLLM, llama.cpp, hosted models.

With `api: completions` the chat template is rendered here and the model continues right after the cue,
as with the in-process engine. With `api: chat` the server renders it, and most servers cannot continue an
opened assistant turn: the cue then ends the *user's* turn, and the model answers in a turn of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

from rlaif.backends.base import ChoiceScores, Generation, Message, SequenceScore
from rlaif.backends.openai.answers import Answer, Candidate
from rlaif.backends.openai.capabilities import NO_LIMITS, Capabilities, probe
from rlaif.backends.openai.http import Client, HttpOptions, Refused, Unavailable, gather, gather_what_is_done
from rlaif.backends.openai.spellings import (
    USUAL,
    Unreadable,
    bare,
    goes_on,
    is_markup,
    named,
    opens_with,
    says,
    total,
    unnamed,
)
from rlaif.backends.openai.wire import Api, Server
from rlaif.errors import UserError
from rlaif.io import digest
from rlaif.tokens import render_chat

_ANCHOR = "="  # some tokenizers put a space before a text's first word, but not after this
_COUNT_ON = "Go on with the next number and nothing else: 6, 7, 8, 9,"  # shows whether "10" is one token
_ANSWER = 1e-3  # less than this of the next token is not looked into
_MARKUP = 0.1  # of the next token: then the answer is read after it
_CHAT_TOKENS = 4  # of a chat answer: whether "1" is all, or begins a list, and what follows a "**"
_FREQUENCY_TOKENS = 3  # besides those of the choice: "10." and "1 or 2" are told from "1"


@dataclass(frozen=True)
class OpenAIOptions:
    """Which model answers, by the name that its server knows it under, and how.

    `revision` is a word of the user's own that belongs to the identity, for weights that change under one
    name. `top_logprobs` is how many next tokens to ask for, `choice_samples` how many answers to draw
    where a server gives no log-probabilities (0: none). Raises UserError for a value without meaning.
    """

    model: str
    revision: str | None
    api: Api
    top_logprobs: int
    choice_samples: int
    http: HttpOptions

    def __post_init__(self) -> None:
        if self.api not in get_args(Api):
            raise UserError(f"backend.api is {self.api!r}; write one of {', '.join(get_args(Api))}")
        if self.top_logprobs < 1 or self.choice_samples < 0:
            raise UserError("backend needs top_logprobs >= 1 and choice_samples >= 0")


@dataclass(frozen=True)
class ChatTemplate:
    """The local end of a chat template: `render` wraps a user's text up to where the model's turn begins."""

    render: Callable[[str], str]
    identity: str

    @classmethod
    def of(cls, tokenizer: Any) -> ChatTemplate:
        """The template of a transformers tokenizer. A server that adds BOS by itself is left to do so."""
        adds_bos = tokenizer.bos_token_id is not None and tokenizer("")["input_ids"][:1] == [
            tokenizer.bos_token_id
        ]

        def render(user: str) -> str:
            text = render_chat(tokenizer, user)
            return text.removeprefix(tokenizer.bos_token) if adds_bos else text

        return cls(render, digest(tokenizer.chat_template, 16))


@dataclass(frozen=True)
class _Choice:
    """A choice and its tokens as (id, text); where the server does not tell them, one with id None.

    `spellings` are ids of other single tokens that say the same.
    """

    text: str
    tokens: tuple[tuple[int | None, str], ...]
    spellings: tuple[int, ...] = ()

    @property
    def untold(self) -> bool:
        """Whether it may be several tokens for all we know."""
        return self.tokens[0][0] is None and len(self.text) > 1


class OpenAIBackend:
    """Labels by a server. Nothing is sent before the first question.

    A call that fails for good becomes an answer with `error`. A refused key, an unknown model, and a
    readout that the server cannot serve raise UserError.
    `template` is needed for chat prompts with `api: completions`.
    """

    batch_invariant: Literal[True] = True
    choice_rules = (
        2  # spellings count together, and "10" is not read from a "1": answers without that are not reused
    )

    def __init__(self, options: OpenAIOptions, template: ChatTemplate | None) -> None:
        self._options, self._template = options, template
        self.capabilities: Capabilities | None = None
        self._choices: dict[str, _Choice] = {}
        self._anchor: tuple[int, ...] | None = None
        self._few_ids = False
        self._ten_is_one_token: bool | None = None

    def identity(self) -> dict[str, Any]:
        """The model by its served name, not the server: moving it keeps its labels."""
        options = self._options
        return {
            "engine": "openai",
            "model": options.model,
            "revision": options.revision,
            "api": options.api,
            "chat_template": self._template.identity if self._template else None,
            "top_logprobs": options.top_logprobs,
            "choice_samples": options.choice_samples,
        }

    def describe(self) -> str:
        """The model, its address and what the server can do, asked now if it was not yet."""
        return f"{self._server.place}: {self._probed()}"

    def said(self) -> str | None:
        """What the server turned out to do and to refuse, for the summary; None where nothing was asked."""
        if self.capabilities is None:
            return None
        return "; ".join([str(self.capabilities), *self.remarks])

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the server refused and was left out, and why answers hold no text."""
        return () if self.capabilities is None else tuple(self._server.remarks)

    @cached_property
    def _server(self) -> Server:
        return Server(Client(self._options.http), self._options.model, self._options.api)

    def _probed(self) -> Capabilities:
        if self.capabilities is None:
            options = self._options
            asking = probe(self._server, top=options.top_logprobs, sampled=options.choice_samples)
            self.capabilities = self._server.client.run(asking)
        return self.capabilities

    def _text(self, message: Message) -> str:
        if self._options.api == "chat":
            if not message.chat:
                raise UserError(
                    "backend.api=chat cannot send a plain text (chat: false): write backend.api=completions"
                )
            return f"{message.user}\n\n{message.assistant}".rstrip("\n")
        if not message.chat:
            return message.user + message.assistant
        if self._template is None:
            raise ValueError("chat prompts need the model's chat template")
        return self._template.render(message.user) + message.assistant

    # Generation.

    def alteration(self, temperature: float) -> str:
        """What the server would decode by now in place of `temperature`; asked of it if it was not yet."""
        self._probed()
        return self._server.parameters.alteration(temperature)

    def generate(
        self,
        prompts: Sequence[Message],
        *,
        max_new_tokens: int,
        temperature: float,
        top_k: int,
        seeds: Sequence[int],
    ) -> list[Generation]:
        """One request for each prompt, with its seed: how far noise depends on it alone is the server's affair."""
        can = self._probed()
        if temperature > 0 and top_k > 0 and not can.decoding:
            raise UserError(f"{self._server.place} takes no top_k: write labeler.top_k=0 (and judge.top_k=0)")
        fields = {**NO_LIMITS, "top_k": top_k} if can.decoding else {}

        async def ask(prompt: str, seed: int) -> Generation:
            try:
                answer = await self._server.complete(
                    prompt, max_tokens=max_new_tokens, temperature=temperature, seed=seed, **fields
                )
            except (Refused, Unavailable) as error:
                return Generation("", False, 0, 0, error=str(error))
            altered = self._server.parameters.alteration(temperature)
            return Generation(answer.text, answer.finished, **_spent([answer]), altered=altered)

        texts = [self._text(prompt) for prompt in prompts]
        asking = gather_what_is_done(ask(text, seed) for text, seed in zip(texts, seeds, strict=True))
        return self._server.client.run(asking)

    # Choices.

    def choice_logprobs(self, prompts: Sequence[Message], choices: Sequence[str]) -> list[ChoiceScores]:
        """By the best way that the server has; see `Capabilities`.

        A choice of several tokens is scored as a sequence: by the server's echo, or token by token.
        """
        can = self._probed()
        if can.level == "text":
            raise UserError(
                f"{self._server.place} gives no log-probabilities and samples no answers: "
                "write labeler.readout.kind=text, or backend.choice_samples=16"
            )
        texts = [self._text(prompt) for prompt in prompts]
        return self._server.client.run(self._score_all(can, texts, choices))

    async def _score_all(
        self, can: Capabilities, prompts: Sequence[str], texts: Sequence[str]
    ) -> list[ChoiceScores]:
        if can.level == "frequency":
            return await gather_what_is_done(self._frequencies(can, prompt, texts) for prompt in prompts)
        try:
            choices = [await self._choice(can, text) for text in texts]
            await self._see_ten(can, choices)
        except (Refused, Unavailable) as error:
            return [ChoiceScores((None,) * len(texts), 0, error=str(error))] * len(prompts)
        several = [choice.text for choice in choices if len(choice.tokens) > 1]
        if several and self._options.api == "chat":
            raise UserError(
                f"the choice {several[0]!r} is several tokens for {self._server.model}, and backend.api=chat cannot"
                " continue after its first: write backend.api=completions"
            )
        scores = await gather_what_is_done(self._score(can, prompt, choices) for prompt in prompts)
        if not self._ten_is_one_token:
            return scores
        # Answers that came before the one that showed a token "10".
        whole = (1,) * len(choices)
        return [s if s.token_counts or s.error else replace(s, token_counts=whole) for s in scores]

    async def _choice(self, can: Capabilities, text: str) -> _Choice:
        """The tokens of `text` where it continues another text."""
        if not can.tokenizes:
            return _Choice(text, ((None, text),))
        if text not in self._choices:
            ids = await self._ids(text)
            pieces = [text] if len(ids) == 1 else [await self._server.detokenize([one]) for one in ids]
            others = await self._spelled_ids(text) if can.level == "token_ids" and len(ids) == 1 else ()
            self._choices[text] = _Choice(text, tuple(zip(ids, pieces, strict=True)), others)
        return self._choices[text]

    async def _spelled_ids(self, text: str) -> tuple[int, ...]:
        """Ids of the usual spellings that are one token each."""
        if not bare(text) or bare(text) != text:
            return ()
        found = await gather(self._ids(form.format(text)) for form in USUAL[1:])
        return tuple(ids[0] for ids in found if len(ids) == 1)

    async def _ids(self, text: str) -> tuple[int, ...]:
        if self._anchor is None:
            self._anchor = await self._server.tokenize(_ANCHOR) or ()
        anchor, both = self._anchor, await self._server.tokenize(_ANCHOR + text)
        if anchor and both and both[: len(anchor)] == anchor:
            ids: tuple[int, ...] | None = both[len(anchor) :]
        else:
            ids = await self._server.tokenize(text)
        if not ids:
            raise Unavailable(f"the server does not tell the tokens of {text!r}")
        return ids

    async def _see_ten(self, can: Capabilities, choices: Sequence[_Choice]) -> None:
        """Let a server that tells no tokens say "10", to see whether that is one."""
        if self._ten_is_one_token is not None or can.tokenizes or not _nested(choices):
            return
        fields = self._server.logprob_fields(can.top)
        answer = await self._server.complete(_COUNT_ON, max_tokens=2, temperature=0.0, seed=0, **fields)
        self._ten_is_one_token = False
        self._look_for_ten(answer.candidates)

    def _look_for_ten(self, candidates: Sequence[Candidate]) -> None:
        """A vocabulary that has "10" does not split it."""
        if any(bare(one.text) == "10" for one in candidates):
            self._ten_is_one_token = True

    async def _score(self, can: Capabilities, prompt: str, choices: Sequence[_Choice]) -> ChoiceScores:
        used: list[Answer] = []
        nothing: tuple[None, ...] = (None,) * len(choices)
        try:
            head = await self._next_token(can, prompt, choices, used)
            if not head and used[-1].text:
                raise Unreadable("the answer carries no log-probabilities")
            self._look_for_ten(head)
            if any(len(choice.tokens) > 1 for choice in choices) or (can.echo and _nested(choices)):
                return await self._exactly(can, prompt, choices, head, used)
            return await self._by_spelling(can, prompt, choices, head, used)
        except (Refused, Unavailable, Unreadable) as error:
            return ChoiceScores(nothing, error=str(error), **_spent(used))

    async def _by_spelling(
        self,
        can: Capabilities,
        prompt: str,
        choices: Sequence[_Choice],
        head: Sequence[Candidate],
        used: list[Answer],
    ) -> ChoiceScores:
        """Choices of one token each (or for all we know), in all their spellings, also after markup."""
        same = says([choice.text for choice in choices])
        places = [(0.0, head)]
        if can.level == "top_k" and same(" 1", "1"):
            places += await self._after_markup(can, prompt, head, used)
        values = [
            total(
                start + value
                for start, candidates in places
                if (value := named(candidates, _says_it(choice, same))) is not None
            )
            for choice in choices
        ]
        said = used[0].text
        if not any(opens_with(said, choice.text) for choice in choices):
            # The likeliest answer only begins like a choice: "1. Response 1 is vague" is none.
            values = [
                -math.inf if goes_on(said, choice.text) else value
                for choice, value in zip(choices, values, strict=True)
            ]
        ceiling = None
        if can.level == "top_k":
            bounds = [(start, unnamed(candidates)) for start, candidates in places]
            if all(bound is not None for _, bound in bounds):
                ceiling = total(start + bound for start, bound in bounds if bound is not None)
        counts: tuple[int, ...] = (1,) * len(choices)
        if _nested(choices) and not self._ten_is_one_token:
            counts = await self._split_ten(can, prompt, choices, head, values, used)
        return ChoiceScores(tuple(values), token_counts=counts, ceiling=ceiling, **_spent(used))

    async def _after_markup(
        self, can: Capabilities, prompt: str, head: Sequence[Candidate], used: list[Answer]
    ) -> list[tuple[float, Sequence[Candidate]]]:
        """(log-probability of the way there, candidates) after white space or emphasis that the model begins with."""
        first = max(
            (one for one in head if one.logprob is not None and is_markup(one.text)),
            key=lambda one: one.logprob or 0.0,
            default=None,
        )
        if first is None or first.logprob is None or first.logprob < math.log(_MARKUP):
            return []
        if self._options.api == "completions":
            fields = self._server.logprob_fields(can.top)
            begun = prompt + first.text
            used.append(await self._server.complete(begun, max_tokens=1, temperature=0.0, seed=0, **fields))
            return [(first.logprob, used[-1].candidates)]
        places: list[tuple[float, Sequence[Candidate]]] = []
        way = 0.0
        steps = used[0].steps
        for step, after in zip(steps, steps[1:], strict=False):
            if step.logprob is None or not is_markup(step.text):
                break
            way += step.logprob
            places.append((way, after.candidates))
        return places

    async def _split_ten(
        self,
        can: Capabilities,
        prompt: str,
        choices: Sequence[_Choice],
        head: Sequence[Candidate],
        values: list[float | None],
        used: list[Answer],
    ) -> tuple[int, ...]:
        """Token counts of choices where "10" may be "1" and "0"; `values` are then those of the texts.

        Whatever the tokens are, "10" is said as one or as two of them: both are asked for where the server
        can continue a text. Where it cannot, the counts are empty, unless next to nothing begins with "1".
        """
        one, ten = (next(i for i, c in enumerate(choices) if c.text == text) for text in ("1", "10"))
        begins = values[one]
        if begins is None or begins < math.log(_ANSWER):
            return (1,) * len(choices)
        same = says([choice.text for choice in choices])
        likeliest = max(
            (candidate for candidate in head if same(candidate.text, "1")),
            key=lambda candidate: candidate.logprob or -math.inf,
            default=None,
        )
        if self._options.api == "chat" or likeliest is None:
            return ()
        fields, begun = self._server.logprob_fields(can.top), prompt + likeliest.text
        used.append(await self._server.complete(begun, max_tokens=1, temperature=0.0, seed=0, **fields))
        if not used[-1].candidates:
            return ()
        nought = named(used[-1].candidates, lambda candidate: candidate.text == "0")
        whole = [] if values[ten] is None else [values[ten] or 0.0]
        values[ten] = total([*whole, begins + (-math.inf if nought is None else nought)])
        values[one] = total([begins, *whole])
        return tuple(len(choice.text) if choice.text == "10" else 1 for choice in choices)

    async def _exactly(
        self,
        can: Capabilities,
        prompt: str,
        choices: Sequence[_Choice],
        head: Sequence[Candidate],
        used: list[Answer],
    ) -> ChoiceScores:
        """Choices of several tokens, each exactly as written: a spelling of "1" might go on to "10"."""
        values, counts = [], []
        for choice in choices:
            value, count = _find(head, *choice.tokens[0]), len(choice.tokens)
            if can.echo and (count > 1 or choice.untold):
                value, count = await self._echoed(prompt, choice.text, used)
            elif count > 1:
                value = await self._chained(can, prompt, choice, value, used)
            values.append(value)
            counts.append(count)
        return ChoiceScores(tuple(values), token_counts=tuple(counts), **_spent(used))

    async def _next_token(
        self, can: Capabilities, prompt: str, choices: Sequence[_Choice], used: list[Answer]
    ) -> tuple[Candidate, ...]:
        """Candidates for the next token: the choices' first ones and their spellings, or the likeliest."""
        first = [choice.tokens[0][0] for choice in choices]
        spelled = [one for choice in choices for one in choice.spellings]
        if can.level == "token_ids" and spelled and not self._few_ids:
            try:
                return await self._asked(prompt, self._id_fields([*first, *spelled]), used)
            except Refused:
                # A server may bound how many it takes. Where it refuses the bare ones too, it minds something else.
                found = await self._asked(prompt, self._id_fields(first), used)
                self._few_ids = True
                return found
        fields = self._id_fields(first) if can.level == "token_ids" else self._server.logprob_fields(can.top)
        return await self._asked(prompt, fields, used)

    def _id_fields(self, ids: Sequence[int | None]) -> dict[str, Any]:
        return self._server.token_id_fields([one for one in ids if one is not None])

    async def _asked(self, prompt: str, fields: dict[str, Any], used: list[Answer]) -> tuple[Candidate, ...]:
        tokens = _CHAT_TOKENS if self._options.api == "chat" else 1
        used.append(await self._server.complete(prompt, max_tokens=tokens, temperature=0.0, seed=0, **fields))
        return used[-1].candidates

    async def _echoed(self, prompt: str, text: str, used: list[Answer]) -> tuple[float | None, int]:
        """(log p of `text` after `prompt`, its tokens)."""
        start, whole = await gather(self._echo(one) for one in (prompt, prompt + text))
        used += [start, whole]
        values = _after(start, whole)
        return (math.fsum(values), len(values)) if values else (None, 1)

    async def _chained(
        self, can: Capabilities, prompt: str, choice: _Choice, first: float | None, used: list[Answer]
    ) -> float | None:
        """log p of the first token, plus each later one's after those before it; None once one is not told."""
        value = first
        for place in range(1, len(choice.tokens)):
            if value is None:
                return None
            begun = prompt + "".join(piece for _, piece in choice.tokens[:place])
            token, piece = choice.tokens[place]
            later = _Choice(piece, ((token, piece),))
            step = _find(await self._next_token(can, begun, [later], used), token, piece)
            value = None if step is None else value + step
        return value

    async def _frequencies(self, can: Capabilities, prompt: str, choices: Sequence[str]) -> ChoiceScores:
        """Shares of sampled answers that begin with each choice and go on to no other number or list."""
        fields = NO_LIMITS if can.decoding else {}
        longest, samples = max(map(len, choices)) + _FREQUENCY_TOKENS, self._options.choice_samples
        try:
            drawn = await gather(
                self._server.complete(prompt, max_tokens=longest, temperature=1.0, seed=seed, **fields)
                for seed in range(samples)
            )
        except (Refused, Unavailable) as error:
            return ChoiceScores((None,) * len(choices), 0, error=str(error), source="frequency")
        counts = [sum(opens_with(answer.text, choice) for answer in drawn) for choice in choices]
        logprobs = tuple(math.log(count / samples) if count else -math.inf for count in counts)
        alone = (1,) * len(choices)
        return ChoiceScores(logprobs, source="frequency", token_counts=alone, **_spent(drawn))

    # Sequences.

    def sequence_logprobs(self, items: Sequence[tuple[Message, str]]) -> list[SequenceScore]:
        """By the server's echo of prompt and continuation. Raises UserError where it has none."""
        if not self._probed().echo:
            raise UserError(
                f"the likelihood readout needs a server that scores given texts (echo with logprobs), which"
                f" {self._server.place} does not: write labeler.readout.kind=choice (labeler=detailed), serve the"
                " model with vLLM and backend.api=completions, or write backend=transformers"
            )
        texts = [(self._text(message), continuation) for message, continuation in items]
        return self._server.client.run(self._sequences(texts))

    async def _sequences(self, items: Sequence[tuple[str, str]]) -> list[SequenceScore]:
        """Each prompt is echoed once by itself, to know where its continuations begin."""
        prompts = list(dict.fromkeys(prompt for prompt, _ in items))
        starts = dict(zip(prompts, await gather(self._try_echo(prompt) for prompt in prompts), strict=True))
        return await gather_what_is_done(
            self._sequence(starts[prompt], prompt + text) for prompt, text in items
        )

    async def _sequence(self, start: Answer | str, text: str) -> SequenceScore:
        whole = start if isinstance(start, str) else await self._try_echo(text)
        if isinstance(start, str) or isinstance(whole, str):
            return SequenceScore(0.0, 0, 0, error=str(whole))
        values = _after(start, whole)
        error = None if values else "the continuation's tokens cannot be told from the prompt's"
        logprob = math.fsum(values)
        return SequenceScore(
            logprob, len(values), whole.tokens_in, whole.tokens_cached, error, whole.estimated
        )

    async def _echo(self, text: str) -> Answer:
        return await self._server.complete(text, max_tokens=1, temperature=0.0, seed=0, echo=True, logprobs=1)

    async def _try_echo(self, text: str) -> Answer | str:
        """The echo, or what went wrong."""
        try:
            return await self._echo(text)
        except (Refused, Unavailable) as error:
            return str(error)


def _find(candidates: Sequence[Candidate], token: int | None, text: str) -> float | None:
    """The log-probability of one token: by its id where both sides have one, else by its exact text."""
    return named(
        candidates,
        lambda one: one.id == token if None not in (one.id, token) else one.text == text,
    )


def _says_it(choice: _Choice, same: Callable[[str, str], bool]) -> Callable[[Candidate], bool]:
    """Whether a candidate is a spelling of `choice`: by its id where the server names tokens by them alone."""
    ids = {choice.tokens[0][0], *choice.spellings}
    return lambda one: same(one.text, choice.text) or (one.id is not None and one.id in ids)


def _nested(choices: Sequence[_Choice]) -> bool:
    """Whether it is not known if one choice's text begins with another's token: "10" with "1"."""
    texts = {choice.text for choice in choices}
    return {"1", "10"} <= texts and any(choice.untold for choice in choices)


def _after(start: Answer, whole: Answer) -> list[float]:
    """Log-probabilities of `whole`'s tokens after those of `start`; empty if it does not begin with them."""
    head, tail = whole.echo[: len(start.echo)], whole.echo[len(start.echo) :]
    if [token for token, _ in head] != [token for token, _ in start.echo]:
        return []
    values = [value for _, value in tail if value is not None]
    return values if len(values) == len(tail) else []


def _spent(answers: Sequence[Answer]) -> dict[str, Any]:
    names = ("tokens_in", "tokens_out", "tokens_cached")
    spent: dict[str, Any] = {name: sum(getattr(answer, name) for answer in answers) for name in names}
    return spent | {"usage_estimated": any(answer.estimated for answer in answers)}
