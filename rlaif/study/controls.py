"""Whether a control arm did what it is there for: nothing follows from a length control that did not get longer.

A `length` control is paid for length, or by labels that prefer the longer response: its responses must be longer than
those of the policy that it started from. A `random` control is paid by noise: lengths and KL must have stayed where
they were. "Stayed" is not "no significant difference": the whole interval must lie within a stated bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rlaif.stats import Interval
from rlaif.tracking.text import signed

CONTROLS = ("length", "random")
STILL_KL = (
    0.5  # nats per response: a response's log-probability has then moved by about 1 (its sd is sqrt(2 KL))
)
STILL_ROUGE = 0.03
STILL_LENGTH = 0.1  # of the mean length of the policy that it started from

ControlState = Literal["yes", "failed", "open"]


@dataclass(frozen=True)
class Control:
    """`yes` where the control did its work, `failed` where not, `open` where the data do not tell.

    `measured` names what decided, `found` is its value, `sentence` says both.
    """

    state: ControlState
    measured: str
    found: Interval | None
    sentence: str


def length_control(longer: Interval | None) -> Control:
    """`longer`: length in tokens, policy minus the policy that it started from, on the same prompts."""
    measured = "length, policy minus SFT (tokens)"
    if longer is None or math.isnan(longer.low):
        return Control("open", measured, longer, "whether its responses got longer was not measured")
    if longer.low > 0:
        return Control("yes", measured, longer, f"its responses got longer ({_told(longer)})")
    return Control(
        "failed", measured, longer, f"its responses did not get longer beyond noise ({_told(longer)})"
    )


def random_control(moved: Interval | None, start: float | None, kl: float | None) -> Control:
    """`moved` as in `length_control`, `start` the mean length that it started from, `kl` in nats per response."""
    if kl is not None and kl > STILL_KL:
        return Control(
            "failed",
            "KL from the reference (nats per response)",
            Interval(kl, math.nan, math.nan, 0),
            f"its KL is {kl:.2f} nats per response, above {STILL_KL:g}: noise alone moved it",
        )
    measured = "length, policy minus SFT (tokens)"
    if moved is None or start is None or math.isnan(moved.low):
        return Control("open", measured, moved, "whether its lengths stayed where they were was not measured")
    bound = STILL_LENGTH * start
    stayed = within(moved, bound)
    if stayed == "yes":
        return Control("yes", measured, moved, f"it stayed where it was ({_told(moved)})")
    if stayed == "no":
        words = f"noise alone changed its lengths ({_told(moved)}; at most {bound:.1f} would be none)"
        return Control("failed", measured, moved, words)
    words = (
        f"its lengths may have stayed or moved ({_told(moved)}; within {bound:.1f} they would have stayed)"
    )
    return Control("open", measured, moved, words)


def within(change: Interval | None, bound: float) -> Literal["yes", "no", "open"]:
    """`yes` where the whole interval lies within `bound` of 0, `no` where it leaves 0 out besides, else `open`."""
    if change is None or math.isnan(change.low):
        return "open"
    if -bound <= change.low and change.high <= bound:
        return "yes"
    return "no" if change.low > 0 or change.high < 0 else "open"


@dataclass(frozen=True)
class ControlArm:
    """An arm that others are compared with, in words, and whether it did its work."""

    arm: str
    state: ControlState
    sentence: str

    @property
    def failure(self) -> str:
        """Why nothing is concluded from it; empty where it did its work."""
        if self.state == "yes":
            return ""
        lead = "The control failed" if self.state == "failed" else "The control is undecided"
        return f"{lead}: {self.arm} is there to be compared with, but {self.sentence}. Nothing is concluded from it."


def _told(found: Interval) -> str:
    return f"{signed(found.estimate)} tokens, 95% interval {signed(found.low)} to {signed(found.high)}"
