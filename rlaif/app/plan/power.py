"""stage=doctor planner.effect=...: how many prompts and seeds find a difference of that size."""

from __future__ import annotations

import math

from rlaif.errors import UserError
from rlaif.options.job import PlannerOptions
from rlaif.options.rules import shown
from rlaif.stages.common.context import Context
from rlaif.stats.effects.power import Components, detectable, items_needed
from rlaif.study.claims.scatter import ALONE, known_scatter
from rlaif.tracking.glossary import unknown
from rlaif.tracking.runs import find_runs
from rlaif.tracking.text import FORMATS, is_percent, metric_label, percent


def power_plan(ctx: Context) -> str:
    """Lines of text: for each number of seeds, the prompts (or pairs) that are enough for `planner.effect`.

    Raises UserError for a metric that does not exist, or of which no finished run has test items.
    """
    own = ctx.options.planner
    assert own.effect is not None
    if not isinstance(own.seeds, list | tuple) or not all(
        isinstance(one, int) and one >= 1 for one in own.seeds
    ):
        raise UserError(
            f"planner.seeds={shown(own.seeds)} is not a list of numbers of seeds: write [1, 3, 5]"
        )
    if unknown([own.metric]):
        raise UserError(f"planner.metric={own.metric} is not a metric: write one such as eval/win_rate")
    found = known_scatter(find_runs(ctx.root), own.metric)
    if not found:
        raise UserError(
            f"no finished run below {ctx.root} has test items of {own.metric}, so its scatter is unknown: first run a "
            "stage or an experiment that measures it, at any size"
        )
    return "\n".join(
        line for kind, (parts, count) in found.items() for line in _lines(own, own.effect, kind, parts, count)
    )


def _lines(own: PlannerOptions, effect: float, kind: str, parts: Components, count: int) -> list[str]:
    label = metric_label(own.metric)
    neutral = "an arm's own distance from chance" if kind == ALONE else "a difference between two arms"
    size = FORMATS["points" if is_percent(own.metric) else "signed"].value(effect).removeprefix("+")
    evidence = f"{count} comparison{'s' if count > 1 else ''} of finished runs"
    head = f"{label}, {neutral} of {size}, found with probability {percent(own.power, 0)} (from {evidence}):"
    return [head, *(_line(parts, effect, seeds, own.power) for seeds in own.seeds), *_doubts(parts)]


def _line(parts: Components, effect: float, seeds: int, power: float) -> str:
    name = "1 seed (nothing is said about other seeds)" if seeds == 1 else f"{seeds} seeds"
    if seeds > 1 and math.isnan(parts.seeds):
        return f"  {name}: not known"
    needed = items_needed(parts, effect, seeds, power=power)
    if needed is None:
        least = detectable(parts, 1_000_000, seeds, power=power)
        return f"  {name}: no number of test items is enough (at best {least:.3g})"
    return f"  {name}: {needed:,} test items"


def _doubts(parts: Components) -> list[str]:
    if math.isnan(parts.seeds):
        return ["  How much seeds differ is not known: run an experiment with several (repeats=3)"]
    share = math.sqrt(parts.seeds)
    return [
        f"  Seeds scatter by {share:.3g} (standard deviation, {parts.seed_freedom:.0f} degrees of freedom)"
        + (", which is little to go by" if parts.seed_freedom < 10 else "")
    ]
