"""A backend's answers, checked before they are kept."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeVar

from rlaif.backends.base import ChoiceScores, Generation, SequenceScore, SimilarityScore

Answer = TypeVar("Answer", Generation, ChoiceScores, SequenceScore, SimilarityScore)

_COUNTS = ("tokens_in", "tokens_out", "tokens_cached")
_ABOVE = 1e-2  # by how much rounding may lift a log-probability above 0


def checked(answer: Answer, *, choices: int) -> Answer:
    """`answer`, or one with an `error` that says what is invalid in it; `choices` is how many were requested.

    An engine that returns NaN, a probability above 1, or text that is not Unicode has said nothing: such an answer is
    `failed` and never stored.
    """
    if answer.error is not None:
        return dataclasses.replace(answer, error=_readable(str(answer.error)))
    fault = _fault(answer, choices)
    if fault is None:
        return answer
    error = f"the answer is not valid: {_readable(fault)}"
    counts = {name: _count(getattr(answer, name)) for name in _COUNTS if hasattr(answer, name)}
    blank: dict[str, Any] = {"logprob": 0.0, "tokens": 0}
    if isinstance(answer, Generation):
        blank = {"text": ""}
    elif isinstance(answer, ChoiceScores):
        blank = {"logprobs": (None,) * choices, "token_counts": (), "ceiling": None}
    elif isinstance(answer, SimilarityScore):
        blank = {"similarity": 0.0}
    return dataclasses.replace(answer, **(blank | counts | {"error": error}))


def _fault(answer: Generation | ChoiceScores | SequenceScore | SimilarityScore, choices: int) -> str | None:
    for name in _COUNTS:
        value = getattr(answer, name, 0)
        if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
            return f"{name} is {value!r}"
    if isinstance(answer, Generation):
        return _text_fault(answer.text)
    if isinstance(answer, SimilarityScore):
        known = math.isfinite(answer.similarity) and abs(answer.similarity) <= 1.0
        return None if known else f"a cosine is {answer.similarity}"
    if isinstance(answer, SequenceScore):
        if _count(answer.tokens) != answer.tokens:
            return f"tokens is {answer.tokens!r}"
        return _logprob_fault(answer.logprob)
    if len(answer.logprobs) != choices:
        return f"{len(answer.logprobs)} log-probabilities for {choices} choices"
    told = [value for value in (*answer.logprobs, answer.ceiling) if value is not None]
    return next((fault for value in told if (fault := _logprob_fault(value))), None)


def _text_fault(text: object) -> str | None:
    if not isinstance(text, str):
        return f"its text is {type(text).__name__}"
    return None if _readable(text) == text else "its text holds half a character (a lone surrogate)"


def _logprob_fault(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"a log-probability is {value!r}"
    if math.isnan(value) or value > _ABOVE:
        return f"a log-probability is {value}"
    return None


def _count(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _readable(text: str) -> str:
    """`text` with question marks for what UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def to_row(answer: Answer, seconds: float) -> dict[str, Any]:
    """An answer as plain data, with the seconds it took."""
    return dataclasses.asdict(answer) | {"seconds": seconds}


def from_row(row: dict[str, Any], answer_type: type[Answer]) -> tuple[Answer, float]:
    """(the answer, its seconds) that `to_row` wrote."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    seconds = values.pop("seconds")
    return answer_type(**values), seconds
