"""The measures of stage=eval beside the judge's: what they are of, and what they are called."""

from __future__ import annotations

import pytest

from rlaif.tracking.glossary import unknown

JUDGED = ["stage=eval", "judge=scripted"]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "eval/kl"),
        (["eval.temperature=0"], "eval/log_ratio"),
        (["eval.top_k=3"], "eval/log_ratio"),
        (["eval.top_k=100000"], "eval/kl"),  # more than there are tokens: nothing is cut
    ],
)
def test_only_what_is_drawn_from_the_whole_distribution_gives_a_kl(words, name, pipeline, run) -> None:
    summary = run(*JUDGED, *words).summary
    assert [key for key in ("eval/kl", "eval/log_ratio") if key in summary] == [name]
    assert unknown(summary) == []
