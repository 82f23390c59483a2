"""The arms of a comparison as numbers: means over seeds, tests on the same items, points of a curve."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from rlaif.stats import ALPHA, arm_interval, paired_difference, paired_tests, tied_groups
from rlaif.study.items import SeedScores, common_items, paired_row, seed_scores, seed_table, tested_metric
from rlaif.tracking.glossary import describe
from rlaif.tracking.runs import Row, Scalar, interval, number
from rlaif.tracking.text import is_percent, lower_is_better

Rows = list[dict[str, Any]]
Summaries = Sequence[Mapping[str, Scalar]]
Items = Sequence[Sequence[Row]]
LETTERED = (
    52  # arms of which groups can still be read; finding them takes time that grows with the pairs' square
)
_RANGE = re.compile(r"\[(-?\d+), (\d+)\]")
_LOST = ("_ci_low", "_ci_high", "p_value")  # endings of metrics that have no mean over seeds


def mean_summary(summaries: Summaries, items: Items) -> dict[str, Any]:
    """One arm's summary from those of its seeds, with `items`, one table of single test items per seed.

    A single seed's summary stays as it is. Of several, numbers are means over the seeds that have them; metrics in
    `items` get an interval that carries the variance of seeds and items. Others keep an interval if each seed has one:
    the seeds' scatter (Student's t) is added to their own variance, which is wider than by items. A mean of p-values is
    not a p-value: that of the win rate is computed anew over seeds and prompts, others are left out. Text stays if all
    seeds agree; a warning says how many seeds it is true of.
    """
    if len(summaries) == 1:
        return dict(summaries[0])
    names = [name for name in dict.fromkeys(n for s in summaries for n in s) if not name.endswith(_LOST)]
    merged = {
        name: (_warned if name.endswith("/warning") else _merged)(
            [summary.get(name) for summary in summaries]
        )
        for name in names
    }
    for name in [name for name in merged if all(f"{name}_ci_low" in summary for summary in summaries)]:
        merged |= _over_seeds(name, summaries)
    measured = {name for rows in items for row in rows for name in row if name in merged}
    for name in sorted(measured):
        scores = seed_scores(items, name)
        mean = number(merged, name)
        if scores and mean is not None:
            merged |= _measured(name, mean, scores)
    return merged


def _over_seeds(name: str, summaries: Summaries) -> dict[str, float]:
    """The interval of a mean over seeds, from each seed's own value and interval."""
    found = [one for summary in summaries if (one := interval(summary, name)) is not None]
    if len(found) < len(summaries):
        return {}
    values = [one.estimate for one in found]
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    items = statistics.fmean(((one.high - one.low) / 2) ** 2 for one in found)
    seeds = float(student.ppf(0.975, len(found) - 1)) ** 2 * spread**2 / len(found)
    half = math.sqrt(items + seeds)
    return _bounds(name, mean - half, mean + half)


def _bounds(name: str, low: float, high: float) -> dict[str, float]:
    """The interval's ends, within the metric's range if that has two ends."""
    metric = describe(name)
    ends = _RANGE.match(metric.range) if metric is not None else None
    if ends is not None:
        low, high = max(low, float(ends[1])), min(high, float(ends[2]))
    return {f"{name}_ci_low": low, f"{name}_ci_high": high}


def _warned(values: Sequence[Any]) -> str | None:
    """The seeds' warnings, each sentence once, with the number of seeds that have it if not all do."""
    counts = Counter(str(value) for value in values if value)
    sentences = (
        sentence if count == len(values) else f"({count} of {len(values)} seeds) {sentence}"
        for sentence, count in counts.items()
    )
    return " ".join(sentences) or None


def _merged(values: Sequence[Any]) -> Any:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if numbers and len(numbers) == sum(value is not None for value in values):
        return statistics.fmean(numbers)
    return values[0] if len(set(values)) == 1 else None


def _measured(name: str, mean: float, scores: SeedScores) -> dict[str, float]:
    """The interval over seeds and items, about the mean of the seeds' own values (of all their items).

    A win rate also gets its p against 50%.
    """
    table, prompts = seed_table(scores, list(scores)), [prompt for prompt, _ in scores.values()]
    found = arm_interval(table, prompts)
    bounds = _bounds(name, mean + found.low - found.estimate, mean + found.high - found.estimate)
    if name != "eval/win_rate":
        return bounds
    return bounds | {"eval/p_value": paired_difference(table, np.full_like(table, 0.5), prompts)[1]}


def compare_items(items: Mapping[str, Items], metrics: Sequence[str]) -> Rows:
    """Tests of every pair of arms on the first of `metrics` whose test items all arms share; empty without any.

    Rows are those of `paired_row`, the best arm's pairs first, with the `metric` and the number of `seeds`.
    """
    for metric in metrics if len(items) > 1 else ():
        scores = {arm: seed_scores(tables, tested_metric(metric)) for arm, tables in items.items()}
        shared = common_items(scores)
        if shared:
            keys, prompts = [key for key, _ in shared], [prompt for _, prompt in shared]
            sign = -1.0 if lower_is_better(metric) else 1.0
            values = {arm: sign * seed_table(own, keys) for arm, own in scores.items()}
            seeds = min(map(len, values.values()))
            outcomes = None if is_percent(metric) else False  # a ROUGE of 0 or 1 is neither a loss nor a win
            tests = paired_tests(
                {arm: table[:seeds] for arm, table in values.items()}, prompts, outcomes=outcomes
            )
            return [{"metric": metric, "seeds": seeds, **paired_row(test, sign)} for test in tests]
    return []


def standing(tests: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """For each tested arm, whether it is `best`, its `p_holm` against the best, and its `group`.

    Arms that share a letter in their groups do not differ at 5% after Holm's correction; beyond `LETTERED` arms
    there are no letters.
    """
    if not tests:
        return {}
    best = str(tests[0]["first"])
    against = {str(test["second"]): test["p_holm"] for test in tests if test["first"] == best}
    different = [(str(t["first"]), str(t["second"])) for t in tests if t["p_holm"] < ALPHA]
    arms = [best, *against]
    groups = tied_groups(arms, different) if len(arms) <= LETTERED else dict.fromkeys(arms, "")
    return {
        arm: {"best": arm == best, "p_holm": against.get(arm), "group": group}
        for arm, group in groups.items()
    }


def curve_rows(arms: Sequence[Row], *, x: str, y: Sequence[str], by: str | None) -> Rows:
    """Points of the curves: one row per arm and metric of `y`, if it has both x and y.

    `x` and `by` are columns of `arms`; points with one value of `by` form a line, in the order of x.
    """
    rows = [
        {
            "line": "" if by is None else str(arm.get(by)),
            "by": by,
            "x_name": x,
            "x": place,
            "metric": metric,
            "value": value,
            "ci_low": number(arm, f"{metric}_ci_low"),
            "ci_high": number(arm, f"{metric}_ci_high"),
            "seeds": arm["seeds"],
            "arm": arm["arm"],
        }
        for arm in arms
        for metric in y
        if (place := number(arm, x)) is not None and (value := number(arm, metric)) is not None
    ]
    lines = list(dict.fromkeys(row["line"] for row in rows))
    return sorted(rows, key=lambda row: (lines.index(row["line"]), row["x"], list(y).index(row["metric"])))
