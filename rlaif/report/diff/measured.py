"""The metrics of two runs side by side, and paired tests on the test items that both have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlaif.report.diff.ancestry import Ancestry
from rlaif.stats import ALPHA, holm
from rlaif.study.arm_table import compare_items
from rlaif.study.items import tested_metric
from rlaif.study.labelers import bare_p
from rlaif.tracking.glossary import describe, entries
from rlaif.tracking.runs import Row, RunRecord, Scalar, interval, number
from rlaif.tracking.text import (
    FORMATS,
    MISSING,
    is_percent,
    metric_gap,
    metric_label,
    metric_range,
    metric_value,
)

_BOUNDS = ("_ci_low", "_ci_high")
_NO_DIFFERENCE = ("p_value",)  # endings of metrics whose differences mean nothing
# Other readings of a metric that is tested itself, and values that the compared policies do not change.
_NO_TEST = ("label/alignment_worst", "label/alignment_half")


@dataclass(frozen=True)
class MetricRow:
    """One metric of both runs, as text. `differs` is False if both have the same value."""

    metric: str
    label: str
    a: str
    a_range: str
    b: str
    b_range: str
    difference: str
    differs: bool


@dataclass(frozen=True)
class PairedMetric:
    """A paired test on the items of both runs; the difference is B less A.

    `better` is `A`, `B`, or empty if undecided at 5% after Holm's correction, or if `caution` says that the two
    values measure different things.
    """

    metric: str
    label: str
    n: int
    difference: float
    low: float
    high: float
    a_ahead: int
    b_ahead: int
    mcnemar: float
    p: float
    p_holm: float
    caution: str = ""

    @property
    def significant(self) -> bool:
        """Whether the values differ at 5% after Holm's correction."""
        return self.p_holm < ALPHA

    @property
    def better(self) -> str:
        """Which run is better, if that is decided."""
        if not self.significant or self.caution:
            return ""
        metric = describe(self.metric)
        lower = metric is not None and metric.better == "down"
        return "B" if (self.difference > 0) != lower else "A"

    @property
    def outcome(self) -> str:
        """What the test says, in a word or two."""
        return f"{self.better} better" if self.better else "differs" if self.significant else "undecided"

    @property
    def written(self) -> tuple[str, str]:
        """The difference and its interval."""
        how = FORMATS["points" if is_percent(self.metric) else "signed"]
        return how.value(self.difference), how.range(self.low, self.high)

    @property
    def p_texts(self) -> tuple[str, str, str]:
        """McNemar's p, the test's p, and that after Holm's correction."""
        return bare_p(self.mcnemar), bare_p(self.p), bare_p(self.p_holm)


@dataclass(frozen=True)
class PairedMetrics:
    """The paired tests, one family, and the labels of metrics that could not be tested, by reason."""

    rows: tuple[PairedMetric, ...]
    untested: Mapping[str, Sequence[str]]


def metric_rows(a: Mapping[str, Scalar], b: Mapping[str, Scalar]) -> list[MetricRow]:
    """Every metric that both summaries have, in the registry's order."""
    shared = [name for name in a if name in b and not name.endswith((*_BOUNDS, "/warning"))]
    return [_metric_row(name, a, b) for name in in_order(shared)]


def alone(a: Mapping[str, Scalar], b: Mapping[str, Scalar]) -> list[str]:
    """The metrics that `a` has and `b` lacks."""
    return in_order([name for name in a if name not in b and not name.endswith((*_BOUNDS, "/warning"))])


def in_order(names: Sequence[str]) -> list[str]:
    """The registry's order; a name that a pattern describes is in the pattern's place, an unknown one comes last."""
    place = {name: index for index, name in enumerate(entries())}

    def key(name: str) -> tuple[str, int, str]:
        arm, _, own = name.rpartition("/")[0].rpartition("/")
        metric = describe(name.removeprefix(f"{arm}/") if arm else name)
        return arm, len(place) if metric is None else place.get(metric.name, len(place)), f"{own}{name}"

    return sorted(names, key=key)


