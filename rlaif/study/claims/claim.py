"""A claim as an experiment file states it, before anything is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.errors import UserError
from rlaif.options.read import plain, read
from rlaif.options.rules import ABSENT, Finite, From0, Name, Positive, shown
from rlaif.stages.common.context import Context
from rlaif.stats.effects.contrast import Relation
from rlaif.study.arms import ALL, has_key, node_of
from rlaif.tracking.glossary import unknown


@dataclass(frozen=True, kw_only=True)
class CostOptions:
    """`claim.effect.cost`: the price of a person's label over that of arm `arm`'s labels.

    `usd_in` and `usd_out`: US dollars per million tokens read and written; `person`: US dollars per label.
    """

    arm: Name
    usd_in: From0
    usd_out: From0
    person: Positive


@dataclass(frozen=True, kw_only=True)
class EffectOptions:
    """`claim.effect`, minus `against`: one of three kinds.

    `weights` (arm: weight) of the arms' means of `metric`; the win rate of the first of `meeting` over the second; or
    the ratio of prices that `cost` describes.
    """

    metric: str = ABSENT
    weights: Any = ABSENT
    meeting: tuple[str, ...] = ABSENT
    cost: CostOptions = ABSENT
    against: Finite = 0.0

    @property
    def kind(self) -> str:
        """`weights`, `meeting` or `cost`."""
        own = [name for name in ("weights", "meeting", "cost") if getattr(self, name) is not ABSENT]
        if len(own) != 1 or (own == ["weights"]) != (self.metric is not ABSENT):
            raise UserError(
                "claim.effect needs metric and weights, or meeting, or cost: write one of the three"
            )
        return own[0]

    @property
    def arms(self) -> list[str]:
        """The arms that it is about."""
        named = {"weights": lambda: list(self.weights), "meeting": lambda: list(self.meeting)}
        return named.get(self.kind, lambda: [self.cost.arm])()


@dataclass(frozen=True, kw_only=True)
class Claim:
    """`claim`: a hypothesis, the effect that it is about, and what the effect has to be.

    `paper` says what Lee et al. 2023 found, `smallest` is the smallest effect of interest in the effect's unit, and
    `needs` has the configuration keys that the user must set first, with the words for what they name.
    """

    id: Name
    title: Name
    hypothesis: Name
    paper: Name
    effect: EffectOptions
    relation: Relation
    smallest: From0
    needs: Any = ABSENT


def read_claim(ctx: Context) -> Claim | None:
    """The experiment's claim; None without one. Raises UserError for one that cannot be judged."""
    values = plain(ctx.options.claim)
    if not values:
        return None
    claim = read(Claim, values, "claim")
    if claim.effect.kind == "weights":
        _check_weights(claim.effect)
    if claim.effect.kind == "meeting" and (len(claim.effect.meeting) != 2 or ctx.options.compare != ALL):
        raise UserError(
            "claim.effect.meeting needs two arms that met: write meeting: [FIRST, SECOND] and compare: all"
        )
    return claim


def _check_weights(effect: EffectOptions) -> None:
    if unknown([effect.metric]) or effect.metric.count("/") != 1:
        raise UserError(
            f"claim.effect.metric={effect.metric} is not a metric: write one such as label/alignment"
        )
    weights = effect.weights
    if not isinstance(weights, dict) or not weights or not all(map(_is_number, weights.values())):
        raise UserError(
            f"claim.effect.weights={shown(weights)} does not weigh arms: write {{ARM: 1, OTHER: -1}}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_arms(claim: Claim, arms: Sequence[str]) -> None:
    """Raises UserError if the claim is about an arm that the experiment does not have."""
    for name in claim.effect.arms:
        if name not in arms:
            raise UserError(f"claim.effect: {name} is not an arm: write one of {', '.join(arms)}")


def missing(ctx: Context, claim: Claim) -> list[str]:
    """What the claim needs and the user has not named: `a larger labeler (ledger.large_labeler)`.

    Raises UserError for a key that does not exist, which nobody could set.
    """
    needs = {} if claim.needs is ABSENT else claim.needs
    for key in needs:
        if not has_key(ctx.options, key):
            raise UserError(
                f"claim.needs: {key} is not a configuration key: write one such as ledger.large_labeler"
            )
    return [f"{words} ({key})" for key, words in needs.items() if node_of(ctx.options, key) is None]
