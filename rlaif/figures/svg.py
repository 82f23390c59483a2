"""Figures as SVG text for a page: one style, colours by label, axes and legends."""

from __future__ import annotations

import hashlib
import io
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from html import escape, unescape
from itertools import chain, repeat
from typing import Any, TypeVar, cast
from urllib.parse import quote, unquote

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

INK, MUTED, GRID, EDGE, PAPER, REST = "#1f2933", "#6b7785", "#e4e8ec", "#b4bdc6", "#ffffff", "#c3cad1"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D", "#8B5A2B")
_VARIABLES = {
    **{colour.lower(): f"c{place}" for place, colour in enumerate((*PALETTE, REST))},
    **{INK: "ink", MUTED: "muted", GRID: "line", EDGE: "edge", PAPER: "paper"},
}
"""The page's variable for each colour, which a dark page sets otherwise."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rlaif",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": EDGE,
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
    "path.simplify": False,  # a page tells the values of a curve's vertices
}


_POINTS = 72  # an inch, in the units of an SVG
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
        for axes in figure.axes:
            _mark_axes(axes)
        figure.set_layout_engine(None)  # already done: with an engine, saving draws the whole figure twice
        stream = io.StringIO()
        empty: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(stream, format="svg", metadata=empty, transparent=True)
    return _inline(stream.getvalue(), alt)


def arm_key(label: str) -> str:
    """What marks an arm's elements in figures and tables: short, and of characters that need no escape."""
    return hashlib.sha256(label.encode()).hexdigest()[:10]


def mark(artist: Artist, *arms: str, tip: str = "", line: str | None = None) -> None:
    """Say which arms an element belongs to (it is hidden with any of them), and what it tells under the pointer.

    `line`: the name of a curve whose vertices are told instead, as the page's script does.
    """
    parts = (" ".join(arm_key(arm) for arm in arms if arm), tip, "-" if line is None else f"={line}")
    artist.set_gid(f"{_MARK}{'|'.join(map(quote, parts))}")


_MARK, _AXES = "mark:", "axes:"
_MARKED = re.compile(rf' id="(?:{_MARK}([^|"]*)\|([^|"]*)\|([^|"]*)|{_AXES}([^"]*))">')
_COLOUR = re.compile(r"(?<=: )#[0-9a-f]{6}\b")
_PATH = re.compile(r'(?<= d=")[^"]+')


def _mark_axes(axes: Axes) -> None:
    """Tell where a panel with linear axes lies in the figure, and the values at its edges."""
    if (axes.get_xscale(), axes.get_yscale()) != ("linear", "linear"):
        return
    width, height = axes.figure.get_size_inches() * _POINTS  # type: ignore[union-attr]
    box = axes.get_position()
    corners = (box.x0 * width, box.x1 * width, (1 - box.y0) * height, (1 - box.y1) * height)
    shares = (int(isinstance(axis.get_major_formatter(), FuncFormatter)) for axis in (axes.xaxis, axes.yaxis))
    known = (*(round(corner, 2) for corner in corners), *axes.get_xlim(), *axes.get_ylim(), *shares)
    axes.set_gid(_AXES + " ".join(f"{value:.6g}" for value in known))


def _attributes(found: re.Match[str]) -> str:
    """A mark, which Matplotlib has written as an id, as the page's attributes and a title."""
    if found[4] is not None:
        return f' data-axes="{found[4]}">'
    arms, tip, line = (unquote(unescape(part)) for part in found.groups()[:3])
    owner = f' data-arm="{arms}"' if arms else ""
    curve = f' data-line="{escape(line[1:], quote=True)}"' if line.startswith("=") else ""
    return f"{owner}{curve}>" + (f"<title>{escape(tip)}</title>" if tip else "")


def _inline(text: str, alt: str) -> str:
    """Removes the XML header, makes ids unique by content and lets the figure scale with the page.

    Colours become the page's variables, and paths have as many digits as a screen shows.
    """
    body = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    body = _MARKED.sub(_attributes, body)
    body = _COLOUR.sub(lambda found: _variable(found[0]), body)
    body = _PATH.sub(lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]).replace(" \n", " ").strip(), body)
    prefix = "f" + hashlib.sha256((alt + body).encode()).hexdigest()[:8]
    body = re.sub(r' id="', f' id="{prefix}-', body)
    body = body.replace("url(#", f"url(#{prefix}-").replace('href="#', f'href="#{prefix}-')
    head, rest = body.split(">", 1)
    box = re.search(r'viewBox="[^"]+"', head)
    points = re.search(r'width="([\d.]+)pt"', head)
    assert box is not None and points is not None
    name = escape(alt, quote=True)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} '
        f'role="img" aria-label="{name}" '
        f'style="--own:{float(points[1]) * 4 / 3:.0f}px;width:100%;max-width:var(--own);height:auto"'
    )
    return f"{opening}>{rest}".strip()


def _variable(colour: str) -> str:
    """The page's variable, with the colour itself where a figure stands alone."""
    return f"var(--{_VARIABLES[colour]}, {colour})" if colour in _VARIABLES else colour


def percent_axis(axis: Any) -> None:
    """Formats an axis in whole percents: a tick at 62.5% would print as a wrong number."""
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))


def shorten(label: str, limit: int = 46) -> str:
    """At most `limit` characters; longer labels are cut at the end."""
    return label if len(label) <= limit else label[: limit - 1] + "…"


def colours(labels: Sequence[str], arms: Sequence[str] = ()) -> dict[str, str]:
    """A colour for each label, in the palette's order; grey once that is used up.

    `arms`: those of the whole page, in order: each has the same colour in all figures.
    """
    unique = list(dict.fromkeys([*arms, *labels]))
    shade = dict(zip(unique, chain(PALETTE, repeat(REST)), strict=False))
    return {label: shade[label] for label in dict.fromkeys(labels)}


def legend(figure: Figure, colours: Mapping[str, str]) -> None:
    """Above the figure, for labels with a colour of their own; none if there is only one label."""
    if len(colours) < 2:
        return
    shown = [label for label in colours if colours[label] != REST]
    handles = [matplotlib.lines.Line2D([], [], color=colours[label], marker="o") for label in shown]
    ncols = max(1, min(3, len(shown)))
    found = figure.legend(handles, list(map(shorten, shown)), loc="outside upper left", ncols=ncols)
    for label, handle, words in zip(shown, found.legend_handles, found.get_texts(), strict=True):
        mark(words, label)
        if handle is not None:
            mark(handle, label)
