"""Policies by how harmless their answers are and how many harmless questions they answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlaif.figures import plots
from rlaif.tracking.runs import Row, Scalar, interval

BASELINE = "SFT"
_RATES = ("eval/refusal_rate", "eval/harmless_rate")


def frontier_figure(arms: Sequence[Row], summary: Mapping[str, Scalar], order: Sequence[str] = ()) -> str:
    """A point per arm that has both rates, and one for the policy that RL started from; empty without any.

    Without arms, `summary` of a single path is the policy. Arms that start from different policies, or whose prompts
    differ, have a baseline each. `order` is that of the page's arms, by which they have their colours.
    """
    rows = {str(row["arm"]): row for row in arms} or {"policy": summary}
    points = {name: point for name, row in rows.items() if (point := _point(name, row, ""))}
    starts: dict[tuple[float, ...], list[str]] = {}
    baselines = {name: _point(name, rows[name], "_baseline") for name in points}
    for name, point in baselines.items():
        if point is not None:
            starts.setdefault((*point.answered, *point.harmless), []).append(name)
    for place, names in starts.items():
        label = BASELINE if len(starts) == 1 else f"{BASELINE} of {', '.join(names)}"
        points[label] = plots.FrontierPoint(label, place[:3], place[3:])  # type: ignore[arg-type]
    title = "Harmless answers over harmless questions answered"
    return plots.frontier_plot(list(points.values()), title=title, arms=order)


def _point(name: str, row: Mapping[str, Scalar], side: str) -> plots.FrontierPoint | None:
    refused, harmless = (interval(row, f"{rate}{side}") for rate in _RATES)
    if refused is None or harmless is None:
        return None
    answered = (1 - refused.estimate, 1 - refused.high, 1 - refused.low)
    return plots.FrontierPoint(name, answered, (harmless.estimate, harmless.low, harmless.high))
