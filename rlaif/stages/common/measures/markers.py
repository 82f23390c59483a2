"""What may be wrong with a single response, by rules that a reader can check."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from rlaif.records import is_empty
from rlaif.stages.common.measures.refusals import Refusals
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
        "refuses": "one of its first two sentences opens as a refusal does (refusals.txt)",
    }
)
"""Each marker and its rule."""


def markers_of(response: str, prompt: str, refusals: Refusals, *, finished: bool | None) -> tuple[str, ...]:
    """The names in `MARKERS` that hold for a response, in their order; `finished` is None if that is not known."""
    if is_empty(response):
        return ("empty",)
    words = len(words_of(response))
    found = {
        "truncated": finished is False,
        "copies": words >= FEWEST_COPIED and copy_rate(response, prompt) >= COPIED,
        "repeats": words >= FEWEST_REPEATED and distinct_ngram_share([response], 3) <= REPEATED,
        "refuses": refusals.refused(response),
    }
    return tuple(name for name, holds in found.items() if holds)
