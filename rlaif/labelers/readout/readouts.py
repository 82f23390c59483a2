"""From a backend's raw answer to a number. Pure functions; p always refers to what the prompt asked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlaif.backends.base import ChoiceScores, SequenceScore, SimilarityScore
from rlaif.labelers.readout.verdict_text import verdict_of
from rlaif.labelers.templates import Polarity
from rlaif.options.labeling import ReadoutOptions
from rlaif.records import ParseState, Provenance

SCORES = tuple(str(rank) for rank in range(1, 11))
LOWEST = {"score": 1.0, "reference": -1.0}
"""The lower end of the scales that have one."""


@dataclass(frozen=True)
class Reading:
    """A value (None unless `state` is `ok`) with the total probability of the choices (`mass`)."""

    value: float | None
    state: ParseState
    provenance: Provenance
    mass: float | None = None
    note: str = ""


def sigmoid(value: float) -> float:
    """1 / (1 + exp(-value)) without overflow."""
    if value >= 0:
        return 1.0 / (1.0 + math.exp(-value))
    return math.exp(value) / (1.0 + math.exp(value))


def read_choice(scores: ChoiceScores, *, temperature: float, min_mass: float = 0.0) -> Reading:
    """Probability of the first of two choices: softmax over their log-probabilities / `temperature`.

    If the two together carry less than `min_mass` of the next token, the answer says something else and is unparsed:
    the tail of a distribution is not a verdict. If a server returns only one of the two, the other's probability is
    between 0 and what is left (or the lowest that the server returns, if that is less). If the returned choice is
    certain to win, the value is the middle of the possible range of p, with provenance `top_k`; otherwise the answer
    is unparsed. Shares of sampled answers have provenance `frequency`.
    """
    if scores.error is not None:
        return Reading(None, "failed", "logprob", note=scores.error)
    first, second = scores.logprobs
    mass = _mass(math.exp(value) for value in (first, second) if value is not None)
    if mass < min_mass:
        return Reading(None, "unparsed", scores.source, mass)
    if first is not None and second is not None:
        if first == second == -math.inf:
            return Reading(None, "unparsed", scores.source, 0.0)
        return Reading(sigmoid((first - second) / temperature), "ok", scores.source, mass)
    missing = max(0.0, 1.0 - mass)
    if scores.ceiling is not None:
        missing = min(missing, math.exp(scores.ceiling))
    if mass <= missing:
        return Reading(None, "unparsed", "top_k", mass)
    known = (mass / (mass + missing) + 1.0) / 2.0
    return Reading(known if first is not None else 1.0 - known, "ok", "top_k", mass)


def hides_ten(scores: ChoiceScores) -> bool:
    """Whether it is not known how the engine splits "10": its "1" may be the beginning of "10".

    Sampled answers are compared as text, where every "10" begins with "1".
    """
    return scores.error is None and scores.source == "logprob" and not scores.token_counts


def read_score(scores: ChoiceScores, *, min_mass: float = 0.0) -> Reading:
    """Expected score over "1".."10", with normalised probabilities (direct RLAIF, Lee et al. 2023, arXiv:2309.00267).

    For most tokenizers "10" is two tokens and begins with "1". Then p("1" as a sequence) covers it:
    p(1) = p("1") - p("10") = p("1")(1 - p("0" after "1")). If the engine says that "10" is one token
    (`token_counts`), nothing is subtracted; if it does not say (`hides_ten`), there is no score. Scores missing from
    a server's answer count as 0 as long as the others hold more than half of the probability. Otherwise, or if all
    carry less than `min_mass` of the next token, the answer is unparsed.
    """
    if scores.error is not None:
        return Reading(None, "failed", "score", note=scores.error)
    if hides_ten(scores):
        return Reading(None, "unparsed", "score")
    weights = [0.0 if value is None else math.exp(value) for value in scores.logprobs]
    if not scores.token_counts or scores.token_counts[-1] > scores.token_counts[0]:
        weights[0] = max(0.0, weights[0] - weights[-1])
    mass, total = _mass(weights), math.fsum(weights)
    partial = None in scores.logprobs
    kind: Provenance = "top_k" if partial else "frequency" if scores.source == "frequency" else "score"
    if mass == 0.0 or mass < min_mass or (partial and mass <= 0.5):
        return Reading(None, "unparsed", kind, mass)
    expected = math.fsum(rank * weight for rank, weight in enumerate(weights, start=1)) / total
    return Reading(expected, "ok", kind, mass)


def read_likelihood(answers: Sequence[SequenceScore], options: ReadoutOptions) -> Reading:
    """How well a response and its context explain each other, in nats (per token if normalised).

    `forward`: log p(response | context) - w log p(response | empty context), over the response's tokens. With the
    weight w = `prior_weight` at 1 this is pointwise mutual information, whose sum over many tokens favours long
    responses; a smaller weight takes less of what is said without the context off.
    `reverse`: log p(context | response), over the context's tokens (the same for both responses).
    Without a token to score (an empty response, forward) there is no value.
    """
    errors = [answer.error for answer in answers if answer.error is not None]
    if errors:
        return Reading(None, "failed", "likelihood", note=errors[0])
    prior = options.prior_weight * answers[1].logprob if options.direction == "forward" else 0.0
    value = answers[0].logprob - prior
    if answers[0].tokens == 0 or not math.isfinite(value):
        return Reading(None, "unparsed", "likelihood")
    return Reading(value / answers[0].tokens if options.normalize == "tokens" else value, "ok", "likelihood")


def read_similarity(answers: Sequence[SimilarityScore]) -> Reading:
    """Cosine similarity to the reference, from -1 to 1; no value without a reference (no answer)."""
    if not answers:
        return Reading(None, "unparsed", "reference", note="its prompt has no reference")
    if answers[0].error is not None:
        return Reading(None, "failed", "reference", note=answers[0].error)
    return Reading(answers[0].similarity, "ok", "reference")


def read_text(text: str, *, polarity: Polarity = "better", cut: bool = False) -> Reading:
    """The verdict with which a generation *opens*, as 1.0 (first) or 0.0 (second); see `verdict_of`."""
    verdict = verdict_of(text, polarity=polarity, cut=cut)
    return (
        Reading(None, "unparsed", "text") if verdict is None else Reading(float(verdict == 1), "ok", "text")
    )


def _mass(weights: Iterable[float]) -> float:
    """The sum of probabilities; low-precision rounding may lift it above 1."""
    return min(1.0, math.fsum(weights))


def preference_of_scores(score_a: float, score_b: float, *, temperature: float) -> float:
    """p_a = sigmoid((score_a - score_b) / temperature)."""
    return sigmoid((score_a - score_b) / temperature)
