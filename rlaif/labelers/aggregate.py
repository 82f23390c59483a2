"""Orders and samples: how often and in which order a pair is shown, and how judgements become a preference."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlaif.io import stable_uniform
from rlaif.labelers.readout.readouts import sigmoid
from rlaif.options.labeling import Averaging, OrderMode
from rlaif.records import Judgement, Order, ParseState, Preference, Provenance

_LARGEST_LOGIT = math.log((1.0 - 1e-6) / 1e-6)  # a text verdict is exactly 0 or 1


def orders_of(mode: OrderMode, *, seed: int, pair_id: str) -> tuple[Order, ...]:
    """The orders in which a pair is shown; `random` depends only on the seed and the pair's id."""
    if mode == "first":
        return ("ab",)
    if mode == "random":
        return ("ab",) if stable_uniform("order", seed, pair_id) < 0.5 else ("ba",)
    return ("ab", "ba")


def average(values: Sequence[float], averaging: Averaging) -> float:
    """Mean of probabilities, or the sigmoid of the mean of their logits (clipped to 1e-6 from 0 and 1)."""
    if averaging == "prob":
        return math.fsum(values) / len(values)
    return sigmoid(math.fsum(map(_logit, values)) / len(values))


def _logit(value: float) -> float:
    if value in (0.0, 1.0):
        return math.copysign(_LARGEST_LOGIT, value - 0.5)
    return min(_LARGEST_LOGIT, max(-_LARGEST_LOGIT, math.log(value) - math.log1p(-value)))


def aggregate(
    judgements: Sequence[Judgement], *, orders: Sequence[Order], mode: OrderMode, averaging: Averaging
) -> Preference:
    """A pair's preference from its judgements.

    An order's value is the mean over its parsed samples. The preference exists only if **every** order in `orders` has
    a value: falling back to one order would let position bias back in. A pair without a value in some order is
    `failed` if a call failed there, otherwise `unparsed`. With `both_consistent`, a pair whose orders disagree about
    the winner is also `unparsed`, but keeps both orders' values, which distinguishes it from one that could not be
    read. `samples` counts the parsed samples per order (the fewer of the two).
    """
    values: dict[Order, float | None] = {"ab": None, "ba": None}
    counts: list[int] = []
    for order in orders:
        parsed = [j.p_a for j in judgements if j.order == order and j.p_a is not None]
        values[order] = math.fsum(parsed) / len(parsed) if parsed else None
        counts.append(len(parsed))
    present = [value for order in orders if (value := values[order]) is not None]
    state = _state(judgements, orders, values)
    if state == "ok" and mode == "both_consistent" and math.prod(value - 0.5 for value in present) < 0:
        state = "unparsed"
    return Preference(
        pair_id=judgements[0].pair_id,
        p_a=average(present, averaging) if state == "ok" else None,
        p_ab=values["ab"],
        p_ba=values["ba"],
        samples=min(counts),
        state=state,
        provenance=_provenance(judgements, max(counts)),
    )


def is_inconsistent(preference: Preference) -> bool:
    """Whether `both_consistent` set the pair aside although both orders could be read."""
    return preference.p_a is None and preference.p_ab is not None and preference.p_ba is not None


def _state(
    judgements: Sequence[Judgement], orders: Sequence[Order], values: dict[Order, float | None]
) -> ParseState:
    missing = [order for order in orders if values[order] is None]
    if not missing:
        return "ok"
    return "failed" if any(j.state == "failed" and j.order in missing for j in judgements) else "unparsed"


def _provenance(judgements: Sequence[Judgement], samples: int) -> Provenance:
    kinds = [judgement.provenance for judgement in judgements if judgement.state == "ok"]
    if not kinds:
        return judgements[0].provenance
    if "top_k" in kinds:
        return "top_k"
    return "frequency" if kinds[0] == "text" and samples > 1 else kinds[0]
