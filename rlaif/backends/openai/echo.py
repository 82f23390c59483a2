"""A text that a server echoes with the log-probabilities of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlaif.backends.openai.answers import Answer
from rlaif.backends.openai.http import Refused, Unavailable
from rlaif.backends.openai.wire import Server


async def echo(server: Server, text: str) -> Answer:
    """`text` with the log-probability of each of its tokens."""
    return await server.complete(text, max_tokens=1, temperature=0.0, seed=0, echo=True, logprobs=1)


async def try_echo(server: Server, text: str) -> Answer | str:
    """The echo, or what went wrong."""
    try:
        return await echo(server, text)
    except (Refused, Unavailable) as error:
        return str(error)


def after(start: Answer, whole: Answer) -> list[float]:
    """Log-probabilities of `whole`'s tokens after those of `start`; empty if it does not begin with these."""
    head, tail = whole.echo[: len(start.echo)], whole.echo[len(start.echo) :]
    if [token for token, _ in head] != [token for token, _ in start.echo]:
        return []
    values = [value for _, value in tail if value is not None]
    return values if len(values) == len(tail) else []


def spent(answers: Sequence[Answer]) -> dict[str, Any]:
    """The token counts of `answers`, and whether any of them is an estimate."""
    names = ("tokens_in", "tokens_out", "tokens_cached")
    spent: dict[str, Any] = {name: sum(getattr(answer, name) for answer in answers) for name in names}
    return spent | {"usage_estimated": any(answer.estimated for answer in answers)}
