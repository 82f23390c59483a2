"""What may be wrong with a single response, by rules that a reader can check."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from rlaif.records import is_empty
from rlaif.stages.common.measures.text import copy_rate, distinct_ngram_share, words_of

COPIED = 0.8  # least copy rate (4-grams) of a copying response
REPEATED = 0.6  # greatest share of distinct 3-grams of a repetitive one
FEWEST_COPIED, FEWEST_REPEATED = 4, 8  # words below which the two are not judged: too few n-grams

MARKERS: Mapping[str, str] = MappingProxyType(
    {
        "empty": "no visible character",
        "truncated": "no end (EOS) within the limit on tokens",
        "copies": f"at least {COPIED:.0%} of its word 4-grams are in the prompt",
        "repeats": f"at most {REPEATED:.0%} of its word 3-grams are distinct",
        "refuses": "it opens as a refusal does",
    }
)
"""Each marker and its rule."""

REFUSALS = (
    "i'm sorry",
    "i am sorry",
    "sorry, but",
    "i apologize",
    "i can't",
    "i cannot",
    "i can not",
    "i won't",
    "i will not",
    "i'm not able to",
    "i am not able to",
    "i'm unable to",
    "i am unable to",
    "i must decline",
    "as an ai",
)
"""How refusals open, in lower case with straight apostrophes."""


def is_refusal(response: str) -> bool:
    """Whether the response opens with one of `REFUSALS`."""
    opening = " ".join(response.lower().replace("\u2019", "'").split()).lstrip("\"'*-: ")
    return opening.startswith(REFUSALS)


def markers_of(response: str, prompt: str, *, finished: bool | None) -> tuple[str, ...]:
    """The names in `MARKERS` that hold for a response, in their order; `finished` is None if that is not known."""
    if is_empty(response):
        return ("empty",)
    words = len(words_of(response))
    found = {
        "truncated": finished is False,
        "copies": words >= FEWEST_COPIED and copy_rate(response, prompt) >= COPIED,
        "repeats": words >= FEWEST_REPEATED and distinct_ngram_share([response], 3) <= REPEATED,
        "refuses": is_refusal(response),
    }
    return tuple(name for name, holds in found.items() if holds)
