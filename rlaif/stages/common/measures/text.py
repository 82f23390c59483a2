"""Measures of the text itself: overlap with the reference, copying, repetition, length."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from rlaif.records import Sample
from rlaif.stages.common.measures.joining import with_bounds
from rlaif.stats import mean_interval

_WORD = re.compile(r"\w+")


@functools.cache
def _scorer() -> RougeScorer:
    # The tokenizer is passed in because the scorer logs a line when it creates its own.
    return RougeScorer(["rougeL"], tokenizer=DefaultTokenizer(use_stemmer=True))


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L F-measure in [0, 1] on stemmed words (rouge-score)."""
    return float(_scorer().score(reference, prediction)["rougeL"].fmeasure)


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.lower())


def words_changed(one: str, other: str) -> int:
    """Fewest words to insert, delete or replace to turn one text into the other (Levenshtein; case does not count)."""
    first, second = words_of(one), words_of(other)
    costs = list(range(len(second) + 1))
    for i, word in enumerate(first, start=1):
        before, costs[0] = costs[0], i
        for j, against in enumerate(second, start=1):
            replaced = before + (word != against)
            before, costs[j] = costs[j], min(replaced, costs[j] + 1, costs[j - 1] + 1)
    return costs[-1]


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def copy_rate(response: str, source: str, ngram: int = 4) -> float:
    """Share of the response's word n-grams that occur in the source (lower case); 0 without words.

    A response of fewer than `ngram` words is looked up as a whole. High values mean that the policy repeats its
    input, which fools overlap rewards.
    """
    words = words_of(response)
    if not words:
        return 0.0
    n = min(ngram, len(words))
    known, grams = set(_ngrams(words_of(source), n)), _ngrams(words, n)
    return sum(gram in known for gram in grams) / len(grams)


def distinct_ngram_share(texts: Sequence[str], n: int) -> float:
    """Share of distinct word n-grams among all word n-grams of `texts` together; low values mean repetition.

    NaN if no text has n words. Compare only sets of similar size, since the share falls with size.
    """
    grams = [gram for text in texts for gram in _ngrams(words_of(text), n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def text_report(samples: Sequence[Sample], prefix: str) -> dict[str, float]:
    """Flat metrics `<prefix>/*` of a policy's responses; empty without samples.

    `rouge_l` (with an interval over prompts; absent without references), `copy_rate` (4-grams of the response found
    in the prompt), `response_length` (mean tokens), `eos_rate` (share that ends with EOS), `distinct_3` (share of
    distinct 3-grams), `n`.
    """
    if not samples:
        return {}
    report: dict[str, float] = {f"{prefix}/n": len(samples)}
    scored = [(rouge_l(x.response, x.reference), x.cluster) for x in samples if x.reference is not None]
    if scored:
        interval = mean_interval([v for v, _ in scored], [c for _, c in scored])
        report |= with_bounds(f"{prefix}/rouge_l", interval)
    report[f"{prefix}/copy_rate"] = float(np.mean([copy_rate(x.response, x.prompt) for x in samples]))
    report[f"{prefix}/response_length"] = float(np.mean([x.tokens for x in samples]))
    report[f"{prefix}/eos_rate"] = float(np.mean([x.finished for x in samples]))
    report[f"{prefix}/distinct_3"] = distinct_ngram_share([x.response for x in samples], 3)
    return report
