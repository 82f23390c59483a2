"""Lists of chat messages (`role`, `content`) as the texts of a prompt and of a response."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from rlaif.errors import UserError

SPEAKERS = {"user": "Human", "assistant": "Assistant", "system": "System", "developer": "System"}
"""How the turns of a longer prompt are marked: as in the dialogues of `helpful` and `harmless`."""

_HUMAN = ("Human", "User")
_TURN = re.compile(r"(?:\A|\n\n)(Human|User|Assistant|System):")

Message = Mapping[str, Any]


def is_conversation(value: Any) -> TypeGuard[list[Message]]:
    """Whether a value is a list of messages."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, Mapping) for one in value)


def prompt_text(messages: Sequence[Message], where: str) -> str:
    """What comes before a response: a single user message as it is, several messages as marked turns."""
    turns = [(_speaker(message, where), content(message, where).strip()) for message in messages]
    if [speaker for speaker, _ in turns] == ["Human"]:
        return turns[0][1]
    return "\n\n".join(f"{speaker}: {text}" for speaker, text in turns)


def opening(prompt: str) -> str:
    """The first human turn of a prompt of marked turns, which identifies its conversation; any other prompt as it is.

    The data sets compare several turns of one conversation, and a later turn's prompt quotes the earlier answers.
    """
    text = prompt.strip()
    marks = list(_TURN.finditer(text))
    if not marks or marks[0].start() > 0:
        return text
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    turns = (text[m.end() : end].strip() for m, end in zip(marks, ends, strict=True) if m[1] in _HUMAN)
    return next((turn for turn in turns if turn), text)


def response_text(messages: Sequence[Message], where: str) -> str:
    """The text of one assistant message. Raises UserError for anything else."""
    if len(messages) != 1 or messages[0].get("role") != "assistant":
        roles = ", ".join(str(message.get("role")) for message in messages) or "nothing"
        raise UserError(f"{where} must hold one assistant message as the response, not {roles}.")
    return content(messages[0], where)


def content(message: Message, where: str) -> str:
    """A message's text, its parts joined. Raises UserError if a part is not text."""
    value = message.get("content")
    parts = value if isinstance(value, list) else [{"type": "text", "text": value}]
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where} has a message of role '{message.get('role')}' whose content is not text.")
    return "".join(map(str, texts))


def shared_turns(first: Sequence[Message], second: Sequence[Message]) -> int:
    """How many messages two conversations share at their start, leaving at least one to each."""
    most = min(len(first), len(second)) - 1
    parted = (i for i in range(most) if _key(first[i]) != _key(second[i]))
    return next(parted, max(most, 0))


def _key(message: Message) -> tuple[Any, Any]:
    return message.get("role"), message.get("content")


def _speaker(message: Message, where: str) -> str:
    role = message.get("role")
    if role not in SPEAKERS:
        raise UserError(f"{where} has a message of role {role!r}; the roles are {', '.join(SPEAKERS)}.")
    return SPEAKERS[role]