def _metric_row(name: str, a: Mapping[str, Scalar], b: Mapping[str, Scalar]) -> MetricRow:
    values, gap = (number(a, name), number(b, name)), MISSING
    if values[0] is not None and values[1] is not None and not name.endswith(_NO_DIFFERENCE):
        gap = metric_gap(name, values[1] - values[0])
    texts = [metric_value(name, summary[name]) for summary in (a, b)]
    bounds = [
        metric_range(name, found.low, found.high) if (found := interval(summary, name)) else ""
        for summary in (a, b)
    ]
    return MetricRow(
        name, metric_label(name), texts[0], bounds[0], texts[1], bounds[1], gap, a[name] != b[name]
    )


def paired(a: RunRecord, b: RunRecord, lineage: Ancestry) -> PairedMetrics:
    """Test each metric of single items that both runs have and that has a better direction, with Holm over them.

    Metrics of an artifact that both runs share are the same numbers twice, and no test.
    """
    items = {"A": a.table("items"), "B": b.table("items")}
    rows, untested = [], dict[str, list[str]]()
    for name in _candidates(a, b, items):
        if lineage.shares(name.split("/")[0]):
            untested.setdefault("measured on an artifact that both runs share", []).append(metric_label(name))
        elif found := compare_items({who: [table] for who, table in items.items()}, [name]):
            rows.append(_test(found[0], _caution(name, a, b, lineage)))
        else:
            untested.setdefault("the runs share less than half of the test items", []).append(
                metric_label(name)
            )
    adjusted = holm({row.metric: row.p for row in rows})
    return PairedMetrics(tuple(replace(row, p_holm=adjusted[row.metric]) for row in rows), untested)


def _candidates(a: RunRecord, b: RunRecord, items: Mapping[str, Sequence[Row]]) -> list[str]:
    measured = [{name for row in rows for name in row if "/" in name} for rows in items.values()]
    return [
        name
        for name in in_order([name for name in a.summary if name in b.summary])
        if all(tested_metric(name) in one for one in measured)
        and name not in _NO_TEST
        and not name.endswith("_baseline")
        and (metric := describe(name)) is not None
        and metric.better != "none"
    ]


def _test(row: Mapping[str, Any], caution: str) -> PairedMetric:
    """The row of `compare_items`, whose first arm is the better one, as B less A."""
    sign = 1 if row["first"] == "B" else -1
    low, high = sorted(sign * row[f"difference{end}"] for end in _BOUNDS)
    b_ahead, a_ahead = (row["ahead"], row["behind"])[::sign]
    return PairedMetric(
        row["metric"],
        metric_label(row["metric"]),
        row["n"],
        sign * row["difference"] + 0.0,  # no negative zero
        low,
        high,
        a_ahead,
        b_ahead,
        row["mcnemar_p"],
        row["p"],
        math.nan,
        caution,
    )


def _caution(name: str, a: RunRecord, b: RunRecord, lineage: Ancestry) -> str:
    """Why the two values of a metric do not measure the same thing; empty if they do."""
    stage, reasons = name.split("/")[0], []
    if stage in ("label", "rm") and lineage.differs("sample"):
        reasons.append("on different responses to the same prompts")
    if name == "rm/accuracy" and lineage.differs("label"):
        reasons.append("each against its own labels")
    if name.startswith("eval/win_rate"):
        reasons += ["by different judges"] if judged_differently(a, b, lineage) else []
        reasons += ["over different baselines"] if lineage.differs("sft") else []
    return "; ".join(reasons)


def judged_differently(a: RunRecord, b: RunRecord, lineage: Ancestry) -> bool:
    """Whether the judges differ: by what the evaluations were made from, else by the configurations."""
    recorded = lineage.keys("eval") if lineage.differs("eval") else None
    if recorded is not None:
        return any(key.key.split(".")[0] in ("judge", "judges", "panel", "name") for key in recorded)
    return any(a.config.get(key) != b.config.get(key) for key in ("judge", "judges"))
