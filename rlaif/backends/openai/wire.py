"""One server in one of OpenAI's two dialects: `/completions` (text in, text out) or `/chat/completions`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

from rlaif.backends.openai.answers import Answer, count_tokens, read_answer
from rlaif.backends.openai.http import Client, Refused, Unavailable
from rlaif.backends.openai.parameters import Parameters
from rlaif.errors import UserError

logger = logging.getLogger(__name__)

Api = Literal["completions", "chat"]

_LESSONS = 8  # refusals from which one request may learn


class Server:
    """Requests to one model of one server. Raises UserError if the model or the address is unknown."""

    def __init__(self, client: Client, model: str, api: Api) -> None:
        self.client, self.model, self.api = client, model, api
        self.parameters = Parameters()
        self.remarks: list[str] = []
        self._root = client.options.base_url.rstrip("/").removesuffix("/v1")

    @property
    def place(self) -> str:
        """The model and its address, for messages."""
        return f"{self.model} at {self.client.options.place}"

    async def models(self) -> list[str]:
        """Names of the models served; empty if the server does not say."""
        return await self.client.look("GET", "models", None, _names) or []

    async def complete(
        self, prompt: str, *, max_tokens: int, temperature: float, seed: int, **fields: Any
    ) -> Answer:
        """Continue `prompt`: a text, or for `chat` the user's turn. `fields` go into the request unchanged.

        Other fields that the server refuses are learned, reported once, and left out or renamed from then on.
        """
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
        try:
            answer = await self._adapting(path, body, prompt)
        except Refused as refused:
            if refused.status == 404:
                raise UserError(
                    f"{self.client.options.place} has no {path} for the model {self.model} ({refused}): "
                    "check backend.name, backend.base_url (it ends in /v1) and backend.api"
                ) from None
            raise
        if answer.hint:
            self.remark(f"some answers hold no text ({answer.hint})")
        return answer

    async def _adapting(self, path: str, body: dict[str, Any], prompt: str) -> Answer:
        lesson, before = None, ""
        tokens = count_tokens(prompt) + body["max_tokens"]
        for _ in range(_LESSONS):
            sent = self.parameters.applied(body)
            try:
                answer = await self.client.post(
                    path, sent, lambda found: read_answer(found, prompt), tokens=tokens
                )
            except Refused as refused:
                if lesson is not None and str(refused) == before:
                    self.parameters.forget(lesson)
                    raise
                if self.parameters.applied(body) != sent:
                    continue  # another request has learned it meanwhile
                lesson, before = self.parameters.learn(refused.refusal, sent), str(refused)
                if lesson is None:
                    raise
            else:
                for said in self.parameters.remarks:
                    self.remark(said)
                return answer
        raise Unavailable("the server refuses one field of the request after another")

    def remark(self, said: str) -> None:
        """Log a remark about this server once, and keep it for the summary."""
        if said not in self.remarks:
            self.remarks.append(said)
            logger.warning("%s: %s", self.place, said)

    def logprob_fields(self, top: int) -> dict[str, Any]:
        """Request fields for the `top` likeliest first tokens."""
        return {"logprobs": True, "top_logprobs": top} if self.api == "chat" else {"logprobs": top}

    def token_id_fields(self, ids: Sequence[int]) -> dict[str, Any]:
        """Request fields for exactly these tokens (vLLM); the answer names tokens by id."""
        return {
            **self.logprob_fields(1),
            "logprob_token_ids": list(dict.fromkeys(ids)),
            "return_tokens_as_token_ids": True,
        }

    async def tokenize(self, text: str) -> tuple[int, ...] | None:
        """Ids of `text` without special tokens (vLLM's and llama.cpp's route), None if there is no such route."""
        return await self.client.look(
            "POST",
            f"{self._root}/tokenize",
            {
                "model": self.model,
                "add_special_tokens": False,
                "add_special": False,
                "prompt": text,
                "content": text,
            },
            lambda found: tuple(int(token) for token in found["tokens"]),
        )

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of `ids`. Raises Refused or Unavailable."""
        return await self.client.post(
            f"{self._root}/detokenize",
            {"model": self.model, "tokens": list(ids)},
            lambda found: str(found["prompt"] if "prompt" in found else found["content"]),
            tokens=0,
        )


def _names(found: Any) -> list[str]:
    """From OpenAI's object, a bare list, or Ollama's `models`; nothing if the list continues elsewhere."""
    if isinstance(found, dict):
        if found.get("has_more"):
            return []
        found = found["data"] if "data" in found else found["models"]
    if not isinstance(found, list):
        raise TypeError("not a list of models")
    names = [row if isinstance(row, str) else row.get("id") or row["name"] for row in found]
    if not all(isinstance(name, str) for name in names):
        raise TypeError("not names of models")
    return names
