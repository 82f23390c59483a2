"""Where a reward model's training labels come from: the labeler, gold, a mix of both, or a control.

Each choice about a pair is a hash of (seed, pair id): it stays the same whatever the other pairs, the number
of preferences or the noise. So a smaller training set is a part of a larger one, with the same labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from rlaif.errors import UserError
from rlaif.io import stable_uniform
from rlaif.ops import confidence_weight, harden
from rlaif.records import Pair, Preference

MIXES = ("mixed", "ai_then_gold")
SOURCES = ("ai", "gold", *MIXES, "shuffled")


@dataclass(frozen=True)
class LabelSource:
    """How labels are chosen and spoilt. Raises UserError for a value that makes no sense.

    Args:
        labels: `ai` (the labeler's preferences), `gold`, `mixed` (gold for half of the pairs, drawn by hash),
            `ai_then_gold` (the labels of `mixed`, but the AI labels are trained on first) or `shuffled` (the
            AI labels dealt out anew among the training pairs: what is learnt from them is no preference).
        noise: probability that a training label p is turned into 1 - p.
        n: number of training preferences, None for all. They are counted before `min_confidence`, as
            labels that were paid for.
        min_confidence: training pairs whose |p - 0.5| is below it are dropped.
        hard: whether labels are rounded to 0 or 1 (0.5 stays).
        confidence_exponent: c of a pair's weight (2 |p - 0.5|)^c, of the label before it is rounded.
    """

    labels: str
    noise: float
    n: int | None
    min_confidence: float
    hard: bool
    confidence_exponent: float
    seed: int

    def __post_init__(self) -> None:
        if self.labels not in SOURCES:
            raise UserError(f"rm.labels={self.labels} is not known: write one of {', '.join(SOURCES)}")
        if not 0 <= self.noise <= 1:
            raise UserError(f"rm.label_noise={self.noise} is no probability: write a number from 0 to 1")
        if self.n is not None and (type(self.n) is not int or self.n < 1):
            raise UserError(f"rm.n={self.n} is no number of preferences: write one from 1, or null for all")
        if not 0 <= self.min_confidence <= 0.5:
            raise UserError(
                f"rm.min_confidence={self.min_confidence} is no distance from 0.5: write a number from 0 to 0.5"
            )
        if self.confidence_exponent < 0:
            raise UserError(
                f"rm.confidence_weight={self.confidence_exponent} would weigh undecided pairs most: write 0 or more"
            )

    @property
    def needs_ai(self) -> bool:
        return self.labels != "gold"

    @property
    def needs_gold(self) -> bool:
        return self.labels in ("gold", *MIXES)

    def is_gold(self, pair_id: str) -> bool:
        """Whether this pair's label is gold."""
        if self.labels in MIXES:
            return stable_uniform("rm-mix", self.seed, pair_id) < 0.5
        return self.labels == "gold"


@dataclass(frozen=True)
class TrainingLabel:
    """One training pair's label p_a, as the loss is to see it, and the pair's weight in the loss."""

    pair_id: str
    p_a: float
    weight: float


@dataclass(frozen=True)
class TrainingLabels:
    """Labels by phase (trained one after another), and how many pairs were dropped and flipped on the way."""

    phases: tuple[tuple[TrainingLabel, ...], ...]
    dropped: int
    flipped: int


def own_labels(
    pairs: Sequence[Pair], preferences: Mapping[str, Preference], source: LabelSource
) -> dict[str, float]:
    """The source's own p_a, neither flipped nor shuffled, of each pair that has one, by pair id, in order.

    A pair whose labeler could not be read, or that has no gold where gold is its label, is left out.
    `preferences` are the labeler's, by pair id; empty where the source needs none.
    """
    own = {pair.id: pair.gold if source.is_gold(pair.id) else preferences[pair.id].p_a for pair in pairs}
    return {pair_id: p_a for pair_id, p_a in own.items() if p_a is not None}


def training_labels(own: Mapping[str, float], source: LabelSource) -> TrainingLabels:
    """What the training pairs' `own` labels (p_a by pair id) become for training, in their order.

    Phases without labels are left out. Raises UserError where `min_confidence` leaves nothing.
    """
    dealt = _shuffled(own, source.seed) if source.labels == "shuffled" else own
    chosen = _first(dealt, source)
    kept = {pair_id: p for pair_id, p in chosen.items() if abs(p - 0.5) >= source.min_confidence}
    if not kept:
        raise UserError(
            f"none of {len(chosen)} training labels is as far from 0.5 as rm.min_confidence="
            f"{source.min_confidence}: write a lower one"
        )
    flipped = {i for i in kept if stable_uniform("rm-noise", source.seed, i) < source.noise}
    rows = [for_loss(i, 1 - p if i in flipped else p, source) for i, p in kept.items()]
    phases: tuple[tuple[TrainingLabel, ...], ...] = (tuple(rows),)
    if source.labels == "ai_then_gold":
        phases = tuple(tuple(r for r in rows if source.is_gold(r.pair_id) == gold) for gold in (False, True))
    return TrainingLabels(tuple(filter(None, phases)), len(chosen) - len(kept), len(flipped))


def for_loss(pair_id: str, p_a: float, source: LabelSource) -> TrainingLabel:
    """A label as the loss is to see it: rounded where the source says so, with the pair's weight."""
    p = torch.tensor(p_a, dtype=torch.float64)
    weight = confidence_weight(p, source.confidence_exponent)
    return TrainingLabel(pair_id, float(harden(p) if source.hard else p), float(weight))


def _shuffled(labels: Mapping[str, float], seed: int) -> dict[str, float]:
    """The same labels, each at another pair's id (or its own, by chance); a hash of (seed, id) deals them."""
    donors = sorted(labels, key=lambda i: stable_uniform("rm-shuffle", seed, i))
    dealt = {taker: labels[donor] for taker, donor in zip(sorted(labels), donors, strict=True)}
    return {pair_id: dealt[pair_id] for pair_id in labels}


def _first(labels: Mapping[str, float], source: LabelSource) -> dict[str, float]:
    """`source.n` labels, in order, drawn by hash: the draw of a smaller n is a part of a larger one's."""
    drawn = {*sorted(labels, key=lambda i: stable_uniform("rm-n", source.seed, i))[: source.n]}
    return {pair_id: p for pair_id, p in labels.items() if pair_id in drawn}
