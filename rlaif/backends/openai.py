"""Labels by any server that speaks OpenAI's API: vLLM, llama.cpp, hosted models.

With `api: completions` the chat template is rendered here and the model continues right after the cue,
as with the in-process engine. With `api: chat` the server renders it, and most servers cannot continue an
opened assistant turn: the cue then ends the *user's* turn, and the model answers in a turn of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from rlaif.backends.base import ChoiceScores, Generation, Message, SequenceScore
from rlaif.backends.capabilities import NO_LIMITS, Capabilities, probe
from rlaif.backends.http import Client, HttpOptions, Refused, Unavailable, gather
from rlaif.backends.wire import Answer, Api, Candidate, Server
from rlaif.errors import UserError
from rlaif.io import digest

_ANCHOR = "="  # some tokenizers put a space before a text's first word, but not after this


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
            turn = [{"role": "user", "content": user}]
            text: str = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            return text.removeprefix(tokenizer.bos_token) if adds_bos else text

        return cls(render, digest(tokenizer.chat_template, 16))


@dataclass(frozen=True)
class _Choice:
    """A choice and its tokens as (id, text); where the server does not tell them, one with id None."""

    text: str
    tokens: tuple[tuple[int | None, str], ...]

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

    def __init__(self, options: OpenAIOptions, template: ChatTemplate | None) -> None:
        self._options, self._template = options, template
        self.capabilities: Capabilities | None = None
        self._choices: dict[str, _Choice] = {}

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
            return Generation(
                answer.text, answer.finished, answer.tokens_in, answer.tokens_out, answer.tokens_cached
            )

        texts = [self._text(prompt) for prompt in prompts]
        asking = gather(ask(text, seed) for text, seed in zip(texts, seeds, strict=True))
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
            return await gather(self._frequencies(can, prompt, texts) for prompt in prompts)
        try:
            choices = [await self._choice(can, text) for text in texts]
        except (Refused, Unavailable) as error:
            return [ChoiceScores((None,) * len(texts), 0, error=str(error))] * len(prompts)
        several = [choice.text for choice in choices if len(choice.tokens) > 1]
        if several and self._options.api == "chat":
            raise UserError(
                f"the choice {several[0]!r} is several tokens for {self._server.model}, and backend.api=chat cannot"
                " continue after its first: write backend.api=completions"
            )
        return await gather(self._score(can, prompt, choices) for prompt in prompts)

    async def _choice(self, can: Capabilities, text: str) -> _Choice:
        """The tokens of `text` where it continues another text."""
        if not can.tokenizes:
            return _Choice(text, ((None, text),))
        if text not in self._choices:
            ids = await self._ids(text)
            pieces = [text] if len(ids) == 1 else [await self._server.detokenize([one]) for one in ids]
            self._choices[text] = _Choice(text, tuple(zip(ids, pieces, strict=True)))
        return self._choices[text]

    async def _ids(self, text: str) -> tuple[int, ...]:
        anchor, both = await self._server.tokenize(_ANCHOR), await self._server.tokenize(_ANCHOR + text)
        if anchor and both and both[: len(anchor)] == anchor:
            ids: tuple[int, ...] | None = both[len(anchor) :]
        else:
            ids = await self._server.tokenize(text)
        if not ids:
            raise Unavailable(f"the server does not tell the tokens of {text!r}")
        return ids

    async def _score(self, can: Capabilities, prompt: str, choices: Sequence[_Choice]) -> ChoiceScores:
        used: list[Answer] = []
        values, counts = [], []
        try:
            head = await self._next_token(can, prompt, [choice.tokens[0][0] for choice in choices], used)
            for choice in choices:
                value, count = _find(head, *choice.tokens[0]), len(choice.tokens)
                if can.echo and (count > 1 or choice.untold):
                    value, count = await self._echoed(prompt, choice.text, used)
                elif count > 1:
                    value = await self._chained(can, prompt, choice, value, used)
                values.append(value)
                counts.append(count)
        except (Refused, Unavailable) as error:
            return ChoiceScores((None,) * len(choices), error=str(error), **_spent(used))
        listed = [one.logprob for one in head] if can.level == "top_k" and max(counts) == 1 else []
        ceiling = min(listed, default=None)
        return ChoiceScores(tuple(values), token_counts=tuple(counts), ceiling=ceiling, **_spent(used))

    async def _next_token(
        self, can: Capabilities, prompt: str, ids: Sequence[int | None], used: list[Answer]
    ) -> tuple[Candidate, ...]:
        """Candidates for the next token: `ids`, or the likeliest."""
        fields = self._server.logprob_fields(can.top)
        if can.level == "token_ids":
            fields = self._server.token_id_fields([one for one in ids if one is not None])
        used.append(await self._server.complete(prompt, max_tokens=1, temperature=0.0, seed=0, **fields))
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
        total = first
        for place in range(1, len(choice.tokens)):
            if total is None:
                return None
            begun = prompt + "".join(piece for _, piece in choice.tokens[:place])
            token, piece = choice.tokens[place]
            step = _find(await self._next_token(can, begun, [token], used), token, piece)
            total = None if step is None else total + step
        return total

    async def _frequencies(self, can: Capabilities, prompt: str, choices: Sequence[str]) -> ChoiceScores:
        """Shares of sampled answers that begin with each choice, exactly so written."""
        fields = NO_LIMITS if can.decoding else {}
        longest, samples = max(map(len, choices)), self._options.choice_samples
        try:
            drawn = await gather(
                self._server.complete(prompt, max_tokens=longest, temperature=1.0, seed=seed, **fields)
                for seed in range(samples)
            )
        except (Refused, Unavailable) as error:
            return ChoiceScores((None,) * len(choices), 0, error=str(error), source="frequency")
        counts = [sum(answer.text.startswith(choice) for answer in drawn) for choice in choices]
        logprobs = tuple(math.log(count / samples) if count else -math.inf for count in counts)
        return ChoiceScores(logprobs, source="frequency", **_spent(drawn))

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
        return await gather(self._sequence(starts[prompt], prompt + text) for prompt, text in items)

    async def _sequence(self, start: Answer | str, text: str) -> SequenceScore:
        whole = start if isinstance(start, str) else await self._try_echo(text)
        if isinstance(start, str) or isinstance(whole, str):
            return SequenceScore(0.0, 0, 0, error=str(whole))
        values = _after(start, whole)
        error = None if values else "the continuation's tokens cannot be told from the prompt's"
        return SequenceScore(math.fsum(values), len(values), whole.tokens_in, whole.tokens_cached, error)

    async def _echo(self, text: str) -> Answer:
        return await self._server.complete(text, max_tokens=1, temperature=0.0, seed=0, echo=True, logprobs=1)

    async def _try_echo(self, text: str) -> Answer | str:
        """The echo, or what went wrong."""
        try:
            return await self._echo(text)
        except (Refused, Unavailable) as error:
            return str(error)


def _find(candidates: Sequence[Candidate], token: int | None, text: str) -> float | None:
    """The log-probability of a token: by its id where both sides have one, else by its exact text."""
    found = [
        one.logprob
        for one in candidates
        if (one.id == token if None not in (one.id, token) else one.text == text)
    ]
    return max(found, default=None)


def _after(start: Answer, whole: Answer) -> list[float]:
    """Log-probabilities of `whole`'s tokens after those of `start`; empty if it does not begin with them."""
    head, tail = whole.echo[: len(start.echo)], whole.echo[len(start.echo) :]
    if [token for token, _ in head] != [token for token, _ in start.echo]:
        return []
    values = [value for _, value in tail if value is not None]
    return values if len(values) == len(tail) else []


def _spent(answers: Sequence[Answer]) -> dict[str, Any]:
    names = ("tokens_in", "tokens_out", "tokens_cached")
    return {name: sum(getattr(answer, name) for answer in answers) for name in names}
