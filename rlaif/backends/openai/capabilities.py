"""What a server can say about probabilities: asked once, before the first real request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rlaif.backends.openai.answers import Answer
from rlaif.backends.openai.http import Refused, Unavailable
from rlaif.backends.openai.wire import Server
from rlaif.errors import UserError

Level = Literal["token_ids", "top_k", "frequency", "text"]

NO_LIMITS: dict[str, Any] = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Fields for which several servers have their own defaults; hosted APIs refuse them."""

_COUNTING = "1, 2, 3, 1, 2, 3, 1, 2, 3,"
_FEWEST = 5  # the most that OpenAI's /completions grants
_SAYS = {
    "token_ids": "exact probabilities of the choices' tokens",
    "top_k": "probabilities of the {top} likeliest next tokens",
    "frequency": "no probabilities: choices are read as shares of sampled answers",
    "text": "no probabilities: only the text readout works",
}


@dataclass(frozen=True)
class Capabilities:
    """How a server gives probabilities, best first.

    `token_ids`: of any tokens by id; `top_k`: of the `top` likeliest; `frequency`: as shares of sampled answers;
    `text`: not at all. `echo`: it scores a given text; `tokenizes`: it reports token ids; `decoding`: it accepts
    `NO_LIMITS`, and so a top_k.
    """

    level: Level
    top: int
    echo: bool
    tokenizes: bool
    decoding: bool

    def __str__(self) -> str:
        scores = "scores given texts" if self.echo else "does not score given texts (no likelihood readout)"
        return f"{_SAYS[self.level].format(top=self.top)}; {scores}"


async def probe(server: Server, *, top: int, sampled: int) -> Capabilities:
    """Ask a few one-token questions. `top` is the desired length of top-k lists, `sampled` the samples allowed.

    Raises UserError for a server that gives no answer, or does not serve the model.
    """
    try:
        await _check_model(server)
        await _ask(server, {})
        ids = await _number_ids(server)
        level, granted = await _level(server, ids or (), top, sampled)
        echoing = {"echo": True, "logprobs": 1}
        echoed = await _try(server, echoing) if server.api == "completions" else None
        return Capabilities(
            level=level,
            top=granted,
            echo=echoed is not None and len(echoed.echo) > 1,
            tokenizes=ids is not None,
            decoding=await _try(server, NO_LIMITS) is not None,
        )
    except (Refused, Unavailable) as error:
        raise UserError(
            f"no usable answer from {server.place} ({error}): start the server, or correct backend.base_url"
        ) from None


async def _check_model(server: Server) -> None:
    """A server that accepts any name would otherwise file one model's labels under another's.

    Only a valid list without the name is a refusal: the route is optional.
    """
    served = await server.models()
    known = {
        form for name in served for form in (name, name.removeprefix("models/"), name.removesuffix(":latest"))
    }
    if served and server.model not in known and server.model.removeprefix("models/") not in known:
        shown = ", ".join(served[:5]) + (", ..." if len(served) > 5 else "")
        raise UserError(f"backend.name={server.model} is not served there: write one of {shown}")


async def _number_ids(server: Server) -> tuple[int, ...] | None:
    """Ids of three tokens, None if the server does not report them."""
    ids: list[int] = []
    for text in "123":
        found = await server.tokenize(text)
        if not found:
            return None
        ids.append(found[-1])
    return tuple(ids)


async def _level(server: Server, ids: tuple[int, ...], top: int, sampled: int) -> tuple[Level, int]:
    if ids:
        answer = await _try(server, server.token_id_fields(ids))
        # A list of only the likeliest (and the sampled) token could not contain all three.
        if answer is not None and set(ids) <= {candidate.id for candidate in answer.candidates}:
            return "token_ids", 0
    for count in sorted({top, min(top, _FEWEST)}, reverse=True):
        answer = await _try(server, server.logprob_fields(count))
        if answer is not None and answer.candidates:
            return "top_k", count
    if sampled and await _try(server, {}, temperature=1.0) is not None:
        return "frequency", 0
    return "text", 0


async def _try(server: Server, fields: dict[str, Any], temperature: float = 0.0) -> Answer | None:
    """The answer, or None if the server does not accept the fields.

    Some servers crash on an unknown field: one that still answers without it is such a server. One that does not
    is unreachable, which says nothing about what it can do: Unavailable.
    """
    try:
        return await _ask(server, fields, temperature)
    except Refused:
        return None
    except Unavailable:
        await _ask(server, {})
        return None


async def _ask(server: Server, fields: dict[str, Any], temperature: float = 0.0) -> Answer:
    """One token after a list of numbers."""
    return await server.complete(_COUNTING, max_tokens=1, temperature=temperature, seed=0, **fields)
