"""Answers in OpenAI's two dialects, checked on arrival: only text and finite numbers are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BYTES_PER_TOKEN = 4
"""If a server does not report how many tokens a text has: its UTF-8 bytes divided by this, rounded up."""

_ID_PREFIX = "token_id:"
_IMPOSSIBLE = -9999.0  # how OpenAI and vLLM write a probability of 0, since JSON has no -Infinity
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Candidate:
    """A possible next token: its text, its log-probability (nats), and its id if the server reports it.

    `logprob` is -inf for an impossible token and None if the server's value is not a log-probability (NaN, null,
    above 0).
    """

    text: str
    logprob: float | None
    id: int | None


@dataclass(frozen=True)
class Step:
    """One generated token: its log-probability and the candidates in its place."""

    text: str
    logprob: float | None
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Answer:
    """A server's answer. `steps` are its generated tokens, as far as their probabilities are reported.

    `text` is valid Unicode: lone surrogates are replaced by U+FFFD. `echo` is the prompt's tokens with their
    log-probabilities (None for the first and for what is not a number), if requested and given. `finished` says
    whether the model ended by itself. `estimated`: the server reported no usage, so token counts are those of
    `count_tokens`. `hint` says why there is no text.
    """

    text: str
    finished: bool
    tokens_in: int
    tokens_out: int
    tokens_cached: int
    steps: tuple[Step, ...]
    echo: tuple[tuple[str, float | None], ...]
    estimated: bool = False
    hint: str = ""

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """For the first new token."""
        return self.steps[0].candidates if self.steps else ()


def count_tokens(text: str) -> int:
    """An estimate for texts whose token count no server reported: bytes / `BYTES_PER_TOKEN`."""
    return -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)


def well_formed(text: str) -> str:
    """`text` with lone surrogates, which no file can hold, replaced by U+FFFD; surrogate pairs become one character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_logprob(value: Any) -> float | None:
    """A log-probability, -inf for an impossible token, None for anything else (NaN, null, above 0, not a number)."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    if not number or value > _ROUNDING:
        return None
    return -math.inf if value <= _IMPOSSIBLE else min(float(value), 0.0)


def read_answer(found: Any, prompt: str) -> Answer:
    """The answer in the server's JSON. Raises KeyError, TypeError or ValueError for anything else."""
    choice = found["choices"][0]
    said, thought = _said(choice)
    logprobs = choice.get("logprobs")
    logprobs = logprobs if isinstance(logprobs, dict) else {}
    tokens_in, tokens_out, cached, estimated = _usage(found.get("usage"), prompt, said + thought)
    reason = choice.get("finish_reason")
    return Answer(
        text=said,
        finished=reason == "stop",
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        tokens_cached=cached,
        steps=_steps(logprobs),
        # An estimate does not say where the prompt ends.
        echo=() if estimated else _echo(logprobs, tokens_in),
        estimated=estimated,
        hint="" if said else _why_empty(reason, thought, found.get("usage")),
    )


def _said(choice: dict[str, Any]) -> tuple[str, str]:
    """(what is said, what was thought before it); a choice that ended without a message says nothing."""
    message = choice.get("message")
    if isinstance(message, dict):
        return _text(message.get("content")) or _text(message.get("refusal")), _thought(message)
    return ("" if "text" not in choice and choice.get("finish_reason") else _text(choice["text"])), ""


def _text(content: Any) -> str:
    """The text for the reader: a string, or the text parts of a list (without thinking and others)."""
    if content is None:
        return ""
    if isinstance(content, str):
        return well_formed(content)
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        raise TypeError("the content is not text")
    return "".join(_part(part) for part in content)


def _part(part: Any) -> str:
    if isinstance(part, str):
        return well_formed(part)
    if not isinstance(part, dict) or part.get("type", "text") not in ("text", "output_text"):
        return ""
    return _text(part.get("text"))


def _thought(message: dict[str, Any]) -> str:
    """Reasoning that the server returns with the answer: it is paid for, and never read."""
    for key in ("reasoning_content", "reasoning"):
        if isinstance(message.get(key), str):
            return well_formed(message[key])
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    return "".join(str(p["thinking"]) for p in parts if isinstance(p, dict) and p.get("thinking"))


def _why_empty(reason: Any, thought: str, usage: Any) -> str:
    details = usage.get("completion_tokens_details") if isinstance(usage, dict) else None
    reasoned = details.get("reasoning_tokens") if isinstance(details, dict) else None
    if thought or reasoned:
        return (
            "a reasoning model used up its tokens before it answered: switch its reasoning off on the server, or"
            " write labeler.readout.kind=text with a larger labeler.readout.max_tokens"
        )
    if reason == "content_filter":
        return "the server's content filter withholds them"
    return "a reasoning model, or one that ends at once, says nothing within the token limit"


def _usage(usage: Any, prompt: str, said: str) -> tuple[int, int, int, bool]:
    """(tokens in, out, cached, whether either of the first two is an estimate). 0 prompt tokens means not reported."""
    usage = usage if isinstance(usage, dict) else {}
    tokens_in, tokens_out = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    told_in, told_out = bool(tokens_in) or not prompt, tokens_out > 0 or (tokens_in > 0 and not said)
    tokens_in = tokens_in if told_in else count_tokens(prompt)
    tokens_out = tokens_out if told_out else max(1, count_tokens(said))
    details = usage.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
    return tokens_in, tokens_out, min(cached, tokens_in), not (told_in and told_out)


def _count(value: Any) -> int:
    fit = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**53
    return int(value) if fit else 0


def _steps(logprobs: dict[str, Any]) -> tuple[Step, ...]:
    """From chat's list of objects (llama.cpp's completions have it too) or from completions' mapping."""
    content = logprobs.get("content")
    if isinstance(content, list) and content:
        return tuple(
            Step(
                well_formed(str(row.get("token", ""))),
                read_logprob(row.get("logprob")),
                tuple(_candidate(c.get("token"), c.get("logprob"), c.get("id")) for c in _rows(row)),
            )
            for row in content
            if isinstance(row, dict)
        )
    first = (logprobs.get("top_logprobs") or [None])[0]
    if not isinstance(first, dict) or not first:
        return ()
    return (Step("", None, tuple(_candidate(text, value, None) for text, value in first.items())),)


def _rows(row: dict[str, Any]) -> list[dict[str, Any]]:
    listed = row.get("top_logprobs")
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def _candidate(text: Any, logprob: Any, token: Any) -> Candidate:
    if not isinstance(text, str):
        raise TypeError("a token is not text")
    if not isinstance(token, int) and text.startswith(_ID_PREFIX):
        token = int(text.removeprefix(_ID_PREFIX))
    return Candidate(well_formed(text), read_logprob(logprob), token if isinstance(token, int) else None)


def _echo(logprobs: dict[str, Any], tokens_in: int) -> tuple[tuple[str, float | None], ...]:
    """The prompt's part; what was generated after it is cut off. An echo's first token has no log-probability."""
    values: Sequence[Any] = logprobs.get("token_logprobs") or [0.0]
    if values[0] is not None:
        return ()
    known = [None if value is None else read_logprob(value) for value in values[:tokens_in]]
    return tuple(zip((well_formed(t) for t in logprobs["tokens"][:tokens_in]), known, strict=True))
