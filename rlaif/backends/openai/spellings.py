"""Spellings of a choice among a server's candidates: " 1", "**1" and "1" are one answer, "10" and "1." are not."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence

from rlaif.backends.openai.answers import Candidate

# White space (also as it appears in raw vocabulary tokens), quotes, emphasis and brackets.
_SPACE = " \t\r\n\u00a0\u2581\u0120\u010a"
_OPENING = _SPACE + "\"'`\u201c\u201d\u2018\u2019\u00ab\u300c\u300e*_#([{"
_CLOSING = _SPACE + "\"'`\u201c\u201d\u2018\u2019\u00bb\u300d\u300f*_]}"  # not ")": "1)" begins a list
USUAL = ("{}", " {}", "\n{}", "**{}", '"{}', "({}")
"""Spellings to request if tokens are requested by id."""

# What turns a number that opens an answer into another number, a list item, or one of several numbers.
_GOES_ON = re.compile(
    r"\w|\s*[.,:]\s*\d|[*_]*\s*[.):][*_]*\s*[^\W\d]|\s*[/&+\u2013-]\s*[*(]*\d|\s+(?:or|and|vs|to)\b",
    re.IGNORECASE,
)
_MOST = 1.02  # most that the probabilities of one token may add up to, rounding included


class Unreadable(Exception):
    """What a server returned for a choice is not a probability."""


def bare(text: str) -> str:
    """`text` without white space, quotes and markup around it."""
    return text.lstrip(_OPENING).rstrip(_CLOSING)


def is_markup(text: str) -> bool:
    """Whether nothing has been said yet: only white space, opening quotes or emphasis."""
    return bool(text) and not bare(text)


def says(texts: Sequence[str]) -> Callable[[str, str], bool]:
    """(candidate's text, choice) -> whether it is the choice; spellings are merged if that keeps `texts` distinct."""
    kernels = {bare(text) for text in texts}
    if "" in kernels or len(kernels) < len(set(texts)):
        return lambda text, choice: text == choice
    return lambda text, choice: bare(text) == bare(choice)


def total(logprobs: Iterable[float]) -> float | None:
    """Log of the sum of probabilities; None if there are none."""
    values = list(logprobs)
    peak = max(values, default=None)
    if peak is None or peak == -math.inf:
        return peak
    return min(0.0, peak + math.log(math.fsum(math.exp(value - peak) for value in values)))


def named(candidates: Sequence[Candidate], wanted: Callable[[Candidate], bool]) -> float | None:
    """Log-probability of the wanted candidates together; None if there are none.

    Raises Unreadable if one of them has no value.
    """
    found = {(one.id, one.text, one.logprob) for one in candidates if wanted(one)}
    known = [logprob for _, _, logprob in found if logprob is not None]
    if len(known) < len(found):
        raise Unreadable("the server returned a log-probability that is not a number at or below 0")
    return total(known)


def unnamed(candidates: Sequence[Candidate]) -> float | None:
    """Upper bound on the log-probability of a choice outside a list of the likeliest tokens; None if not known.

    Each of its spellings is at most as likely as the least likely in the list, and together they have at most what
    is left. Raises Unreadable if the probabilities add up to more than 1.
    """
    values = [one.logprob for one in {(c.id, c.text): c for c in candidates}.values()]
    known = [math.exp(value) for value in values if value is not None]
    if math.fsum(known) > _MOST:
        raise Unreadable("the server's probabilities of one token add up to more than 1")
    if not known or len(known) < len(values):
        return None
    most = min(len(USUAL) * min(known), max(0.0, 1.0 - math.fsum(known)))
    return math.log(most) if most > 0 else -math.inf


def opens_with(text: str, choice: str) -> bool:
    """Whether an answer's text opens with `choice` as a number by itself: not "10", "1.5", "1. First" or "1 or 2"."""
    if not choice.strip() or bare(choice) != choice:
        return text.startswith(choice)
    return text.lstrip(_OPENING).startswith(choice) and not goes_on(text, choice)


def goes_on(text: str, choice: str) -> bool:
    """Whether an answer's text begins as `choice` does and turns out to be something else."""
    begun = text.lstrip(_OPENING)
    return (
        choice[-1:].isalnum() and begun.startswith(choice) and _GOES_ON.match(begun, len(choice)) is not None
    )
