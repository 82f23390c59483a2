"""Labels from any server that speaks OpenAI's API: vLLM, llama.cpp, hosted models.

With `api: completions` the chat template is rendered here and the model continues right after the cue, as with the
in-process engine. With `api: chat` the server renders it, and most servers cannot continue an open assistant turn:
the cue then ends the *user's* turn, and the model answers in its own turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from rlaif.backends.base import ChoiceScores, Generation, Message, SequenceScore
from rlaif.backends.openai.answers import Answer
from rlaif.backends.openai.capabilities import NO_LIMITS, Capabilities, probe
from rlaif.backends.openai.choices import ChoiceReader
from rlaif.backends.openai.echo import after, spent, try_echo
from rlaif.backends.openai.http import Client, HttpOptions, Refused, Unavailable, gather, gather_what_is_done
from rlaif.backends.openai.wire import Api, Server
from rlaif.errors import UserError
from rlaif.io import digest
from rlaif.tokens import render_chat


@dataclass(frozen=True)
class OpenAIOptions:
    """Which model answers, under the name that its server uses, and how.

    `revision` is any word of the user's choice; it is part of the identity, for weights that change under one name.
    `top_logprobs` is how many next tokens to request, `choice_samples` how many answers to draw if a server gives
    no log-probabilities (0: none). Raises UserError for a value without meaning.
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
    """A chat template rendered here: `render` wraps a user's text up to where the model's turn begins."""

    render: Callable[[str], str]
    identity: str

    @classmethod
    def of(cls, tokenizer: Any) -> ChatTemplate:
        """The template of a transformers tokenizer. If the tokenizer adds BOS, so does the server: it is left out."""
        bos = tokenizer.bos_token_id
        adds_bos = bos is not None and tokenizer("")["input_ids"][:1] == [bos]

        def render(user: str) -> str:
            text = render_chat(tokenizer, user)
            return text.removeprefix(tokenizer.bos_token) if adds_bos else text

        return cls(render, digest(tokenizer.chat_template, 16))


class OpenAIBackend:
    """Labels from a server. Nothing is sent before the first question.

    A call that fails for good becomes an answer with `error`. A refused key, an unknown model, and a readout that the
    server cannot serve raise UserError. `template` is needed for chat prompts with `api: completions`.
    """

    batch_invariant: Literal[True] = True
    # Spellings count together, and "10" is not read from a "1": answers by earlier rules are not reused.
    choice_rules = 2

    def __init__(self, options: OpenAIOptions, template: ChatTemplate | None) -> None:
        self._options, self._template = options, template
        self.capabilities: Capabilities | None = None

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
        """The model, its address and what the server can do; asks the server if necessary."""
        return f"{self._server.place}: {self._probed()}"

    def said(self) -> str | None:
        """What the server turned out to do and to refuse, for the summary; None if nothing was asked."""
        return "; ".join([str(self.capabilities), *self.remarks]) if self.capabilities else None

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the server refused and so was left out, and why answers contain no text."""
        return () if self.capabilities is None else tuple(self._server.remarks)

    @cached_property
    def _server(self) -> Server:
        return Server(Client(self._options.http), self._options.model, self._options.api)

    @cached_property
    def _reader(self) -> ChoiceReader:
        return ChoiceReader(self._server, self._probed(), samples=self._options.choice_samples)

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

    def alteration(self, temperature: float) -> str:
        """What the server would now use instead of `temperature`; asks the server if necessary."""
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
        """One request per prompt, with its seed; whether noise depends on the seed alone is up to the server."""
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
            return Generation(answer.text, answer.finished, **spent([answer]), altered=altered)

        texts = [self._text(prompt) for prompt in prompts]
        asking = gather_what_is_done(ask(text, seed) for text, seed in zip(texts, seeds, strict=True))
        return self._server.client.run(asking)

    def choice_logprobs(self, prompts: Sequence[Message], choices: Sequence[str]) -> list[ChoiceScores]:
        """In the best way the server offers; see `Capabilities`.

        A choice of several tokens is scored as a sequence: by the server's echo, or token by token.
        """
        can = self._probed()
        if can.level == "text":
            raise UserError(
                f"{self._server.place} gives no log-probabilities and samples no answers: "
                "write labeler.readout.kind=text, or backend.choice_samples=16"
            )
        texts = [self._text(prompt) for prompt in prompts]
        return self._server.client.run(self._reader.scores(texts, choices))

    def sequence_logprobs(self, items: Sequence[tuple[Message, str]]) -> list[SequenceScore]:
        """By the server's echo of prompt and continuation. Raises UserError if it has none."""
        if not self._probed().echo:
            raise UserError(
                "the likelihood readout needs a server that scores given texts (echo with logprobs), which"
                f" {self._server.place} does not: write labeler.readout.kind=choice (labeler=detailed), serve the"
                " model with vLLM and backend.api=completions, or write backend=transformers"
            )
        texts = [(self._text(message), continuation) for message, continuation in items]
        return self._server.client.run(self._sequences(texts))

    async def _sequences(self, items: Sequence[tuple[str, str]]) -> list[SequenceScore]:
        """Each prompt is echoed once by itself, to find where its continuations begin."""
        prompts = list(dict.fromkeys(prompt for prompt, _ in items))
        echoes = await gather(try_echo(self._server, prompt) for prompt in prompts)
        starts = dict(zip(prompts, echoes, strict=True))
        return await gather_what_is_done(
            self._sequence(starts[prompt], prompt + text) for prompt, text in items
        )

    async def _sequence(self, start: Answer | str, text: str) -> SequenceScore:
        whole = start if isinstance(start, str) else await try_echo(self._server, text)
        if isinstance(start, str) or isinstance(whole, str):
            return SequenceScore(0.0, 0, 0, error=str(whole))
        values = after(start, whole)
        error = None if values else "the continuation's tokens cannot be separated from the prompt's"
        logprob = math.fsum(values)
        return SequenceScore(
            logprob, len(values), whole.tokens_in, whole.tokens_cached, error, whole.estimated
        )
