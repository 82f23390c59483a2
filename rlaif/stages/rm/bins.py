"""Where a reward model is right: by its label's confidence, by length, by the ensemble's disagreement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from scipy.special import expit

from rlaif.stages.common.measures.bins import (
    LENGTHS,
    Scored,
    confidence_bin,
    confidence_edges,
    length_bin,
    rate,
)
from rlaif.stages.common.measures.joining import folded
from rlaif.stages.rm.scored_pairs import ScoredPair
from rlaif.stats import reliability_bins

# Which bin a pair falls into, given the target (label or gold) that its rewards are held against.
BinOf = Callable[[ScoredPair, float], str | None]
Bins = list[dict[str, Any]]


def reward_confidence_bins(rows: Sequence[ScoredPair]) -> Bins:
    """A row for each bin of the label's |p - 0.5| that has decided pairs (edges as for labelers).

    `n` and `accuracy` against the labels, `gold_n` and `gold_accuracy` against gold where there is any,
    both with 95% intervals that keep prompts together; so are the other tables of this module.
    """
    edges = confidence_edges()

    def bin_of(row: ScoredPair, target: float) -> str | None:
        return None if row.p_a is None else edges[confidence_bin(row.p_a)]["bin"]

    return _table(rows, edges, bin_of)


def reward_length_bins(rows: Sequence[ScoredPair]) -> Bins:
    """Accuracy where the response that the target prefers is the shorter, a similar, or the longer one.

    Lengths in tokens; similar ones differ by at most 10% of the longer. A reward that is little but length
    is right on `longer` and wrong on `shorter`.
    """

    def bin_of(row: ScoredPair, target: float) -> str | None:
        a, b = row.tokens_a, row.tokens_b
        return length_bin(a, b) if target > 0.5 else length_bin(b, a)

    return _table(rows, [{"bin": name} for name in LENGTHS], bin_of)


def disagreement_bins(rows: Sequence[ScoredPair]) -> Bins:
    """Accuracy of the half of the pairs on which the members agree most (`low`), and of the other half.

    Halves at the median disagreement, pairs at the median in `low`. Empty for a model without an ensemble.
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

    `curve` is `as trained`, and `fitted` for logits divided by `temperature` where there is one.
    """
    labelled = [(row.logit, row.p_a) for row in rows if row.p_a is not None]
    curves = {"as trained": 1.0} | ({"fitted": temperature} if temperature else {})
    return [
        {"curve": name} | asdict(one)
        for name, divisor in curves.items()
        for one in reliability_bins(
            *folded([float(expit(x / divisor)) for x, _ in labelled], [y for _, y in labelled])
        )
    ]


def _table(rows: Sequence[ScoredPair], bins: Sequence[dict[str, Any]], bin_of: BinOf) -> Bins:
    own: dict[str | None, list[Scored]] = {}
    gold: dict[str | None, list[Scored]] = {}
    for row in rows:
        for found, target, right in ((own, row.p_a, row.right), (gold, row.gold, row.gold_right)):
            if target is not None and right is not None:
                found.setdefault(bin_of(row, target), []).append((row.cluster, right))
    table = []
    for edges in bins:
        name = edges["bin"]
        if name in own or name in gold:
            columns = edges | rate("n", "accuracy", own.get(name, []))
            table.append(columns | (rate("gold_n", "gold_accuracy", gold.get(name, [])) if gold else {}))
    return table
