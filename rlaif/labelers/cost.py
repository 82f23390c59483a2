"""What labeling costs: token prices, and bounds on money and time that stop it between batches."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlaif.errors import UserError

_PER = 1e6


@dataclass(frozen=True)
class Price:
    """US dollars per million prompt tokens, generated tokens, and prompt tokens from a cache."""

    tokens_in: float
    tokens_out: float
    tokens_cached: float

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, place: str) -> Price:
        """A price from `{in, out, cached}`; anything but three numbers >= 0 is a UserError that names `place`."""
        fit = set(values) == {"in", "out", "cached"} and all(
            isinstance(value, int | float) and math.isfinite(value) and value >= 0
            for value in values.values()
        )
        if not fit:
            raise UserError(
                f"{place} is {dict(values)}: write in, out and cached, each in US dollars per million tokens"
            )
        return cls(values["in"], values["out"], values["cached"])

    def usd(self, tokens_in: float, tokens_out: float, tokens_cached: float) -> float:
        """US dollars; `tokens_in` counts all prompt tokens, including `tokens_cached`."""
        fresh = (tokens_in - tokens_cached) * self.tokens_in
        return (fresh + tokens_cached * self.tokens_cached + tokens_out * self.tokens_out) / _PER


FREE = Price(0.0, 0.0, 0.0)


@dataclass
class _Spent:
    calls: int = 0
    usd: float = 0.0
    seconds: float = 0.0


class Meter:
    """What a labeler has spent since its first call, and whether a bound leaves room for more.

    The next batch is expected to cost the mean of its phase's calls so far (a rationale costs many times a verdict).
    A phase's first batch has no such mean and is allowed while the bound is not yet exceeded, so a bound is exceeded
    by one batch at most.

    Args:
        name: the labeler's key in the configuration, for messages.
        price: None if not known; then there can be no `budget_usd`.
        budget_usd: US dollars, None for no bound.
        max_seconds: wall-clock seconds from the first call, None for no bound.
        clock: returns the time in seconds.

    Raises UserError for a bound that is not a number above 0, ValueError for a budget without a price.
    """

    def __init__(
        self,
        *,
        name: str,
        price: Price | None,
        budget_usd: float | None,
        max_seconds: float | None,
        clock: Callable[[], float],
    ) -> None:
        for key, bound in (("budget_usd", budget_usd), ("max_seconds", max_seconds)):
            number = isinstance(bound, int | float) and not isinstance(bound, bool) and bound > 0
            if bound is not None and not number:
                raise UserError(f"{name}.{key} is {bound!r}; write a number above 0, or null for no bound")
        if budget_usd is not None and price is None:
            raise ValueError("a budget needs a price")
        self._name, self._price, self.clock = name, price, clock
        self._budget_usd, self._max_seconds = budget_usd, max_seconds
        self._phases: dict[str, _Spent] = defaultdict(_Spent)
        self._started: float | None = None

    @property
    def usd(self) -> float | None:
        """US dollars spent so far; None if the price is not known."""
        return None if self._price is None else math.fsum(spent.usd for spent in self._phases.values())

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since the first call."""
        return 0.0 if self._started is None else self.clock() - self._started

    def reached(self, phase: str, calls: int) -> str | None:
        """The bound, as `key=value`, that `calls` more calls of `phase` are expected to exceed; None if none."""
        if self._started is None:
            self._started = self.clock()
        spent = self._phases[phase]
        share = calls / spent.calls if spent.calls else 0.0
        if self._budget_usd is not None and (self.usd or 0.0) + share * spent.usd > self._budget_usd:
            return f"{self._name}.budget_usd={self._budget_usd:g}"
        if self._max_seconds is not None and self.seconds + share * spent.seconds > self._max_seconds:
            return f"{self._name}.max_seconds={self._max_seconds:g}"
        return None

    def add(
        self, phase: str, *, calls: int, tokens_in: int, tokens_out: int, tokens_cached: int, seconds: float
    ) -> None:
        """Count a batch of `phase` that was asked."""
        spent = self._phases[phase]
        spent.calls += calls
        spent.seconds += seconds
        if self._price is not None:
            spent.usd += self._price.usd(tokens_in, tokens_out, tokens_cached)

    def __str__(self) -> str:
        """What was spent, for a sentence."""
        money = "" if self.usd is None else f"{self.usd:.4f} USD and "
        return f"{money}{self.seconds:.1f} s"
