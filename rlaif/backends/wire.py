"""One server in one of OpenAI's two dialects: `/completions` (text in, text out) or `/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlaif.backends.http import Client, Refused, Unavailable
from rlaif.errors import UserError

Api = Literal["completions", "chat"]

_CHARS_PER_TOKEN = 4
_ID_PREFIX = "token_id:"


@dataclass(frozen=True)
class Candidate:
    """A possible next token: its text, its log-probability (nats), its id where the server tells."""

    text: str
    logprob: float
    id: int | None


@dataclass(frozen=True)
class Answer:
    """A server's answer. `candidates` are for the first new token.

    `echo` is the prompt's tokens with their log-probabilities (None for the first), where it was asked
    for and given. `finished` says whether the model ended by itself.
    """

    text: str
    finished: bool
    tokens_in: int
    tokens_out: int
    tokens_cached: int
    candidates: tuple[Candidate, ...]
    echo: tuple[tuple[str, float | None], ...]


class Server:
    """Requests to one model of one server. Raises UserError where the model or the address is unknown."""

    def __init__(self, client: Client, model: str, api: Api) -> None:
        self.client, self.model, self.api = client, model, api
        self._root = client.options.base_url.rstrip("/").removesuffix("/v1")

    @property
    def place(self) -> str:
        """The model and its address, for messages."""
        return f"{self.model} at {self.client.options.place}"

    async def models(self) -> list[str]:
        """Names of the models served; empty where the server does not say. Raises Unavailable."""
        try:
            return await self.client.get("models", lambda found: [str(row["id"]) for row in found["data"]])
        except Refused:
            return []

    async def complete(
        self, prompt: str, *, max_tokens: int, temperature: float, seed: int, **fields: Any
    ) -> Answer:
        """Continue `prompt`: a text, or for `chat` the user's turn. `fields` go into the request as they are."""
        chat = self.api == "chat"
        path = "chat/completions" if chat else "completions"
        body = {
            "model": self.model,
            **({"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": 1.0,
            "seed": seed,
            **fields,
        }
        tokens = len(prompt) // _CHARS_PER_TOKEN + max_tokens
        try:
            return await self.client.post(path, body, _answer, tokens=tokens)
        except Refused as refused:
            if refused.status == 404:
                raise UserError(
                    f"{self.client.options.place} has no {path} for the model {self.model} ({refused}): "
                    "check backend.name, backend.base_url (it ends in /v1) and backend.api"
                ) from None
            raise

    def logprob_fields(self, top: int) -> dict[str, Any]:
        """Request fields for the `top` likeliest first tokens."""
        return {"logprobs": True, "top_logprobs": top} if self.api == "chat" else {"logprobs": top}

    def token_id_fields(self, ids: Sequence[int]) -> dict[str, Any]:
        """Request fields for exactly these tokens (vLLM); the answer names tokens by their ids."""
        return {
            **self.logprob_fields(1),
            "logprob_token_ids": list(dict.fromkeys(ids)),
            "return_tokens_as_token_ids": True,
        }

    async def tokenize(self, text: str) -> tuple[int, ...] | None:
        """Ids of `text` without special tokens (vLLM's and llama.cpp's route), None where there is no such route."""
        body = {"model": self.model, "add_special_tokens": False, "add_special": False}
        try:
            return await self.client.post(
                f"{self._root}/tokenize",
                {**body, "prompt": text, "content": text},
                lambda found: tuple(int(token) for token in found["tokens"]),
                tokens=0,
            )
        except (Refused, Unavailable):
            return None

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of `ids`. Raises Refused or Unavailable."""
        return await self.client.post(
            f"{self._root}/detokenize",
            {"model": self.model, "tokens": list(ids)},
            lambda found: str(found["prompt"] if "prompt" in found else found["content"]),
            tokens=0,
        )


def _answer(found: Any) -> Answer:
    choice, usage = found["choices"][0], found.get("usage") or {}
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    logprobs = choice.get("logprobs") or {}
    tokens_in = int(usage.get("prompt_tokens") or 0)
    return Answer(
        text=text or "",
        finished=choice.get("finish_reason") == "stop",
        tokens_in=tokens_in,
        tokens_out=int(usage.get("completion_tokens") or 0),
        tokens_cached=int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
        candidates=_candidates(logprobs),
        echo=_echo(logprobs, tokens_in),
    )


def _candidates(logprobs: dict[str, Any]) -> tuple[Candidate, ...]:
    """From chat's list of objects (llama.cpp's completions have it too) or from completions' mapping."""
    content = logprobs.get("content")
    if content:
        return tuple(
            _candidate(row["token"], row["logprob"], row.get("id")) for row in content[0]["top_logprobs"]
        )
    first = (logprobs.get("top_logprobs") or [None])[0] or {}
    return tuple(_candidate(text, value, None) for text, value in first.items())


def _candidate(text: str, logprob: float, token: int | None) -> Candidate:
    if token is None and text.startswith(_ID_PREFIX):
        token = int(text.removeprefix(_ID_PREFIX))
    return Candidate(text, float(logprob), token)


def _echo(logprobs: dict[str, Any], tokens_in: int) -> tuple[tuple[str, float | None], ...]:
    """The prompt's part; what was generated after it is cut off. An echo begins with a token without one."""
    values = logprobs.get("token_logprobs") or [0.0]
    if values[0] is not None:
        return ()
    return tuple(zip(logprobs["tokens"][:tokens_in], values[:tokens_in], strict=True))
