"""How numbers are written: one place, so that the page, the terminal and the plots agree."""

from __future__ import annotations

import math
import re

EN_DASH, MINUS = "\u2013", "\u2212"
MISSING = EN_DASH
_PERCENT = re.compile(
    r"(accuracy|alignment|win_rate|win_rate_lc|_rate|empty_rate_policy|empty_rate_baseline|clip_fraction|choice_mass|parity)(_ci_low|_ci_high)?$"
    r"|^label/alignment[/_]"
)
_DIFFERENCE = re.compile(r"(verbosity|length_only)_gap$")
_LOWER_IS_BETTER = re.compile(
    r"(loss|ece|ece_fitted|brier|perplexity|unparsed_rate|failed_rate|empty_rate|copy_rate|usd|seconds|_gap|length_correlation"
    r"|position_rate|tokens_in|tokens_out)$"
)
_HEADLINE = {
    "eval/win_rate": "win rate",
    "eval/win_rate_lc": "win rate, length-controlled",
    "eval/rouge_l_policy": "ROUGE-L",
    "eval/length_policy": "length",
    "label/alignment": "labeler alignment",
}
_ACRONYMS = {
    "rm": "RM",
    "rl": "RL",
    "sft": "SFT",
    "kl": "KL",
    "ece": "ECE",
    "usd": "USD",
    "eos": "EOS",
    "lc": "LC",
}


def is_percent(name: str) -> bool:
    """Whether the metric is a share in [0, 1] that reads best in percent."""
    return bool(_PERCENT.search(name))


def lower_is_better(name: str) -> bool:
    """Whether a smaller value of the metric is the better one (errors, losses, costs)."""
    return bool(_LOWER_IS_BETTER.search(name))


def metric_label(name: str) -> str:
    """`rm/gold_accuracy` as `RM gold accuracy`; the headline metrics have names of their own."""
    if name in _HEADLINE:
        return _HEADLINE[name]
    words = re.split(r"[/_ ]+", name)
    return " ".join(_ACRONYMS.get(word, word) for word in words)


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
    """A metric's value as its name asks: percent, points, number or the text itself."""
    if isinstance(value, str):
        return value
    if _DIFFERENCE.search(name):
        return points(value)
    return percent(value) if is_percent(name) else plain(value)


def metric_range(name: str, low: float, high: float) -> str:
    """`57.0-69.0%` (with an en dash), or `0.200 to 0.220` for what is no share."""
    if _DIFFERENCE.search(name):
        return points_range(low, high)
    if is_percent(name):
        return f"{100 * low:.1f}{EN_DASH}{100 * high:.1f}%"
    return f"{plain(low)} to {plain(high)}"


def p_text(value: float | None) -> str:
    """`p = 0.031`, or `p < 0.001`."""
    if value is None or not math.isfinite(value):
        return MISSING
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"


def signed(value: float) -> str:
    """A difference with its sign, with a true minus."""
    return ("+" if value >= 0 else MINUS) + plain(abs(value))


def duration(seconds: float | None) -> str:
    """`42 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(count: float | None) -> str:
    """Bytes in decimal units."""
    if count is None or not math.isfinite(count):
        return MISSING
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
