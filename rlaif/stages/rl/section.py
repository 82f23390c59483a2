"""What the report says about RL: how far the reward rose, its scale, and where the policy went."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rlaif.figures.rows import REWARD, Summary, both_sides, change_text
from rlaif.stats import Interval, linear_trend
from rlaif.tracking.runs import Row, interval, number, series
from rlaif.tracking.text import plain, signed


@dataclass(frozen=True)
class RewardRise:
    """The proxy reward at the start and the end of RL, on a line through all iterations.

    `change` is that line's rise with its interval, without bounds if too few iterations are known. Without a history,
    baseline and policy on the evaluation's prompts stand in for start and end.
    """

    start: float
    end: float
    change: Interval

    @property
    def clear(self) -> bool:
        """Whether it rose beyond doubt."""
        return self.change.low > 0


def reward_rise(summary: Summary, history: Sequence[Row] = ()) -> RewardRise | None:
    """How far RL raised its reward; None if unknown."""
    values = series(history, "rl/reward")[1]
    if len(values) < 2:
        end, start = both_sides(summary, REWARD)
        if start is None or end is None:
            return None
        gain = interval(summary, "eval/reward_gain")
        low, high = (gain.low, gain.high) if gain else (math.nan, math.nan)
        return RewardRise(start, end, Interval(end - start, low, high, 0))
    change = linear_trend(values)
    middle = statistics.fmean(values)
    return RewardRise(middle - change.estimate / 2, middle + change.estimate / 2, change)


def rl_lines(summary: Summary, history: Sequence[Row]) -> dict[str, tuple[str, str] | None]:
    """Values and notes of the result table's lines that combine several metrics; None for unknown ones."""
    lines = {"rl/reward_scale": _scale_line(summary), "rl/reward_held_out": _held_out_line(summary)}
    rise = reward_rise(summary, history)
    if rise is not None:
        lines["rl/reward"] = (
            f"{plain(rise.start)} → {plain(rise.end)}",
            f"{change_text(rise.change)}; ends of a line through all iterations",
        )
    return lines


def _scale_line(summary: Summary) -> tuple[str, str] | None:
    """How much raw reward 1 stands for, in the reward and in every penalty."""
    words, sd = summary.get("rl/reward_scale"), number(summary, "rl/reward_raw_sd")
    return ("" if sd is None else f"{plain(sd)} raw", str(words)) if words else None


def _held_out_line(summary: Summary) -> tuple[str, str] | None:
    """The proxy on prompts that the reward model was not trained on, with the interval of its gain."""
    name = "rl/reward_held_out"
    start, end = both_sides(summary, (f"{name}_start", name))
    gain, found = number(summary, f"{name}_gain"), interval(summary, f"{name}_gain")
    if start is None or end is None or gain is None:
        return None
    bounds = f", 95% interval {signed(found.low)} to {signed(found.high)}" if found else ""
    return f"{plain(start)} → {plain(end)}", f"{signed(gain)}{bounds}"
