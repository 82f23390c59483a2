"""The ablation table: arms named by the overrides that differ, seeds grouped, ties marked."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from rich.table import Table as RichTable
from rich.text import Text
from scipy.stats import norm
from scipy.stats import t as student

from rlaif.errors import UserError
from rlaif.stats import PairedTest, arm_interval, holm, paired_tests
from rlaif.study.items import common_items, seed_scores, seed_table, tested_metric
from rlaif.tracking.runs import RunRecord, interval, number
from rlaif.tracking.text import MISSING, lower_is_better, metric_label, metric_range, metric_value

Z95 = float(norm.ppf(0.975))
ALPHA = 0.05
_SEED = ("seed", "seeds.")
_HOUSEKEEPING = (
    "paths.",
    "hydra.",
    "hydra/",
    "tracking",
    "force",
    "plan",
    "export",
    "stage",
    "experiments",
    "sweeps",
)


@dataclass(frozen=True)
class Cell:
    """A metric of one arm: the mean over `n` seeds, their sample standard deviation, a 95% interval."""

    value: float | None
    low: float | None = None
    high: float | None = None
    spread: float | None = None
    n: int = 0

    @property
    def error(self) -> float | None:
        """Standard error read back from the interval, or None where there is no interval."""
        if self.low is None or self.high is None:
            return None
        return (self.high - self.low) / (2 * Z95)

    def text(self, name: str) -> str:
        """The cell as the metric's name asks for it, without the interval."""
        value = metric_value(name, self.value)
        if not self.spread or self.value is None:
            return value
        return f"{value} ± {metric_value(name, self.spread).removeprefix('+')}"

    def range(self, name: str) -> str:
        """The interval's text, empty without one."""
        if self.low is None or self.high is None:
            return ""
        return metric_range(name, self.low, self.high)


@dataclass(frozen=True)
class Arm:
    """One row: runs that differ in nothing but their seeds."""

    label: str
    runs: tuple[RunRecord, ...]
    cells: Mapping[str, Cell]
    best: bool = False
    tied: bool = False
    p_holm: float | None = None


@dataclass(frozen=True)
class Table:
    """Arms by metrics. `metrics[0]` is the main one, which ranks and is tested; best arm first."""

    metrics: tuple[str, ...]
    arms: tuple[Arm, ...]
    caption: str
    notes: tuple[str, ...] = field(default_factory=tuple)


@dataclass(frozen=True)
class _Test:
    """Outcome of the best arm against every other: Holm-adjusted p by label, and how it was done.

    `family`: the number of pairs that Holm's correction is over.
    """

    p: Mapping[str, float]
    method: str
    family: int


def split_override(override: str) -> tuple[str, str]:
    """`+rm.lr=1e-4` as (`rm.lr`, `1e-4`)."""
    key, _, value = override.lstrip("+~").partition("=")
    return key, value


def _is_seed(key: str) -> bool:
    return key == _SEED[0] or key.startswith(_SEED[1])


def _overrides(run: RunRecord) -> dict[str, str]:
    """The overrides that make an arm: everything but seeds and housekeeping."""
    pairs = dict(split_override(item) for item in run.overrides)
    arm = {
        key: value for key, value in pairs.items() if not _is_seed(key) and not key.startswith(_HOUSEKEEPING)
    }
    return {"stage": run.stage, **arm}


def arm_labels(runs: Sequence[RunRecord]) -> list[str]:
    """One label a run: the overrides whose value is not the same in all `runs` (`default` if none)."""
    arms = [_overrides(run) for run in runs]
    keys = list(dict.fromkeys(key for arm in arms for key in arm))
    differing = [key for key in keys if len({arm.get(key) for arm in arms}) > 1]
    return [", ".join(f"{key}={arm[key]}" for key in differing if key in arm) or "default" for arm in arms]


