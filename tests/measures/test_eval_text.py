"""Text measures by hand."""

import math

import pytest

from rlaif.records import Sample
from rlaif.stages.common.measures.text import copy_rate, distinct_ngram_share, rouge_l, text_report
from rlaif.stats import mean_interval


def test_rouge_l_by_hand() -> None:
    # longest common subsequence "the cat mat" = 3; precision 3/4, recall 3/6, F = 2 * .75 * .5 / 1.25
    assert rouge_l("the cat mat sofa", "the cat sat on a mat") == pytest.approx(0.6, abs=1e-12)
    assert rouge_l("returns the value", "Return the values.") == 1.0  # stemming, case and full stop
    assert rouge_l("", "something") == 0.0 and rouge_l("alpha", "beta") == 0.0
    # mutation: recall alone is 0.5
    assert rouge_l("the cat mat sofa", "the cat sat on a mat") != pytest.approx(0.5)


def test_copy_rate_by_hand() -> None:
    source = "one two three four five six"
    # 4-grams: "Two three, four five" yes, "three four five seven" no
    assert copy_rate("Two three, four five seven", source) == 0.5
    assert copy_rate(source, source) == 1.0
    assert copy_rate("six five four three two one", source) == 0.0  # the order counts
    assert copy_rate("two three", source) == 1.0 and copy_rate("three two", source) == 0.0
    assert copy_rate("six five four", source, ngram=1) == 1.0
    assert copy_rate("", source) == 0.0 and copy_rate("two three", "") == 0.0


def test_distinct_ngram_share_by_hand() -> None:
    # bigrams: ab ba ab | ab: 4 in all, 2 different
    assert distinct_ngram_share(["a b a b", "A b"], 2) == 0.5
    assert distinct_ngram_share(["a b c", "d e f"], 3) == 1.0
    assert math.isnan(distinct_ngram_share(["a b"], 3))


def sample(prompt_id: str, response: str, reference: str | None, finished: bool = True) -> Sample:
    return Sample(prompt_id, "one two three four five", response, len(response.split()), finished, reference)


def test_text_report() -> None:
    samples = [
        sample("x", "one two three four", "one two three four"),
        sample("x", "six seven eight", "nine", finished=False),
        sample("y", "six seven eight", "six seven eight"),
        sample("z", "red green", None),
    ]
    report = text_report(samples, "eval")
    assert report["eval/n"] == 4
    expected = mean_interval([1.0, 0.0, 1.0], ["x", "x", "y"])
    assert report["eval/rouge_l"] == pytest.approx(2 / 3)
    assert (report["eval/rouge_l_ci_low"], report["eval/rouge_l_ci_high"]) == (expected.low, expected.high)
    assert report["eval/copy_rate"] == 0.25 and report["eval/eos_rate"] == 0.75
    assert report["eval/response_length"] == (4 + 3 + 3 + 2) / 4
    # 3-grams: 2 + 1 + 1, "six seven eight" twice
    assert report["eval/distinct_3"] == 0.75


def test_text_report_without_references_or_samples() -> None:
    report = text_report([sample("x", "a b c", None)], "sft")
    assert set(report) == {"sft/n", "sft/copy_rate", "sft/response_length", "sft/eos_rate", "sft/distinct_3"}
    assert text_report([], "sft") == {}
