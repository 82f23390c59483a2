"""What reports show of several judges: their win rates, how far they agree, and whom they favour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from rlaif.tracking.runs import Row, number
from rlaif.tracking.text import MISSING, metric_range, p_text, percent, plain, points, points_range

Cell = tuple[str, str]
"""A value and the interval or words below it, which may be empty."""


@dataclass(frozen=True)
class Grid:
    """A table as text: title, caption, heads of columns, and rows of cells, the first `texts` of which are words."""

    title: str
    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    texts: int


def judges_grid(rows: Sequence[Row]) -> Grid | None:
    """A row per judge of an evaluation (table `judges`); None without them."""
    if not rows:
        return None
    deciding = [str(row["judge"]) for row in rows if row["decides"]]
    whose = (
        f"Judge {deciding[0]} decides" if len(deciding) == 1 else f"{', '.join(deciding)} decide as a panel"
    )
    return Grid(
        "Judges",
        f"All on the same responses. {whose}. Unread: comparisons that a judge gave no verdict on.",
        ("Judge", "Model", "Family", "Win rate", "n", "p", "Unread", "Tokens read", "Tokens written", "USD"),
        tuple(
            (
                (str(row["judge"]), ""),
                (str(row["model"] or MISSING), ""),
                (str(row["family"] or MISSING), ""),
                _rate(row, "win_rate"),
                (plain(number(row, "n")), ""),
                (p_text(number(row, "p")).removeprefix("p = "), ""),
                (percent(number(row, "unread_rate")), ""),
                (plain(number(row, "tokens_in")), ""),
                (plain(number(row, "tokens_out")), ""),
                (plain(number(row, "usd")), ""),
            )
            for row in rows
        ),
        3,
    )


def agreement_grid(rows: Sequence[Row]) -> Grid | None:
    """A row per pair of judges (table `judge_agreement`); None without two."""
    if not rows:
        return None
    return Grid(
        "Agreement of judges",
        "Win, tie or loss on the comparisons that both could read. Cohen's kappa: 0 is chance, 1 is always.",
        ("First", "Second", "Same verdict", "Cohen's kappa", "n"),
        tuple(
            (
                (str(row["first"]), ""),
                (str(row["second"]), ""),
                _rate(row, "agreement"),
                (plain(number(row, "kappa")), _range(row, "kappa", "label/kappa")),
                (plain(number(row, "n")), ""),
            )
            for row in rows
        ),
        2,
    )


def self_preference_grid(rows: Sequence[Row]) -> Grid | None:
    """A row per arm and a column per judge (table `self_preference`); None without it."""
    if not rows:
        return None
    judges = list(dict.fromkeys(str(row["judge"]) for row in rows))
    families = {str(row["judge"]): row["judge_family"] for row in rows}
    arms: dict[str, dict[str, Row]] = {}
    for row in rows:
        arms.setdefault(str(row["arm"]), {})[str(row["judge"])] = row
    labelers = {str(row["arm"]): str(row["labeler_family"] or MISSING) for row in rows}
    return Grid(
        "Win rate by judge",
        "Of each arm's policy over the SFT policy. Where judge and labeler are of one family: what this judge gives "
        "more than the mean of those of other families, paired over prompts, Holm-corrected over all such cells. An "
        "excess down a whole column is the judge's taste; self-preference is one that other arms do not have.",
        ("Arm", "Labeler's family", *(f"{name} ({families[name] or MISSING})" for name in judges)),
        tuple(
            ((arm, ""), (labelers[arm], ""), *(_matrix_cell(own.get(name)) for name in judges))
            for arm, own in arms.items()
        ),
        2,
    )


def _matrix_cell(row: Row | None) -> Cell:
    if row is None:
        return MISSING, ""
    value, shown = _rate(row, "win_rate")
    excess = number(row, "self_preference")
    if excess is None:
        return value, shown
    low, high = (number(row, f"self_preference_ci_{end}") for end in ("low", "high"))
    bounds = "" if low is None or high is None else f" ({points_range(low, high)})"
    return value, f"{shown}; own family {points(excess)}{bounds}, Holm {p_text(number(row, 'p_holm'))}"


def _rate(row: Row, name: str) -> Cell:
    return percent(number(row, name)), _range(row, name, "eval/win_rate")


def _range(row: Row, name: str, metric: str) -> str:
    low, high = (number(row, f"{name}_ci_{end}") for end in ("low", "high"))
    return "" if low is None or high is None else metric_range(metric, low, high)


def terminal_grid(grid: Grid) -> Table:
    """The table for the terminal."""
    view = Table(title=grid.title, caption=grid.caption, header_style="bold")
    for place, head in enumerate(grid.heads):
        view.add_column(head, justify="left" if place < grid.texts else "right", overflow="fold")
    for row in grid.rows:
        view.add_row(*(Text(f"{value}\n{below}" if below else value) for value, below in row))
    return view


def judge_grids(tables: Sequence[Sequence[Row]]) -> list[Grid]:
    """Those that there are of an evaluation's judges and their agreement, from these two tables."""
    judges, agreement = tables
    return [grid for grid in (judges_grid(judges), agreement_grid(agreement)) if grid]
