"""The layout of a dashboard: sections and panels, read from the configuration and checked against the registry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, get_args

from rlaif.errors import UserError
from rlaif.io import from_yaml
from rlaif.options.dashboard import DashboardOptions, Kind, PanelOptions, Part, SectionOptions
from rlaif.options.read import read
from rlaif.options.rules import shown
from rlaif.tracking.glossary import describe, entries

_PACKAGE = Path(__file__).resolve().parents[2]
_NEAR, _TITLE = 3, 128
_NAME = re.compile(r"\w[\w-]*")
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "scatter": ("metrics", "x"),
    "proxy_vs_judge": ("metrics", "x", "judge", "judge_x"),
    "curve": (),
    "frontier": (),
}
"""The settings without which a panel of the kind cannot be drawn; of every other kind, `metrics`."""
_OPTIONAL: Mapping[str, tuple[str, ...]] = {"curves": ("x",)}
_FIXED: Mapping[str, tuple[str, ...]] = {"frontier": ("eval/refusal_rate", "eval/harmless_rate")}
"""The metrics of a kind that is drawn of these alone."""
_COUNTS: Mapping[str, tuple[int, int]] = {"parallel": (2, 12), "proxy_vs_judge": (1, 2)}


@dataclass(frozen=True)
class Panel:
    """A panel: `metrics` in their order, over `x` where the kind has one.

    `proxy_vs_judge`: `metrics` are the proxy (and the same on held-out prompts) over `x`, all of the history; the
    verdicts `judge` are over `judge_x`, both of the summary.
    """

    name: str
    kind: Kind
    title: str
    metrics: tuple[str, ...]
    x: str | None
    judge: str | None
    judge_x: str | None
    note: str

    @property
    def names(self) -> tuple[str, ...]:
        """All metrics of the panel, each once."""
        found = (self.x, *self.metrics, self.judge_x, self.judge)
        return tuple(dict.fromkeys(name for name in found if name is not None))


@dataclass(frozen=True)
class Section:
    """A section: panels under a title, or a part of the page."""

    name: str
    title: str
    panels: tuple[Panel, ...]
    part: Part | None

    @property
    def names(self) -> tuple[str, ...]:
        """All metrics of the section, each once."""
        return tuple(dict.fromkeys(name for panel in self.panels for name in panel.names))


@dataclass(frozen=True)
class Layout:
    """A dashboard's sections, in their order."""

    name: str
    title: str
    sections: tuple[Section, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """The panels of all sections."""
        return tuple(panel for section in self.sections for panel in section.panels)


def layout_of(options: DashboardOptions) -> Layout:
    """The layout that `dashboard` describes. Raises UserError for settings or metrics that do not exist."""
    if not _NAME.fullmatch(options.name):
        raise UserError(f"dashboard.name={options.name} is no folder's name: write letters, digits, - and _")
    if len(options.title) > _TITLE:
        raise UserError(f"dashboard.title is longer than the {_TITLE} characters that W&B takes: shorten it")
    sections = _nodes("dashboard.sections", options.sections)
    return Layout(
        options.name, options.title, tuple(_section(name, own) for name, own in sections.items() if own)
    )


@cache
def builtin_layout(name: str = "ablation") -> Layout:
    """A layout of conf/dashboard/, as it is without overrides."""
    home = _PACKAGE if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent  # an installed package carries conf/
    text = (home / "conf" / "dashboard" / f"{name}.yaml").read_text(encoding="utf-8")
    return layout_of(read(DashboardOptions, from_yaml(text), "dashboard"))


def _nodes(place: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{place}={shown(value)} is not a group of settings: write {place}.NAME.KEY=VALUE")
    return value


def _section(name: str, values: Any) -> Section:
    place = f"dashboard.sections.{name}"
    own = _read(SectionOptions, values, place)
    if (own.part is None) == (own.panels is None):
        raise UserError(f"{place} must have either panels or a part: write {place}.panels or {place}.part")
    if own.part is not None:
        return Section(name, own.title or "", (), own.part)
    panels = _nodes(f"{place}.panels", own.panels)
    title = own.title or name.replace("_", " ").capitalize()
    found = tuple(_panel(key, one, f"{place}.panels.{key}") for key, one in panels.items() if one)
    return Section(name, title, found, None)


def _panel(name: str, values: Any, place: str) -> Panel:
    own = _read(PanelOptions, values, place)
    needed = _NEEDED.get(own.kind, ("metrics",))
    for key in ("metrics", "x", "judge", "judge_x"):
        given = getattr(own, key) is not None
        if key in needed and not given:
            raise UserError(f"{place}.{key} is missing: kind: {own.kind} needs it, write names of metrics")
        if given and key not in (*needed, *_OPTIONAL.get(own.kind, ())):
            raise UserError(f"{place}.{key} has no meaning with kind: {own.kind}: leave it out")
    metrics = own.metrics or ()
    low, high = _COUNTS.get(own.kind, (1 if "metrics" in needed else 0, 99))
    if not low <= len(metrics) <= high:
        count = f"{low}" if low == high else f"{low} to {high}"
        raise UserError(f"{place}.metrics has {len(metrics)} names: kind: {own.kind} takes {count}")
    metrics = _FIXED.get(own.kind, metrics)
    panel = Panel(name, own.kind, own.title or "", metrics, own.x, own.judge, own.judge_x, own.note or "")
    for metric in panel.names:
        _check(place, metric)
    return panel


def _read(options: type[Any], values: Any, place: str) -> Any:
    """As `read`, with the settings of a section or panel in the sentence for an unknown one."""
    known = [field.name for field in fields(options)]
    for key in _nodes(place, values):
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            meant = f"did you mean {near[0]}?" if near else f"write one of {', '.join(known)}"
            raise UserError(f"{place}.{key} is not a configuration key: {meant}")
    if options is PanelOptions and "kind" not in values:
        raise UserError(f"{place}.kind is missing: write one of {', '.join(get_args(Kind))}")
    return read(options, values, place)


def _check(place: str, metric: str) -> None:
    """Raises UserError for a name that is no metric of a run; those of an arm have its own names here."""
    if describe(metric) is not None and metric.count("/") == 1:
        return
    last = "/".join(metric.split("/")[-2:])
    if describe(last) is not None:
        raise UserError(f"{place}: {metric} is a metric of one arm: write {last}, which every arm has")
    near = get_close_matches(metric, [name for name in entries() if "*" not in name], n=_NEAR)
    meant = f"did you mean {' or '.join(near)}?" if near else "the documentation lists all of them"
    raise UserError(f"{place}: {metric} is no metric of the registry: {meant}")
