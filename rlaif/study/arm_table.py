"""The arms of a comparison as numbers: means over seeds, tests on the same items, points of a curve."""

from __future__ import annotations

import math
import re
import statistics
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
_RANGE = re.compile(r"\[(-?\d+), (\d+)\]")
_LOST = ("_ci_low", "_ci_high", "p_value")  # what a mean over seeds does not keep


def mean_summary(summaries: Summaries, items: Items) -> dict[str, Any]:
    """One arm's summary from those of its seeds, with `items` a table of single test items for each.

    One seed's summary is its own. Of several, numbers are means over the seeds that have them; the metrics that `items`
    has get an interval that carries the variance of seeds and items. Others keep one where each seed has one: the
    seeds' scatter (Student's t) is added to the seeds' own variance, which is wider than by items. No p-value is a mean
    of p-values: that of the win rate is tested over seeds and prompts, others are left out. Text stays where all seeds
    say the same; a warning says of how many of them it is true.
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
            if name == _WIN_RATE:
                merged[_WIN_RATE_P] = _against_even(scores)
    return merged


def _over_seeds(name: str, summaries: Summaries) -> dict[str, float]:
    """The interval of a mean over seeds, from each seed's own value and interval."""
    values, ranges = [number(s, name) for s in summaries], [interval(s, name) for s in summaries]
    known = [value for value in values if value is not None]
    found = [one for one in ranges if one is not None]
    if len(known) < len(summaries) or len(found) < len(summaries):
        return {}
    mean, spread = statistics.fmean(known), statistics.stdev(known)
    items = statistics.fmean(((one.high - one.low) / 2) ** 2 for one in found)
    seeds = float(student.ppf(0.975, len(known) - 1)) ** 2 * spread**2 / len(known)
    half = math.sqrt(items + seeds)
    return _bounds(name, mean - half, mean + half)


def _bounds(name: str, low: float, high: float) -> dict[str, float]:
    """The interval's ends, within the metric's range where that has two ends."""
    metric = describe(name)
    ends = _RANGE.match(metric.range) if metric is not None else None
    if ends is not None:
        low, high = max(low, float(ends[1])), min(high, float(ends[2]))
    return {f"{name}_ci_low": low, f"{name}_ci_high": high}


def _warned(values: Sequence[Any]) -> str | None:
    """What any seed warned of, each sentence once, with the number of seeds that say it where not all do."""
    told = [str(value) for value in values if value]
    counts = {sentence: told.count(sentence) for sentence in dict.fromkeys(told)}
    if not counts:
        return None
    return " ".join(
        sentence if count == len(values) else f"({count} of {len(values)} seeds) {sentence}"
        for sentence, count in counts.items()
    )


_WIN_RATE, _WIN_RATE_P = "eval/win_rate", "eval/p_value"


def _against_even(scores: SeedScores) -> float:
    """The p of a win rate against 50%, over seeds and prompts."""
    table = seed_table(scores, list(scores))
    return paired_difference(table, np.full_like(table, 0.5), [prompt for prompt, _ in scores.values()])[1]


def _merged(values: Sequence[Any]) -> Any:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if numbers and len(numbers) == sum(value is not None for value in values):
        return statistics.fmean(numbers)
    return values[0] if len(set(values)) == 1 else None


def _measured(name: str, mean: float, scores: SeedScores) -> dict[str, float]:
    """The interval by seeds and items, about the mean of the seeds' own values (of all their items)."""
    found = arm_interval(seed_table(scores, list(scores)), [prompt for prompt, _ in scores.values()])
    return _bounds(name, mean + found.low - found.estimate, mean + found.high - found.estimate)


def compare_items(items: Mapping[str, Items], metrics: Sequence[str]) -> Rows:
    """Every pair of arms on the first of `metrics` whose test items all arms share; empty without any.

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
            outcomes = None if is_percent(metric) else False  # a ROUGE of 0 or 1 is no loss and no win
            tests = paired_tests(
                {arm: table[:seeds] for arm, table in values.items()}, prompts, outcomes=outcomes
            )
            return [{"metric": metric, "seeds": seeds, **paired_row(test, sign)} for test in tests]
    return []


def standing(tests: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """For each tested arm, whether it is `best`, its `p_holm` against the best, and its `group`.

    Arms that share a letter of their groups do not differ at 5% after Holm's correction.
    """
    if not tests:
        return {}
    best = str(tests[0]["first"])
    against = {str(test["second"]): test["p_holm"] for test in tests if test["first"] == best}
    different = [(str(t["first"]), str(t["second"])) for t in tests if t["p_holm"] < ALPHA]
    groups = tied_groups([best, *against], different)
    return {
        arm: {"best": arm == best, "p_holm": against.get(arm), "group": group}
        for arm, group in groups.items()
    }


def curve_rows(arms: Sequence[Row], *, x: str, y: Sequence[str], by: str | None) -> Rows:
    """Points of the curves: one row for each arm and metric of `y` that has both x and y.

    `x` and `by` are columns of `arms`; the points of one value of `by` are a line, in the order of x.
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
