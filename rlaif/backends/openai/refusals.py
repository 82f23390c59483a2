"""What a server's error says: its message, its codes, and whether the account is used up."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# In order of preference: the first that holds a sentence is used.
_SENTENCES = ("error", "message", "msg", "detail", "errors", "error_message", "error_description", "title")
_CODES = ("code", "type", "status")
_EMPTY_CODES = frozenset(
    {
        "insufficient_quota",
        "insufficient_balance",
        "billing_hard_limit_reached",
        "billing_not_active",
        "credits_exhausted",
    }
)
_EMPTY_WORDS = re.compile(
    r"exceeded your current quota|insufficient[ _](?:quota|balance|credits?|funds)|credit balance is too low"
    r"|billing hard limit|(?:out of|not enough|requires more|no remaining) credits|check your (?:plan and )?billing",
    re.IGNORECASE,
)
# Some servers call a limit per minute a quota too; those say when to come back.
_COMES_BACK = re.compile(r"(?:retry|try again) (?:in|after)|retrydelay|per ?minute", re.IGNORECASE)
_MARKUP = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.IGNORECASE | re.DOTALL)
_HEADING = re.compile(r"<(title|h1)\b[^>]*>(.*?)</\1>", re.IGNORECASE | re.DOTALL)
_DEEPEST = 8


@dataclass(frozen=True)
class Refusal:
    """An error's body: the message for people, the codes (lower case), the parameter it names, and the whole text."""

    message: str
    codes: frozenset[str]
    param: str | None
    text: str

    def empties(self, status: int, wait: float | None) -> bool:
        """Whether no later request can be served until somebody pays: not a limit per minute.

        `wait` is the Retry-After, in seconds.
        """
        if status == 402 or self.codes & _EMPTY_CODES:
            return True
        if status not in (400, 403, 429) or "rate_limit_exceeded" in self.codes:
            return False
        passes = wait is not None or _COMES_BACK.search(self.text) is not None
        return not passes and _EMPTY_WORDS.search(self.message) is not None


def read_refusal(body: Any) -> Refusal:
    """From a body as text or as decoded JSON: an object, a list, a string, or an HTML page."""
    if isinstance(body, str):
        found, text = _decoded(body), body
    else:
        found, text = body, json.dumps(body, ensure_ascii=False, default=str)
    nodes = list(_objects(found))
    codes = {
        str(node[key]).lower() for node in nodes for key in _CODES if isinstance(node.get(key), str | int)
    }
    params = (node["param"] for node in nodes if isinstance(node.get("param"), str))
    message = _sentence(found) or (_plain(text) if isinstance(found, str) else text)
    return Refusal(message, frozenset(codes), next(params, None), text)


def error_in(found: Any) -> Any:
    """The error that an answer carries despite its success status; None if there is none."""
    if not isinstance(found, dict) or not found.get("error"):
        return None
    return None if {"choices", "data", "tokens"} & set(found) else found


def status_in(error: Any, otherwise: int) -> int:
    """The HTTP status that an error's body gives as its code, else `otherwise`."""
    for node in _objects(error):
        code = node.get("code", node.get("status"))
        if isinstance(code, int | str) and str(code).isdecimal() and 400 <= int(code) < 600:
            return int(code)
    return otherwise


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _objects(found: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    if depth > _DEEPEST:
        return
    if isinstance(found, dict):
        yield found
        found = list(found.values())
    if isinstance(found, list):
        for value in found:
            yield from _objects(value, depth + 1)


def _sentence(found: Any, depth: int = 0) -> str:
    if depth > _DEEPEST:
        return ""
    if isinstance(found, str):
        inner = _decoded(found)
        return _sentence(inner, depth + 1) if isinstance(inner, dict | list) else _plain(found)
    if isinstance(found, list):
        return next((said for said in (_sentence(item, depth + 1) for item in found) if said), "")
    if not isinstance(found, dict):
        return ""
    said = next((s for key in _SENTENCES if (s := _sentence(found.get(key), depth + 1))), "")
    place = found.get("loc")  # pydantic's own form
    if said and isinstance(place, list):
        said = f"{'.'.join(map(str, place))}: {said}"
    behind = found.get("metadata")  # a gateway's message, then that of the provider behind it
    raw = _sentence(behind.get("raw"), depth + 1) if isinstance(behind, dict) else ""
    return f"{said}: {raw}" if raw and said else said or raw


def _plain(text: str) -> str:
    """Text unchanged; for an HTML page its title, or what is left without the tags."""
    if "<" not in text:
        return text
    heading = _HEADING.search(text)
    return html.unescape(_MARKUP.sub(" ", heading[2] if heading else text)).strip()
