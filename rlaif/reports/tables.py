"""The ablation table: arms named by the overrides that differ, seeds grouped, ties marked."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.table import Table as RichTable
from rich.text import Text
from scipy.stats import norm

from rlaif.errors import UserError
from rlaif.reports.items import common_items, item_scores
from rlaif.reports.runs import RunRecord, interval, number
from rlaif.reports.text import MISSING, lower_is_better, metric_label, metric_range, metric_value
from rlaif.stats import holm, paired_tests, statistically_tied

Z95 = float(norm.ppf(0.975))
ALPHA = 0.05
BOOTSTRAP_SEED = 0
LABELER_METRIC = "label/alignment"
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
        return f"{value} ± {metric_value(name, self.spread)}"

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

    `family`: the number of comparisons that Holm's correction is over.
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
    """Mean over seeds; the interval adds the seeds' scatter to the items' (shared by all seeds) error."""
    values = [value for run in runs if (value := number(run.summary, name)) is not None]
    if not values:
        return Cell(None)
    ranges = [found for run in runs if (found := interval(run.summary, name)) is not None]
    mean = statistics.fmean(values)
    if len(values) == 1:
        low, high = (ranges[0].low, ranges[0].high) if ranges else (None, None)
        return Cell(mean, low, high, None, 1)
    spread = statistics.stdev(values)
    if len(ranges) < len(values):
        return Cell(mean, None, None, spread, len(values))
    items = statistics.fmean(((found.high - found.low) / (2 * Z95)) ** 2 for found in ranges)
    half = Z95 * math.sqrt(items + spread**2 / len(values))
    return Cell(mean, mean - half, mean + half, spread, len(values))


def _paired(best: Arm, others: Sequence[Arm], name: str) -> _Test | None:
    """The paired test on the items that all arms have, where these agree on who is best."""
    arms = (best, *others)
    scores = {arm.label: item_scores([run.table("items") for run in arm.runs], name) for arm in arms}
    shared = common_items(scores)
    if not shared:
        return None
    sign = -1.0 if lower_is_better(name) else 1.0
    values = {label: [sign * one[key][1] for key, _ in shared] for label, one in scores.items()}
    prompts = [prompt for _, prompt in shared]
    if name == LABELER_METRIC:
        # All with all, as in the labelers' own table, so that both say the same.
        tests = paired_tests(values, prompts, seed=BOOTSTRAP_SEED)
        first, family = tests[0].first, len(tests)
        p = {test.second: test.p_holm for test in tests if test.first == first}
    else:
        rows = statistically_tied(values, prompts, seed=BOOTSTRAP_SEED, alpha=ALPHA)
        first, family = rows[0].name, len(others)
        p = {row.name: row.p_value for row in rows[1:]}
    method = f"paired test on the same {len(shared)} items, clustered by prompt, seeds averaged"
    return _Test(p, method, family) if first == best.label else None


def _interval_p(best: Cell, other: Cell) -> float | None:
    """Two-sample z from the two intervals' standard errors; None without both intervals."""
    if best.error is None or other.error is None or best.value is None or other.value is None:
        return None
    scale = math.hypot(best.error, other.error)
    if scale == 0:
        return 1.0 if best.value == other.value else 0.0
    return float(2 * norm.sf(abs(best.value - other.value) / scale))


def _test(arms: Sequence[Arm], name: str) -> _Test | None:
    """Best arm (already first) against the others, on paired items where all arms have the same."""
    best, others = arms[0], [arm for arm in arms[1:] if arm.cells[name].value is not None]
    if best.cells[name].value is None or not others:
        return None
    paired = _paired(best, others, name)
    if paired is not None:
        return paired
    found = {arm.label: _interval_p(best.cells[name], arm.cells[name]) for arm in others}
    raw = {label: p for label, p in found.items() if p is not None}
    method = "two-sample z test from the intervals (cautious where arms share their items)"
    return _Test(holm(raw), method, len(raw)) if raw else None


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
        return f"Ranked by {metric_label(main)}. No ties are marked: no intervals, no per-item scores."
    tied = [arm.label for arm in arms[1:] if arm.tied]
    verdict = (
        f"Statistically tied with the best: {', '.join(tied)}."
        if tied
        else "No other arm is tied with the best."
    )
    return (
        f"Ranked by {metric_label(main)}. {verdict} Method: {test.method}, Holm over "
        f"{test.family} comparison{'s' if test.family > 1 else ''}, 5% level."
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
