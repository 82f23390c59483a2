"""What each setting may be, and the sentence that says so if it is something else."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Annotated, Any


@dataclass(frozen=True)
class Rule(ABC):
    """What one setting may be; `null` says whether it may be null."""

    null: bool = field(default=False, kw_only=True)

    @abstractmethod
    def wrong(self, key: str, value: Any) -> str | None:
        """What is wrong with `value`; None if nothing."""

    def read(self, value: Any) -> Any:
        """The value that is meant by `value`, as it is written."""
        return value


@dataclass(frozen=True)
class Number(Rule):
    """A number between two bounds, both allowed unless `above` or `below` excludes them."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    whole: bool = False

    def wrong(self, key: str, value: Any) -> str | None:
        if value is None:
            return None if self.null else f"{key}=null is not a {self._kind}: write {self.described}"
        null = ", or null" if self.null else ""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            example = f"{key}={self.example(key)}"
            return f"{key}={shown(value)} is not a {self._kind}: write one, such as {example}{null}"
        low = value > self.low if self.above else value >= self.low
        high = value < self.high if self.below else value <= self.high
        if math.isfinite(value) and low and high:
            return None
        return f"{key}={shown(value)} is out of range: write {self.described}{null}"

    def read(self, value: Any) -> Any:
        """Text that reads as such a number, as from `${oc.env:NAME}`, is that number."""
        if isinstance(value, str):
            for kind in (int,) if self.whole else (int, float):
                try:
                    return kind(value)
                except ValueError:
                    continue
        return value

    def example(self, key: str) -> str:
        """A value that `key` may have."""
        if key.endswith(".lr"):
            return "0.0001"
        low = self.low if math.isfinite(self.low) else 0
        middle = low + 1 if self.high > low + 1 else (low + self.high) / 2
        value = middle if self.above else low
        return f"{value:g}" if self.whole or value != int(value) else f"{value:.1f}"

    @property
    def _kind(self) -> str:
        return "whole number" if self.whole else "number"

    @property
    def described(self) -> str:
        """Which numbers it may be."""
        if self.low == -math.inf and self.high == math.inf:
            return f"a finite {self._kind}"
        least = f"a {self._kind} {'above' if self.above else 'from'} {self.low:g}"
        if self.high == math.inf:
            return least
        return f"{least} and below {self.high:g}" if self.below else f"{least} to {self.high:g}"


@dataclass(frozen=True)
class Switch(Rule):
    """true or false."""

    def wrong(self, key: str, value: Any) -> str | None:
        if isinstance(value, bool) or (value is None and self.null):
            return None
        return f"{key}={shown(value)} is not a switch: write {key}=true or false"


@dataclass(frozen=True)
class Text(Rule):
    """Text; a number counts as it is written."""

    empty: bool = True

    def wrong(self, key: str, value: Any) -> str | None:
        if value is None:
            return None if self.null else f"{key}=null says nothing: write a text"
        if isinstance(value, dict | list | bool):
            return f"{key}={shown(value)} is not a text: write one, in quotes if it has special characters"
        return f"{key} is empty: write a text" if not self.empty and not str(value).strip() else None

    def read(self, value: Any) -> Any:
        """A number as its text."""
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


@dataclass(frozen=True)
class Choice(Rule):
    """One of several words."""

    words: tuple[str, ...]

    def wrong(self, key: str, value: Any) -> str | None:
        if value in self.words or (value is None and self.null):
            return None
        *others, last = [*self.words, *(["null"] if self.null else [])]
        known = f"{', '.join(others)} or {last}" if others else last
        return f"{key}={shown(value)} is not known: write {known}"


@dataclass(frozen=True)
class Texts(Rule):
    """A list of texts, or a single one."""

    def wrong(self, key: str, value: Any) -> str | None:
        rows = value if isinstance(value, list | tuple) else [value]
        if value is None and self.null:
            return None
        if any(row is None or isinstance(row, dict | list | bool) for row in rows):
            return f"{key}={shown(value)} is not a list of texts: write [A,B]"
        return None

    def read(self, value: Any) -> Any:
        """A tuple of texts, even if there is only one."""
        if value is None or isinstance(value, dict):
            return value
        rows = value if isinstance(value, list | tuple) else [value]
        return tuple(row if row is None or isinstance(row, dict | list | bool) else str(row) for row in rows)


@dataclass(frozen=True)
class Anything(Rule):
    """Checked where it is used: names of the user's own."""

    def wrong(self, key: str, value: Any) -> str | None:
        return None


class _Absent:
    def __repr__(self) -> str:
        return "absent"

    def __bool__(self) -> bool:
        raise TypeError("an option was read that the chosen member of its group does not have")


ABSENT: Any = _Absent()
"""The value of a field that only other members of the group have, such as `backend.base_url` for `openai`."""

Positive = Annotated[float, Number(0, above=True)]
From0 = Annotated[float, Number(0)]
Share = Annotated[float, Number(0, 1)]
Part = Annotated[float, Number(0, 1, below=True)]  # something must be left
Finite = Annotated[float, Number()]
Count = Annotated[int, Number(1, whole=True)]
Count0 = Annotated[int, Number(0, whole=True)]
Port = Annotated[int, Number(0, 65535, whole=True)]
Name = Annotated[str, Text(empty=False)]


def shown(value: Any) -> str:
    """A value as it is written in a command."""
    if isinstance(value, tuple):
        value = list(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
