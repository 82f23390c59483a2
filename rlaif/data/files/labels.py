"""What a row says of its pair: which response is better, and which part of the data set it belongs to."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

from rlaif.data.files.cells import kind_of
from rlaif.errors import UserError

SUBSET_CHARS = 80
"""A longer text is no name of a part: every part has a line of its own in reports."""

_LETTERED = {"A>B": 1.0, "B>A": 0.0, "A=B": 0.5, "B=A": 0.5, "TIE": 0.5}


def probability(value: Any, where: str) -> float | None:
    """A label of the task's own columns; None if there is none. Raises UserError unless it is from 0 to 1."""
    if _is_missing(value):
        return None
    label = _number(value)
    if not 0.0 <= label <= 1.0:  # false for NaN too
        raise UserError(
            f"{where} is {value!r}, but a label is a number from 0 to 1, the probability that response_a is better."
        )
    return label


def numbered(value: Any, where: str) -> float | None:
    """1 means the first output for certain, 2 the second, 1.5 or `tie` (or 0, in older files) neither.

    None if there is no verdict. Raises UserError for anything else.
    """
    if _is_missing(value):
        return None
    number = math.nan if isinstance(value, bool) else 1.5 if _compact(value) == "TIE" else _number(value)
    if number == 0:
        return 0.5
    if not 1 <= number <= 2:
        raise UserError(f"{where} is {value!r}, but must be 1 or 2, the better output, or 1.5 for neither.")
    return 2 - number


def lettered(value: Any, where: str) -> float | None:
    """`A>B` means that the first response is better, `B>A` the second, `A=B` or `tie` neither.

    None if there is no verdict. Raises UserError for anything else.
    """
    if _is_missing(value):
        return None
    label = _LETTERED.get(_compact(value))
    if label is None:
        raise UserError(
            f"{where} is {value!r}, but must be 'A>B' or 'B>A', the better response first, or 'A=B' for neither; if "
            "it is a probability, write task.columns.response_a=response_A task.columns.response_b=response_B."
        )
    return label


def subset_of(value: Any, where: str) -> str | None:
    """The part of the data set that a pair belongs to, as text; None for an empty value.

    A number that a table holds as 3.0 is the 3 of another format. Raises UserError for what is no short name.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool):
        value = str(value).lower()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, str | int | float | Decimal):
        raise UserError(
            f"{where} must hold a short name of a part of the data set, not {kind_of(value)}; write it as text, or "
            "leave the column out with task.columns.subset=null."
        )
    text = " ".join(str(value).split())
    if len(text) > SUBSET_CHARS:
        raise UserError(
            f"{where} holds {len(text)} characters, but the name of a part of the data set has {SUBSET_CHARS} at "
            "most; shorten it, or leave the column out with task.columns.subset=null."
        )
    return text or None


def _is_missing(value: Any) -> bool:
    return value is None or value == ""


def _number(value: Any) -> float:
    """NaN for what is not a number."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _compact(value: Any) -> str:
    return "".join(value.upper().split()) if isinstance(value, str) else ""
