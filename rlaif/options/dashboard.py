"""The options of a dashboard: sections of panels, each of metrics by their names in the registry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rlaif.options.rules import Name

Kind = Literal[
    "arms", "table", "forest", "parallel", "scatter", "frontier", "proxy_vs_judge", "curves", "curve"
]
Part = Literal[
    "claim",
    "diagnosis",
    "results",
    "labelers",
    "labeler",
    "reward_model",
    "data",
    "reading",
    "samples",
    "judgements",
    "lineage",
    "cost",
    "alerts",
    "runs",
]


@dataclass(frozen=True, kw_only=True)
class PanelOptions:
    """`dashboard.sections.SECTION.panels.PANEL`: what is drawn, of which metrics."""

    kind: Kind
    title: Name | None = None
    metrics: tuple[str, ...] | None = None
    x: Name | None = None
    judge: Name | None = None
    judge_x: Name | None = None
    note: Name | None = None


@dataclass(frozen=True, kw_only=True)
class SectionOptions:
    """`dashboard.sections.SECTION`: a title and panels, or a part of the page that has no panels."""

    title: Name | None = None
    panels: Any = None
    part: Part | None = None


@dataclass(frozen=True, kw_only=True)
class DashboardOptions:
    """`dashboard`: the layout of the report's page, of the W&B workspace and of the W&B report."""

    name: Name
    title: Name
    sections: Any
