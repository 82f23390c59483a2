"""Where a reward model is right: by its label's confidence, by length, by the ensemble's disagreement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from scipy.special import expit

from rlaif.stages.common.measures.bins import LENGTHS, confidence_bin, confidence_edges, length_bin, rate
from rlaif.stages.common.measures.joining import Scored, folded
from rlaif.stages.rm.scored_pairs import ScoredPair
from rlaif.stats import reliability_bins

# Which bin a pair falls into, given the target (label or gold) that its rewards are compared with.
BinOf = Callable[[ScoredPair, float], str | None]
Bins = list[dict[str, Any]]


def reward_confidence_bins(rows: Sequence[ScoredPair]) -> Bins:
    """A row per bin of the label's |p - 0.5| that has decided pairs (edges as for labelers).

    As in this module's other tables, `n` and `accuracy` are against the labels, `gold_n` and `gold_accuracy` against
    gold if there is any, both with 95% intervals clustered by prompt.
    """
    edges = confidence_edges()

    def bin_of(row: ScoredPair, target: float) -> str | None:
        return None if row.p_a is None else edges[confidence_bin(row.p_a)]["bin"]

    return _table(rows, edges, bin_of)


def reward_length_bins(rows: Sequence[ScoredPair]) -> Bins:
    """Accuracy on pairs whose preferred response, to the target, is shorter, of similar length, or longer.

    Lengths in tokens; similar ones differ by at most 10% of the longer. A reward that is little but length is right
    on `longer` and wrong on `shorter`.
    """

    def bin_of(row: ScoredPair, target: float) -> str | None:
        a, b = row.tokens_a, row.tokens_b
        return length_bin(a, b) if target > 0.5 else length_bin(b, a)

    return _table(rows, [{"bin": name} for name in LENGTHS], bin_of)


def disagreement_bins(rows: Sequence[ScoredPair]) -> Bins:
    """Accuracy on the half of the pairs on which the members agree most (`low`), and on the other half.

    Split at the median disagreement, pairs at the median in `low`. Empty without an ensemble.
    """
    spread = [row.disagreement for row in rows if row.disagreement is not None]
    if not spread:
        return []
    middle = median(spread)

    def bin_of(row: ScoredPair, target: float) -> str | None:
        return None if row.disagreement is None else "high" if row.disagreement > middle else "low"

    return _table(rows, [{"bin": "low"}, {"bin": "high"}], bin_of)


def reward_reliability(rows: Sequence[ScoredPair], temperature: float | None) -> Bins:
    """Bins of the reliability diagram: the probability of the preferred side against its mean label.

    `curve` is `as trained`, and `fitted` for logits divided by `temperature` if there is one.
    """
    logits = [row.logit for row in rows if row.p_a is not None]
    labels = [row.p_a for row in rows if row.p_a is not None]
    curves = {"as trained": 1.0} | ({"fitted": temperature} if temperature else {})
    return [
        {"curve": name} | asdict(one)
        for name, divisor in curves.items()
        for one in reliability_bins(*folded([float(expit(x / divisor)) for x in logits], labels))
    ]


def _table(rows: Sequence[ScoredPair], bins: Sequence[dict[str, Any]], bin_of: BinOf) -> Bins:
    own: dict[str | None, list[Scored]] = {}
    gold: dict[str | None, list[Scored]] = {}
    for row in rows:
        for found, target, right in ((own, row.p_a, row.right), (gold, row.gold, row.gold_right)):
            if target is not None and right is not None:
                found.setdefault(bin_of(row, target), []).append((row.cluster, right))
    return [
        edges
        | rate("n", "accuracy", own.get(edges["bin"], []))
        | (rate("gold_n", "gold_accuracy", gold.get(edges["bin"], [])) if gold else {})
        for edges in bins
        if edges["bin"] in own or edges["bin"] in gold
    ]
