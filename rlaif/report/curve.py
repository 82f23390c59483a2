"""The curve of a comparison (`curve:` in an experiment file), as a figure and as a table of points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table as RichTable
from rich.text import Text

from rlaif.figures import curves
from rlaif.tracking.runs import Row, number
from rlaif.tracking.text import MISSING, is_percent, metric_label, metric_range, metric_value


@dataclass(frozen=True)
class CurveTable:
    """The points as text, one row per line and x; `heads` name the columns."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def axis_label(name: str) -> str:
    """A metric's label, or a configuration key as it is."""
    return metric_label(name) if "/" in name else name


def curve_figure(rows: Sequence[Row]) -> str:
    """One panel per metric, one colour per line; `rows` are from `study.arm_table.curve_rows`. Empty without any."""
    panels: dict[str, dict[str, list[curves.CurvePoint]]] = {}
    for row in rows:
        bounds = row.get("ci_low"), row.get("ci_high")
        point = curves.CurvePoint(row["x"], row["value"], *bounds, arm=str(row.get("arm") or ""))
        name = f"{row['by']}={row['line']}" if row["by"] else ""
        panels.setdefault(row["metric"], {}).setdefault(name, []).append(point)
    if not panels:
        return ""
    x = rows[0]["x_name"]
    return curves.curves(
        panels, x_label=axis_label(x), x_percent=is_percent(x), title="Curves with 95% intervals"
    )


def curve_table(rows: Sequence[Row]) -> CurveTable | None:
    """The same points as text; None without any."""
    if not rows:
        return None
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    by, repeated = rows[0]["by"], any(row["seeds"] > 1 for row in rows)
    found = {(row["arm"], row["metric"]): _cell(row) for row in rows}
    points = {row["arm"]: row for row in rows}
    heads = [*([by] if by else []), axis_label(rows[0]["x_name"]), *(["seeds"] if repeated else [])]
    body = [
        (
            *([row["line"]] if by else []),
            metric_value(row["x_name"], row["x"]),
            *([f"{row['seeds']:.0f}"] if repeated else []),
            *(found.get((arm, metric), MISSING) for metric in metrics),
        )
        for arm, row in points.items()
    ]
    return CurveTable((*heads, *map(metric_label, metrics)), tuple(body))


def _cell(row: Row) -> str:
    low, high = number(row, "ci_low"), number(row, "ci_high")
    value = metric_value(row["metric"], row["value"])
    return value if low is None or high is None else f"{value} ({metric_range(row['metric'], low, high)})"


def terminal_curve(table: CurveTable) -> RichTable:
    """The points for the terminal."""
    view = RichTable(title="Curve", header_style="bold")
    for position, head in enumerate(table.heads):
        view.add_column(head, justify="right" if position else "left")
    for row in table.rows:
        view.add_row(*map(Text, row))
    return view
