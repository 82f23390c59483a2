"""Tables of `stage=compare`: the arms' own numbers, then policies against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table as RichTable
from rich.text import Text

from rlaif.reports.runs import Row, Scalar, interval, number
from rlaif.reports.text import MISSING, metric_label, metric_range, metric_value, p_text, percent
from rlaif.stats import holm

ALPHA = 0.05
ARM_METRICS = (
    "label/alignment",
    "rm/accuracy",
    "rm/gold_accuracy",
    "ppo/reward",
    "ppo/kl",
    "eval/win_rate",
    "eval/win_rate_lc",
    "eval/rouge_l_policy",
    "eval/length_policy",
)


@dataclass(frozen=True)
class ArmRow:
    """One arm: for each metric (text, interval text or empty)."""

    arm: str
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class VerdictRow:
    """One head-to-head, in text. `tied`: not significant at 5% after Holm's correction."""

    first: str
    second: str
    win_rate: str
    interval: str
    n: str
    p: str
    p_holm: str
    tied: bool
    winner: str


@dataclass(frozen=True)
class ArmsTable:
    """What `stage=compare` shows: `metrics` are the columns that at least one arm has."""

    metrics: tuple[str, ...]
    arms: tuple[ArmRow, ...]
    verdicts: tuple[VerdictRow, ...]


def arms_table(arms: Mapping[str, Mapping[str, Scalar]], verdicts: Sequence[Row]) -> ArmsTable:
    """Per-arm rows and head-to-head rows.

    `arms`: name to summary. `verdicts`: rows with `first`, `second`, `win_rate` (of first over second),
    `ci_low`, `ci_high`, `p`, `p_holm` and `n`; what is missing prints as a dash. Where `p_holm` is absent,
    Holm's correction over these rows is; a head-to-head without p is tied when its interval holds 50%.
    """
    metrics = tuple(
        name for name in ARM_METRICS if any(number(values, name) is not None for values in arms.values())
    )
    rows = tuple(
        ArmRow(arm, tuple(_arm_cell(values, name) for name in metrics)) for arm, values in arms.items()
    )
    return ArmsTable(metrics, rows, tuple(_verdict_row(row) for row in _with_holm(verdicts)))


def _with_holm(verdicts: Sequence[Row]) -> list[Row]:
    raw = {str(index): p for index, row in enumerate(verdicts) if (p := number(row, "p")) is not None}
    adjusted = holm(raw) if raw else {}
    return [{"p_holm": adjusted.get(str(index)), **row} for index, row in enumerate(verdicts)]


def _arm_cell(values: Mapping[str, Scalar], name: str) -> tuple[str, str]:
    found = interval(values, name)
    shown = metric_range(name, found.low, found.high) if found else ""
    return metric_value(name, number(values, name)), shown


def _verdict_row(row: Row) -> VerdictRow:
    win, low, high = (number(row, key) for key in ("win_rate", "ci_low", "ci_high"))
    p, adjusted, count = number(row, "p"), number(row, "p_holm"), number(row, "n")
    deciding = p if adjusted is None else adjusted
    overlaps = low is None or high is None or low <= 0.5 <= high
    tied = overlaps if deciding is None else deciding >= ALPHA
    first, second = str(row.get("first", MISSING)), str(row.get("second", MISSING))
    winner = "" if tied or win is None else first if win > 0.5 else second
    shown = metric_range("eval/win_rate", low, high) if low is not None and high is not None else ""
    return VerdictRow(
        first,
        second,
        percent(win),
        shown,
        MISSING if count is None else f"{count:.0f}",
        p_text(p),
        p_text(adjusted),
        tied,
        winner,
    )


def terminal_arms(table: ArmsTable) -> list[RichTable]:
    """The two tables for the terminal (the second only when there are head-to-heads)."""
    arms = RichTable(title="Arms", header_style="bold")
    arms.add_column("arm", overflow="fold")
    for name in table.metrics:
        arms.add_column(metric_label(name), justify="right")
    for row in table.arms:
        arms.add_row(
            Text(row.arm), *(f"{value}\n({shown})" if shown else value for value, shown in row.cells)
        )
    if not table.verdicts:
        return [arms]
    duels = RichTable(title="Head to head", header_style="bold")
    for column in ("first", "second", "win rate", "95% interval", "n", "p", "Holm", "verdict"):
        duels.add_column(column, overflow="fold")
    for duel in table.verdicts:
        verdict = "tied" if duel.tied else f"{duel.winner} wins"
        names = (Text(duel.first), Text(duel.second))
        duels.add_row(*names, duel.win_rate, duel.interval, duel.n, duel.p, duel.p_holm, Text(verdict))
    return [arms, duels]
