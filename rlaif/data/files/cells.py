"""A row's values, checked when they are read: the one guard between a file and what is made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from rlaif.errors import UserError


class JsonObject(dict[str, Any]):
    """A JSON object that remembers its repeated keys."""

    repeated: tuple[str, ...] = ()


def json_object(pairs: list[tuple[str, Any]]) -> JsonObject:
    """`object_pairs_hook` of `json.loads`."""
    made = JsonObject(pairs)
    if len(made) < len(pairs):
        made.repeated = tuple(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
    return made


def json_integer(text: str) -> int | Decimal:
    """`parse_int` of `json.loads`: Python's int refuses more than a few thousand digits, Decimal does not."""
    try:
        return int(text)
    except ValueError:
        return Decimal(text)


def kind_of(value: Any) -> str:
    """What a value is, in words for a message: `a number`, `nothing` ..."""
    if value is None:
        return "nothing"
    kinds = {str: "text", bool: "true or false", Mapping: "an object", list: "a list"}
    kinds |= {int: "a number", float: "a number", Decimal: "a number"}
    words = (word for kind, word in kinds.items() if isinstance(value, kind))
    return next(words, f"a {type(value).__name__}")


def text_of(value: Any, where: str) -> str:
    """`value`, which must be text. Raises UserError otherwise."""
    if not isinstance(value, str):
        raise UserError(f"{where} must hold text, not {kind_of(value)}.")
    return value


class Cells(Mapping[str, Any]):
    """The values of one row by column. What cannot be read raises UserError with file, row and column.

    Refused are values that do not decode, text with half a character (a lone surrogate, which no file can hold) and
    objects with a repeated key, at any depth of the requested column.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values, self.where = values, where

    def __getitem__(self, column: str) -> Any:
        try:
            value = self._values[column]
        except KeyError:
            raise
        except Exception as error:  # Arrow and datasets raise their own, and OverflowError, ValueError ...
            why = reason_of(error)
            raise UserError(f"{self.where}: column '{column}' cannot be read ({why}).") from error
        found = fault(value)
        if found:
            raise UserError(f"{self.where}: column '{column}' {found}.")
        return value

    def __contains__(self, column: object) -> bool:
        return column in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def reason_of(error: Exception) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def fault(value: Any) -> str | None:
    """What makes a value unusable, for a message; None if it is fine."""
    if isinstance(value, str):
        if value.isascii():
            return None
        half = next((c for c in value if "\ud800" <= c <= "\udfff"), None)
        return half and f"holds half a character (\\u{ord(half):04x}); write the whole one or leave it out"
    if isinstance(value, Mapping):
        if isinstance(value, JsonObject) and value.repeated:
            return f"holds the key '{value.repeated[0]}' twice; keep one of them"
        return next(filter(None, map(fault, [*value.keys(), *value.values()])), None)
    if isinstance(value, list):
        return next(filter(None, map(fault, value)), None)
    return None


class ArrowColumns:
    """An Arrow table's columns as Python values, each decoded once, at its first use."""

    def __init__(self, table: Any) -> None:
        self.names: list[str] = table.column_names
        self._table = table
        self._decoded: dict[str, list[Any] | None] = {}

    def value(self, column: str, index: int) -> Any:
        """One value, decoded by itself if the column does not decode as a whole (raises Arrow's error)."""
        if column not in self._decoded:
            try:
                self._decoded[column] = self._table.column(column).to_pylist()
            except Exception:  # the faulty row is found value by value
                self._decoded[column] = None
        decoded = self._decoded[column]
        return self._table.column(column)[index].as_py() if decoded is None else decoded[index]


class ArrowRow(Mapping[str, Any]):
    """A row of an Arrow table."""

    def __init__(self, columns: ArrowColumns, index: int) -> None:
        self._columns, self._index = columns, index

    def __getitem__(self, column: str) -> Any:
        if column not in self._columns.names:
            raise KeyError(column)
        return self._columns.value(column, self._index)

    def __contains__(self, column: object) -> bool:
        return column in self._columns.names

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns.names)

    def __len__(self) -> int:
        return len(self._columns.names)
