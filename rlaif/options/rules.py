"""What one setting may be, and the sentence that says so where it is something else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class Number:
    """A number between two bounds, both allowed unless `above` or `below` leaves them out."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    whole: bool = False
    null: bool = False

    def wrong(self, key: str, value: Any) -> str | None:
        """What is wrong with `value`; None if nothing."""
        if value is None:
            return None if self.null else f"{key}=null is no {self._kind}: write {self.described}"
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            null = ", or null" if self.null else ""
            return (
                f"{key}={shown(value)} is no {self._kind}: write one, such as {key}={self.example(key)}{null}"
            )
        low = value > self.low if self.above else value >= self.low
        high = value < self.high if self.below else value <= self.high
        if math.isfinite(value) and low and high:
            return None
        return (
            f"{key}={shown(value)} is out of range: write {self.described}{', or null' if self.null else ''}"
        )

    def read(self, value: Any) -> Any:
        """A text that reads as the number wanted, as from `${oc.env:NAME}`, is that number."""
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
        what = f"a {self._kind}"
        if self.low == -math.inf and self.high == math.inf:
            return f"a finite {self._kind}"
        least = f"above {self.low:g}" if self.above else f"from {self.low:g}"
        if self.high == math.inf:
            return f"{what} {least}"
        return f"{what} {least} and below {self.high:g}" if self.below else f"{what} {least} to {self.high:g}"


@dataclass(frozen=True)
class Switch:
    """true or false."""

    null: bool = False

    def wrong(self, key: str, value: Any) -> str | None:
        """What is wrong with `value`; None if nothing."""
        if isinstance(value, bool) or (value is None and self.null):
            return None
        return f"{key}={shown(value)} is no switch: write {key}=true or false"

    def read(self, value: Any) -> Any:
        """As it is."""
        return value


@dataclass(frozen=True)
class Text:
    """One text; a number counts as how it is written."""

    null: bool = False
    empty: bool = True

    def wrong(self, key: str, value: Any) -> str | None:
        """What is wrong with `value`; None if nothing."""
        if value is None:
            return None if self.null else f"{key}=null says nothing: write a text"
        if isinstance(value, dict | list | bool):
            return f"{key}={shown(value)} is no text: write one, in quotes if it has special characters"
        return f"{key} is empty: write a text" if not self.empty and not str(value).strip() else None

    def read(self, value: Any) -> Any:
        """A number as its text."""
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


@dataclass(frozen=True)
class Choice:
    """One of several words."""

    words: tuple[str, ...]
    null: bool = False

    def wrong(self, key: str, value: Any) -> str | None:
        """What is wrong with `value`; None if nothing."""
        if value in self.words or (value is None and self.null):
            return None
        words = [*self.words, *(["null"] if self.null else [])]
        told = f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
        return f"{key}={shown(value)} is not known: write {told}"

    def read(self, value: Any) -> Any:
        """As it is."""
        return value


@dataclass(frozen=True)
class Texts:
    """A list of texts, or one alone."""

    null: bool = False

    def wrong(self, key: str, value: Any) -> str | None:
        """What is wrong with `value`; None if nothing."""
        rows = value if isinstance(value, list | tuple) else [value]
        if value is None and self.null:
            return None
        if any(row is None or isinstance(row, dict | list | bool) for row in rows):
            return f"{key}={shown(value)} is no list of texts: write [A,B]"
        return None

    def read(self, value: Any) -> Any:
        """Texts, also where there is one alone."""
        if value is None or isinstance(value, dict):
            return value
        rows = value if isinstance(value, list | tuple) else [value]
        return tuple(row if row is None or isinstance(row, dict | list | bool) else str(row) for row in rows)


@dataclass(frozen=True)
class Anything:
    """Checked where it is read: names of the user's own."""

    null: bool = True

    def wrong(self, key: str, value: Any) -> str | None:
        """Nothing."""
        return None

    def read(self, value: Any) -> Any:
        """As it is."""
        return value


class _Absent:
    def __repr__(self) -> str:
        return "absent"

    def __bool__(self) -> bool:
        raise TypeError("an option that this choice of its group does not have was read")


ABSENT: Any = _Absent()
"""The value of a field that another option of the group has, such as `backend.base_url` under backend=transformers."""

Rule = Number | Switch | Text | Choice | Texts | Anything

Positive = Annotated[float, Number(0, above=True)]
From0 = Annotated[float, Number(0)]
Share = Annotated[float, Number(0, 1)]
Part = Annotated[float, Number(0, 1, below=True)]  # something must be left
Finite = Annotated[float, Number()]
Count = Annotated[int, Number(1, whole=True)]
Count0 = Annotated[int, Number(0, whole=True)]
Name = Annotated[str, Text(empty=False)]


def shown(value: Any) -> str:
    """A value as it is written in a command."""
    if isinstance(value, tuple):
        value = list(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
