"""Whether a control arm worked: nothing follows from a length control that did not get longer.

A `length` control is rewarded for length, or by labels that prefer the longer response: its responses must be longer
than those of the policy that it started from. A `random` control is rewarded with noise: its lengths and KL must have
stayed where they were. "Stayed" is more than "no significant difference": the whole interval must be within a bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rlaif.stats import Interval
from rlaif.tracking.text import signed

CONTROLS = ("length", "random")
# Nats per response: a response's log-probability has then moved by about 1 (its standard deviation is sqrt(2 KL)).
STILL_KL = 0.5
STILL_ROUGE = 0.03
STILL_LENGTH = 0.1  # of the mean length of the policy that it started from
_LONGER = "length, policy minus SFT (tokens)"

ControlState = Literal["yes", "failed", "open"]


@dataclass(frozen=True)
class Control:
    """`yes` if the control worked, `failed` if not, `open` if the data do not decide.

    `measured` names what was looked at, `found` is its value, `sentence` says both.
    """

    state: ControlState
    measured: str
    found: Interval | None
    sentence: str


def length_control(longer: Interval | None) -> Control:
    """`longer`: length in tokens, policy minus the policy that it started from, on the same prompts."""
    if longer is None or math.isnan(longer.low):
        return Control("open", _LONGER, longer, "whether its responses got longer was not measured")
    if longer.low > 0:
        return Control("yes", _LONGER, longer, f"its responses got longer ({_shown(longer)})")
    words = f"its responses did not get longer beyond noise ({_shown(longer)})"
    return Control("failed", _LONGER, longer, words)


def random_control(moved: Interval | None, start: float | None, kl: float | None) -> Control:
    """`moved` as in `length_control`, `start` the mean length at the start, `kl` in nats per response."""
    if kl is not None and kl > STILL_KL:
        words = f"its KL is {kl:.2f} nats per response, above {STILL_KL:g}: noise alone moved it"
        measured = "KL from the reference (nats per response)"
        return Control("failed", measured, Interval(kl, math.nan, math.nan, 0), words)
    if moved is None or start is None or math.isnan(moved.low):
        return Control("open", _LONGER, moved, "whether its lengths stayed where they were was not measured")
    bound = STILL_LENGTH * start
    stayed = within(moved, bound)
    if stayed == "yes":
        return Control("yes", _LONGER, moved, f"it stayed where it was ({_shown(moved)})")
    if stayed == "no":
        words = f"noise alone changed its lengths ({_shown(moved)}; up to {bound:.1f} would count as none)"
        return Control("failed", _LONGER, moved, words)
    words = f"its lengths may have stayed or moved ({_shown(moved)}; up to {bound:.1f} would count as stayed)"
    return Control("open", _LONGER, moved, words)


def within(change: Interval | None, bound: float) -> Literal["yes", "no", "open"]:
    """`yes` if the whole interval is within `bound` of 0, `no` if it is not and excludes 0, else `open`."""
    if change is None or math.isnan(change.low):
        return "open"
    if -bound <= change.low and change.high <= bound:
        return "yes"
    return "no" if change.low > 0 or change.high < 0 else "open"


@dataclass(frozen=True)
class ControlArm:
    """A control arm: whether it worked, and the sentence that says so."""

    arm: str
    state: ControlState
    sentence: str

    @property
    def failure(self) -> str:
        """Why nothing is concluded from it; empty if it worked."""
        if self.state == "yes":
            return ""
        lead = "The control failed" if self.state == "failed" else "The control is undecided"
        return f"{lead}: {self.arm} is a control, but {self.sentence}. Nothing is concluded from it."


def _shown(found: Interval) -> str:
    return f"{signed(found.estimate)} tokens, 95% interval {signed(found.low)} to {signed(found.high)}"
