"""Figures as SVG text for a page: one style, colours by label, axes and legends."""

from __future__ import annotations

import hashlib
import io
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from html import escape
from itertools import chain, repeat
from typing import Any, TypeVar, cast

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

INK, MUTED, GRID = "#1f2933", "#6b7785", "#e4e8ec"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D", "#8B5A2B")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rlaif",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": "#b4bdc6",
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
}


_KEPT = 64  # drawn figures that a process remembers
_ADDRESS = re.compile(r" at 0x[0-9a-f]+>")
Plot = TypeVar("Plot", bound=Callable[..., str])


def drawn_once(plot: Plot) -> Plot:
    """A plot that draws the same data once in a process.

    A sweep's page, and the pages of an experiment's arms, show most of their figures again and again. What the data are
    is told by their `repr`; a value that has none but its address is drawn each time.
    """
    kept: OrderedDict[str, str] = OrderedDict()

    @wraps(plot)
    def shown(*arguments: Any, **options: Any) -> str:
        key = repr((arguments, options))
        if _ADDRESS.search(key):
            return plot(*arguments, **options)
        if key not in kept:
            kept[key] = plot(*arguments, **options)
            if len(kept) > _KEPT:
                kept.popitem(last=False)
        kept.move_to_end(key)
        return kept[key]

    return cast(Plot, shown)


def svg(draw: Callable[[Figure], None], width: float, height: float, alt: str) -> str:
    """What `draw` draws on a figure of `width` x `height` inches, as inline SVG with `alt` for screen readers."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        layout = figure.get_layout_engine()
        assert layout is not None
        layout.execute(figure)
        figure.set_layout_engine(None)  # already done: with an engine, saving draws the whole figure twice
        stream = io.StringIO()
        empty: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(stream, format="svg", metadata=empty, transparent=True)
    return _inline(stream.getvalue(), alt)


def _inline(text: str, alt: str) -> str:
    """Removes the XML header, makes ids unique by content and lets the figure scale with the page."""
    body = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    prefix = "f" + hashlib.sha256((alt + body).encode()).hexdigest()[:8]
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = body.replace("url(#", f"url(#{prefix}-").replace('href="#', f'href="#{prefix}-')
    head, rest = body.split(">", 1)
    box = re.search(r'viewBox="[^"]+"', head)
    points = re.search(r'width="([\d.]+)pt"', head)
    assert box is not None and points is not None
    name = escape(alt, quote=True)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} '
        f'role="img" aria-label="{name}" '
        f'style="width:100%;max-width:{float(points[1]) * 4 / 3:.0f}px;height:auto"'
    )
    return f"{opening}>{rest}".strip()


def percent_axis(axis: Any) -> None:
    """Formats an axis in whole percents: a tick at 62.5% would print as a wrong number."""
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))


def shorten(label: str, limit: int = 46) -> str:
    """At most `limit` characters; longer labels are cut at the end."""
    return label if len(label) <= limit else label[: limit - 1] + "…"


def colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each label, in the palette's order; grey once that is used up."""
    unique = list(dict.fromkeys(labels))
    return dict(zip(unique, chain(PALETTE, repeat("#c3cad1")), strict=False))


def legend(figure: Figure, colours: Mapping[str, str]) -> None:
    """Above the figure, for labels with a colour of their own; none if there is only one label."""
    if len(colours) < 2:
        return
    shown = list(colours)[: len(PALETTE)]
    handles = [matplotlib.lines.Line2D([], [], color=colours[label], marker="o") for label in shown]
    ncols = min(3, len(shown))
    figure.legend(handles, list(map(shorten, shown)), loc="outside upper left", ncols=ncols)
