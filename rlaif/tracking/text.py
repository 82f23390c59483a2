"""How numbers are written: one place, so that the page, the terminal and the plots agree."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from rlaif.tracking.glossary import Format, describe, table

EN_DASH, MINUS = "\u2013", "\u2212"
MISSING = EN_DASH


def is_percent(name: str) -> bool:
    """Whether the metric is a share, or a difference of shares, so that its axis is in percent."""
    return _format(name) in ("percent", "points")


def lower_is_better(name: str) -> bool:
    """Whether a smaller value of the metric is better (errors, losses, costs)."""
    metric = describe(name)
    return metric is not None and metric.better == "down"


def metric_label(name: str, in_table: str | None = None) -> str:
    """The registry's label of the metric, in one of its tables or in general; an unknown name stays as it is."""
    if in_table is not None:
        return next(one.label for one in table(in_table) if one.name == name)
    metric = describe(name)
    return name if metric is None else metric.label


def percent(value: float | None, digits: int = 1) -> str:
    """0.634 as `63.4%`."""
    return MISSING if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}%"


def points(value: float | None) -> str:
    """A difference of shares: 0.062 as `+6.2 points`."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{'+' if value >= 0 else MINUS}{100 * abs(value):.1f} points"


def points_range(low: float, high: float) -> str:
    """`-1.0 to +23.0 points` (with a true minus)."""
    return f"{points(low).removesuffix(' points')} to {points(high)}"


def file_size(count: int) -> str:
    """A number of bytes: 538060032 as `513 MiB`."""
    size, unit = count / 2**10, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if size >= 1000:
            size, unit = size / 2**10, larger
    return f"{size:.1f} {unit}" if size < 10 else f"{size:,.0f} {unit}"


def plain(value: float | None) -> str:
    """About three significant digits; whole numbers with thousands separators."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == round(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.2g}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def metric_value(name: str, value: float | str | None) -> str:
    """A metric's value in its format, or the text itself."""
    if isinstance(value, str):
        return value
    return MISSING if value is None or not math.isfinite(value) else FORMATS[_format(name)].value(value)


def metric_range(name: str, low: float, high: float) -> str:
    """`57.0-69.0%` (with an en dash), `-1.0 to +23.0 points`, or `0.200 to 0.220`."""
    return FORMATS[_format(name)].range(low, high)


def _format(name: str) -> Format:
    metric = describe(name)
    return "number" if metric is None else metric.format


def p_text(value: float | None) -> str:
    """`p = 0.031`, or `p < 0.001`."""
    if value is None or not math.isfinite(value):
        return MISSING
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"


def signed(value: float) -> str:
    """A difference with its sign, with a true minus."""
    return ("+" if value >= 0 else MINUS) + plain(abs(value))


def metric_gap(name: str, gap: float) -> str:
    """A difference of two values of the metric, with its sign: points of a share, or a time."""
    if _format(name) == "duration":
        return ("+" if gap >= 0 else MINUS) + duration(abs(gap))
    return points(gap) if is_percent(name) else signed(gap)


def duration(seconds: float | None) -> str:
    """`42 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(count: float | None) -> str:
    """Bytes in decimal units."""
    if count is None or not math.isfinite(count):
        return MISSING
    if abs(count) < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB"):
        count /= 1000
        if abs(count) < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} GB"


class _Written(NamedTuple):
    """How a value and an interval of one format are written."""

    value: Callable[[float], str]
    range: Callable[[float, float], str]


def _to(value: Callable[[float], str]) -> _Written:
    return _Written(value, lambda low, high: f"{value(low)} to {value(high)}")


FORMATS: dict[Format, _Written] = {
    "number": _to(plain),
    "percent": _Written(percent, lambda low, high: f"{100 * low:.1f}{EN_DASH}{100 * high:.1f}%"),
    "points": _Written(points, points_range),
    "signed": _to(signed),
    "duration": _to(duration),
    "text": _to(plain),
}
