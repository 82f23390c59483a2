"""A layout as a W&B workspace and a W&B report, built without a login.

A run set of a report names no project, so that W&B takes the report's own: with one, the package would ask the server
for the project while it builds the report.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from rlaif.io.hashing import digest
from rlaif.report.comparison import with_range
from rlaif.report.dashboard.layout import Layout, Section
from rlaif.report.dashboard.panels import Material, Shown, ShownSection, values_grid
from rlaif.report.dashboard.wandb_panels import columns_of, panels_of
from rlaif.report.dashboard.wandb_runs import RunSelection
from rlaif.report.markdown import arms_markdown, markdown_table
from rlaif.report.page import Content
from rlaif.stages.eval.judge_tables import Grid

_MAX_RUNS = 100
_ADDRESS = re.compile(r"\w+://[^\s,;|]+")
_FOLDER = re.compile(r"(?<![\w.~/…])~?/(?:[^\s,;|/]*/)*([^\s,;|/]+)/?")


def workspace(layout: Layout, runs: RunSelection, *, entity: str, project: str) -> Any:
    """The workspace: a section for each of the layout's that has panels or a table of W&B's."""
    drawn = [(section, panels_of(section, section.panels)) for section in layout.sections]
    sections = [
        ws.Section(
            name=section.title or str(section.part).capitalize(), panels=panels, is_open=bool(section.panels)
        )
        for section, panels in drawn
        if panels
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=layout.title,
        sections=sections,
        settings=ws.WorkspaceSettings(max_runs=_MAX_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=runs.filters, groupby=runs.groupby, pinned_columns=columns_of(layout)
        ),
    )


def report(layout: Layout, runs: RunSelection, content: Content, *, entity: str, project: str) -> Any:
    """The report on the runs of `content`: verdict, claims, and of each section its panels with their numbers."""
    blocks: list[Any] = [wr.MarkdownBlock(text) for text in _opening(content)]
    own = {section.name: section for section in layout.sections}
    for shown in content.board.sections:
        blocks += _section(own[shown.name], shown, runs, content.board.material)
    return wr.Report(
        entity=entity,
        project=project,
        title=layout.title,
        description=_plain(content.verdict.sentence),
        blocks=blocks,
        width="fluid",
    )


def specification(model: Any) -> Mapping[str, Any]:
    """What W&B is sent of a workspace or a report, as plain data."""
    plain: Mapping[str, Any] = model._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    return plain


def _opening(content: Content) -> Iterable[str]:
    yield f"**{_plain(content.verdict.sentence)}**"
    for warning in content.verdict.warnings:
        yield f"**Caution.** {_plain(warning)}"
    if content.claim is not None:
        claim = content.claim
        yield f"## The claim\n\n{claim['id']}: {_plain(claim['hypothesis'])}\n\n{_plain(claim['sentence'])}"


def _section(section: Section, shown: ShownSection, runs: RunSelection, material: Material) -> Iterable[Any]:
    kept = [one.panel for one in shown.panels]
    panels = panels_of(section, kept)
    texts = [text for one in shown.panels for text in _numbers(one, material)]
    if not panels and not texts:
        return
    yield wr.H2(section.title or str(section.part).capitalize())
    yield from (wr.MarkdownBlock(text) for text in texts)
    if panels:
        runset = wr.Runset(name="Arms", filters=runs.filters, groupby=[f"config.{key}" for key in runs.keys])
        runset._id = digest([section.name, "runs"], 11)
        yield wr.PanelGrid(runsets=[runset], panels=panels)


def _numbers(one: Shown, material: Material) -> Iterable[str]:
    """The panel's values with their intervals, which W&B's bars cannot show."""
    if one.arms is not None:
        yield _plain(arms_markdown(one.arms))
        if one.arms.caption:
            yield _plain(one.arms.caption)
    elif one.panel.kind in ("table", "forest"):
        grid = values_grid(one.panel, one.measured, material)
        yield f"### {one.panel.title or 'Estimates'}\n\n{_plain(_grid_markdown(grid))}"
    elif one.points is not None:
        yield _plain(markdown_table(one.points.heads, one.points.rows))


def _grid_markdown(grid: Grid) -> str:
    return markdown_table(grid.heads, ([with_range(*cell) for cell in row] for row in grid.rows))


def _plain(text: str) -> str:
    """The text without addresses and folders, by which arms are named where they differ in them.

    Of a folder the last part stays; of an address a digest, so that two of them are still two.
    """
    text = _ADDRESS.sub(lambda found: f"address-{digest(found[0], 6)}", text)
    return _FOLDER.sub(lambda found: found[1], text)