def group_runs(runs: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Runs by arm label; where one seed was run again, the later run counts."""
    groups: dict[str, dict[tuple[str, ...], RunRecord]] = {}
    for label, run in zip(arm_labels(runs), runs, strict=True):
        seeds = tuple(sorted(item for item in run.overrides if _is_seed(split_override(item)[0])))
        earlier = groups.setdefault(label, {}).get(seeds)
        if earlier is None or run.id >= earlier.id:
            groups[label][seeds] = run
    return {label: list(by_seed.values()) for label, by_seed in groups.items()}


def _cell(runs: Sequence[RunRecord], name: str) -> Cell:
    """Mean over seeds. The interval is over seeds and items at once, from single items where the runs have them.

    Without them the seeds' scatter, by Student's t, is added to the runs' own intervals.
    """
    values = [value for run in runs if (value := number(run.summary, name)) is not None]
    if not values:
        return Cell(None)
    ranges = [found for run in runs if (found := interval(run.summary, name)) is not None]
    mean = statistics.fmean(values)
    if len(values) == 1:
        low, high = (ranges[0].low, ranges[0].high) if ranges else (None, None)
        return Cell(mean, low, high, None, 1)
    spread = statistics.stdev(values)
    scores = seed_scores([run.table("items") for run in runs], name) if len(values) == len(runs) else {}
    if scores:
        found = arm_interval(seed_table(scores, list(scores)), [prompt for prompt, _ in scores.values()])
        if math.isclose(found.estimate, mean, abs_tol=1e-6):
            return Cell(mean, found.low, found.high, spread, len(values))
    if len(ranges) < len(values):
        return Cell(mean, None, None, spread, len(values))
    items = statistics.fmean(((found.high - found.low) / 2) ** 2 for found in ranges)
    seeds = float(student.ppf(0.975, len(values) - 1)) ** 2 * spread**2 / len(values)
    half = math.sqrt(items + seeds)
    return Cell(mean, mean - half, mean + half, spread, len(values))


def _paired(arms: Sequence[Arm], name: str) -> _Test | None:
    """All pairs of arms on the items and seeds that all have."""
    tested = tested_metric(name)
    scores = {arm.label: seed_scores([run.table("items") for run in arm.runs], tested) for arm in arms}
    shared = common_items(scores) if all(scores.values()) else []
    if not shared:
        return None
    sign, keys = -1.0 if lower_is_better(name) else 1.0, [key for key, _ in shared]
    values = {label: sign * seed_table(one, keys) for label, one in scores.items()}
    seeds = min(map(len, values.values()))
    tests = paired_tests(
        {label: table[:seeds] for label, table in values.items()}, [prompt for _, prompt in shared]
    )
    best = arms[0].label
    p = {other: test.p_holm for test in tests for other in _other(test, best)}
    over = f" and {seeds} seeds" if seeds > 1 else ""
    method = f"paired test on the same {len(shared)} items{over}, clustered by prompt"
    return _Test(p, method, len(tests))


def _other(test: PairedTest, name: str) -> list[str]:
    """The arm that meets `name` in `test`, if it is one of its pair."""
    pair = (test.first, test.second)
    return [other for other in pair if other != name] if name in pair else []


def _interval_p(best: Cell, other: Cell) -> float | None:
    """Two-sample z from the two intervals' standard errors; None without both intervals."""
    if best.error is None or other.error is None or best.value is None or other.value is None:
        return None
    scale = math.hypot(best.error, other.error)
    if scale == 0:
        return 1.0 if best.value == other.value else 0.0
    return float(2 * norm.sf(abs(best.value - other.value) / scale))


def _test(arms: Sequence[Arm], name: str) -> _Test | None:
    """Best arm (already first) against the others, on paired items where all arms have the same.

    Holm's correction is over all pairs of arms: which one is best, the same numbers decide.
    """
    measured = [arm for arm in arms if arm.cells[name].value is not None]
    if len(measured) < 2:
        return None
    paired = _paired(measured, name)
    if paired is not None:
        return paired
    found = {
        (x.label, y.label): p
        for x, y in combinations(measured, 2)
        if (p := _interval_p(x.cells[name], y.cells[name])) is not None
    }
    adjusted = holm({str(index): p for index, p in enumerate(found.values())})
    best = measured[0].label
    against = {
        other: value for (first, other), value in zip(found, adjusted.values(), strict=True) if first == best
    }
    method = "two-sample z test from the intervals (cautious where arms share their items)"
    return _Test(against, method, len(found)) if against else None


def ablation_table(runs: Sequence[RunRecord], metrics: Sequence[str]) -> Table:
    """Compare finished runs over `metrics`; the first is the main one and decides rank and ties.

    An arm is tied with the best when their difference is not significant at 5% after Holm's correction
    over the table. Raises UserError without runs, metrics, or any value of the main metric.
    """
    if not runs or not metrics:
        raise UserError("report: nothing to compare; give at least one finished run and one metric")
    main = metrics[0]
    groups = group_runs(runs)
    arms = [
        Arm(label, tuple(group), {name: _cell(group, name) for name in metrics})
        for label, group in groups.items()
    ]
    if all(arm.cells[main].value is None for arm in arms):
        raise UserError(f"report: no run has the metric {main}; name one that is in their summary.json")
    arms.sort(key=lambda arm: _rank(arm.cells[main].value, main))
    test = _test(arms, main)
    marked = tuple(_mark(arm, test, first=position == 0) for position, arm in enumerate(arms))
    return Table(tuple(metrics), marked, _caption(main, marked, test), _notes(runs, groups))


def _rank(value: float | None, name: str) -> float:
    if value is None:
        return math.inf
    return value if lower_is_better(name) else -value


def _mark(arm: Arm, test: _Test | None, *, first: bool) -> Arm:
    p = test.p.get(arm.label) if test else None
    top = test is not None and any(value >= ALPHA for value in test.p.values())
    tied = top if first else p is not None and p >= ALPHA
    return Arm(arm.label, arm.runs, arm.cells, best=first, tied=tied, p_holm=p)


def _caption(main: str, arms: Sequence[Arm], test: _Test | None) -> str:
    if len(arms) == 1:
        return f"One arm; main metric {metric_label(main)}."
    if test is None:
        return f"Ranked by {metric_label(main)}. None is marked as not told apart: no intervals, no per-item scores."
    tied = [arm.label for arm in arms[1:] if arm.tied]
    verdict = (
        f"Not told apart from the best: {', '.join(tied)}."
        if tied
        else "Every other arm differs from the best."
    )
    return (
        f"Ranked by {metric_label(main)}. {verdict} Method: {test.method}, Holm over "
        f"{'all ' if test.family > 1 else ''}{test.family} pair{'s' if test.family > 1 else ''} of arms, 5% level."
    )


def _notes(runs: Sequence[RunRecord], groups: Mapping[str, Sequence[RunRecord]]) -> tuple[str, ...]:
    notes = []
    if any(len(group) > 1 for group in groups.values()):
        notes.append(
            "± is the sample standard deviation over seeds; "
            "an interval over seeds adds their scatter to the items' error."
        )
    dropped = len(runs) - sum(map(len, groups.values()))
    if dropped:
        notes.append(f"{dropped} earlier run{'s' if dropped > 1 else ''} of the same arm and seed left out.")
    return tuple(notes)


def terminal_table(table: Table) -> RichTable:
    """The ablation table for the terminal; `*` marks the best arm, `=` those tied with it."""
    view = RichTable(title="Ablation", caption=" ".join((table.caption, *table.notes)), header_style="bold")
    view.add_column("")
    view.add_column("arm", overflow="fold")
    view.add_column("seeds", justify="right")
    for name in table.metrics:
        view.add_column(metric_label(name), justify="right")
    view.add_column("Holm p", justify="right")
    for arm in table.arms:
        cells = [_terminal_cell(arm.cells[name], name) for name in table.metrics]
        mark = "*" if arm.best else "=" if arm.tied else ""
        p = MISSING if arm.p_holm is None else f"{arm.p_holm:.3f}"
        view.add_row(mark, Text(arm.label), str(len(arm.runs)), *cells, p)
    return view


def _terminal_cell(cell: Cell, name: str) -> str:
    shown = cell.range(name)
    return f"{cell.text(name)}\n({shown})" if shown else cell.text(name)
