"""Where a reward model's training labels come from: the labeler, gold, a mix of both, or a control.

Each choice about a pair is a hash of (seed, pair id): it does not depend on the other pairs, the number of preferences
or the noise. So a smaller training set is a subset of a larger one, with the same labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from rlaif.data.datamodule import PreferenceRow
from rlaif.errors import UserError
from rlaif.io import stable_uniform
from rlaif.ops import confidence_weight, harden
from rlaif.records import Preference

MIXES = ("mixed", "ai_then_gold")


@dataclass(frozen=True)
class LabelSource:
    """How labels are chosen and corrupted.

    Args:
        labels: `ai` (the labeler's preferences), `gold` (people's), `mixed` (gold for half of the pairs, drawn by
            hash), `ai_then_gold` (the labels of `mixed`, but the AI labels are trained on first) or `shuffled` (the AI
            labels permuted among the training pairs, so that no preference can be learnt from them).
        noise: probability that a training label p becomes 1 - p.
        n: number of training preferences, None for all; counted before `min_confidence`, as labels paid for.
        min_confidence: training pairs whose |p - 0.5| is below it are dropped.
        hard: whether labels are rounded to 0 or 1 (0.5 stays).
        confidence_exponent: c in a pair's weight (2 |p - 0.5|)^c, with p before rounding.
    """

    labels: str
    noise: float
    n: int | None
    min_confidence: float
    hard: bool
    confidence_exponent: float
    seed: int

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
class TrainingRows:
    """Rows by phase (trained one after another), and how many pairs were dropped and flipped on the way."""

    phases: tuple[tuple[PreferenceRow, ...], ...]
    dropped: int
    flipped: int


def labelled(
    rows: Sequence[PreferenceRow],
    preferences: Mapping[str, Preference],
    people: Mapping[str, float],
    source: LabelSource,
) -> list[PreferenceRow]:
    """The rows with the source's own label p_a, neither flipped nor shuffled.

    A pair without a readable verdict, or without people's label if gold is its label, is left out. `preferences` are
    the labeler's and `people` people's labels, by pair id; empty if the source needs none.
    """
    ids = [row.pair.id for row in rows]
    own = [people.get(name) if source.is_gold(name) else preferences[name].p_a for name in ids]
    return [replace(row, p_a=p_a) for row, p_a in zip(rows, own, strict=True) if p_a is not None]


def training_rows(rows: Sequence[PreferenceRow], source: LabelSource) -> TrainingRows:
    """The training pairs' rows, given with their own labels, as the loss sees them, in order.

    Phases without rows are left out. Raises UserError if `min_confidence` leaves nothing.
    """
    chosen = _first(_shuffled(rows, source.seed) if source.labels == "shuffled" else rows, source)
    found = corrupted(chosen, source)
    (ready,) = found.phases
    if not ready:
        raise UserError(
            f"none of {len(chosen)} training labels is as far from 0.5 as rm.min_confidence="
            f"{source.min_confidence}: write a lower one"
        )
    phases = [ready]
    if source.labels == "ai_then_gold":
        phases = [
            tuple(row for row in ready if source.is_gold(row.pair.id) == gold) for gold in (False, True)
        ]
    return replace(found, phases=tuple(filter(None, phases)))


def corrupted(rows: Sequence[PreferenceRow], source: LabelSource) -> TrainingRows:
    """The rows, in one phase, without unsure labels, and with the noise, rounding and weights of `source`."""
    kept = [row for row in rows if abs(row.p_a - 0.5) >= source.min_confidence]
    flips = [stable_uniform("rm-noise", source.seed, row.pair.id) < source.noise for row in kept]
    ready = [
        for_loss(replace(row, p_a=1 - row.p_a) if flip else row, source)
        for row, flip in zip(kept, flips, strict=True)
    ]
    return TrainingRows((tuple(ready),), len(rows) - len(kept), sum(flips))


def for_loss(row: PreferenceRow, source: LabelSource) -> PreferenceRow:
    """The row with its label as the loss sees it: rounded if the source says so, with the pair's weight."""
    p = torch.tensor(row.p_a, dtype=torch.float64)
    weight = confidence_weight(p, source.confidence_exponent)
    return replace(row, p_a=float(harden(p) if source.hard else p), weight=float(weight))


def _shuffled(rows: Sequence[PreferenceRow], seed: int) -> list[PreferenceRow]:
    """The same labels, each on another pair (or its own, by chance), permuted by a hash of (seed, id)."""
    donors = sorted(rows, key=lambda row: stable_uniform("rm-shuffle", seed, row.pair.id))
    takers = sorted(row.pair.id for row in rows)
    dealt = {taker: donor.p_a for taker, donor in zip(takers, donors, strict=True)}
    return [replace(row, p_a=dealt[row.pair.id]) for row in rows]


def _first(rows: Sequence[PreferenceRow], source: LabelSource) -> list[PreferenceRow]:
    """`source.n` rows, in order, drawn by hash: a smaller n draws a subset of a larger one's."""
    order = sorted((row.pair.id for row in rows), key=lambda i: stable_uniform("rm-n", source.seed, i))
    drawn = {*order[: source.n]}
    return [row for row in rows if row.pair.id in drawn]
