"""The stage graph: what each artifact depends on, and building what is missing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlaif.data.report import report_metrics
from rlaif.io.lineage import LineageRow
from rlaif.stages.common.context import Context
from rlaif.stages.common.stage import Stage, Work
from rlaif.store import Artifact, ArtifactSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """One stage of a plan: its artifact's name, whether it exists, and the work if not."""

    kind: str
    name: str
    exists: bool
    work: Work


class Graph:
    """Builds the artifacts of one context, parents first, each at most once."""

    def __init__(self, ctx: Context, stages: Mapping[str, Stage]) -> None:
        self.ctx, self.stages = ctx, stages
        self.built: dict[str, Artifact] = {}
        self.notes: dict[str, Any] = {}
        self._follows = False

    def check(self, kind: str) -> None:
        """Raise UserError for options that `kind` or an ancestor would reject, before anything is built."""
        self.ctx.check_model()
        stage = self.stages[kind]
        stage.check(self.ctx)
        stage.config(self.ctx)
        for parent in stage.parents(self.ctx):
            self.check(parent)

    def get(self, kind: str, *, force: bool = False, force_parents: bool = False) -> Artifact:
        """The artifact of stage `kind`; it and its ancestors are built if they are missing."""
        if kind in self.built:
            return self.built[kind]
        stage = self.stages[kind]
        parents = {
            name: self.get(name, force=force_parents, force_parents=force_parents)
            for name in stage.parents(self.ctx)
        }
        self.notes |= stage.gate(self.ctx, self.built)
        spec = stage.spec(self.ctx, parents)

        def build(folder: Path) -> dict[str, Any]:
            logger.info("building %s", spec.name)
            return stage.build(self.ctx, folder, parents)

        again = self._again(stage, spec)
        artifact = self.ctx.store.get_or_build(spec, build, force=force or again)
        if again:
            self.ctx.renewed.add(artifact.name)
        if artifact.reused:
            logger.info("reusing  %s", spec.name)
        self.built[kind] = artifact
        self.notes |= stage.review(self.ctx, artifact)
        return artifact

    def _again(self, stage: Stage, spec: ArtifactSpec) -> bool:
        """Whether a finished artifact must be rebuilt: on request, or since an ancestor now has other content."""
        if self._follows or spec.name in self.ctx.renewed:
            return False
        if stage.again(self.ctx):
            return True
        ancestors = [self.built[kind] for kind in self._ancestors(stage) if kind in self.built]
        renewed = [built for built in ancestors if built.metrics.get(f"{built.kind}/asked_again")]
        found = self.ctx.store.find(spec) if renewed else None
        return found is not None and any(
            built.manifest["created"] > found.manifest["created"] for built in renewed
        )

    def _ancestors(self, stage: Stage) -> set[str]:
        parents = stage.parents(self.ctx)
        return {*parents, *(one for kind in parents for one in self._ancestors(self.stages[kind]))}

    def follow(self, kind: str, folder: Path) -> None:
        """Take part in another process's build of `kind` in `folder`, which has all ancestors' artifacts."""
        stage, self._follows = self.stages[kind], True
        stage.build(self.ctx, folder, {name: self.get(name) for name in stage.parents(self.ctx)})

    def summary(self) -> dict[str, Any]:
        """All metrics of what was built or reused, with each stage's seconds and the gates' notes."""
        metrics: dict[str, Any] = report_metrics(self.ctx.task) | self.notes
        for artifact in self.built.values():
            metrics |= artifact.metrics | {f"{artifact.kind}/seconds": artifact.manifest["seconds"]}
        return metrics

    def items(self) -> list[dict[str, Any]]:
        """A row per gold pair of the labeler, test pair of the reward model and judged prompt."""
        return [row for kind in self.built for row in self.stages[kind].items(self.ctx, self.built)]

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """The details behind the artifacts' metrics, by the table's name."""
        return {
            name: rows
            for kind in self.built
            for name, rows in self.stages[kind].tables(self.ctx, self.built).items()
        }

    def histories(self) -> dict[str, list[dict[str, Any]]]:
        """The curves of what was trained, by kind, even if another job trained it."""
        keepers = {kind: self.stages[kind].history for kind in self.built}
        return {kind: read(self.built[kind]) for kind, read in keepers.items() if read is not None}

    def lineage(self) -> list[LineageRow]:
        """The store's rows for the artifacts, the last one first."""
        reused = {artifact.name: artifact.reused for artifact in self.built.values()}
        rows: dict[str, LineageRow] = {}
        for artifact in reversed(self.built.values()):
            for row in self.ctx.store.lineage(artifact):
                rows.setdefault(row.name, replace(row, reused=reused.get(row.name, True)))
        return list(rows.values())

    def name(self, kind: str) -> str:
        """What the artifact of `kind` is or would be called; no work is estimated, and nothing built."""
        return self._named(kind).name

    def _named(self, kind: str) -> Artifact:
        stage = self.stages[kind]
        spec = stage.spec(self.ctx, {parent: self._named(parent) for parent in stage.parents(self.ctx)})
        return self._stand_in(spec)

    def _stand_in(self, spec: ArtifactSpec) -> Artifact:
        folder = self.ctx.store.root / spec.name
        return Artifact(spec.kind, spec.digest, folder, {"metrics": {}}, reused=False)

    def plan(self, kind: str) -> list[Planned]:
        """What `get(kind)` would do, parents first; nothing is built."""
        done: dict[str, tuple[Planned, Artifact]] = {}

        def visit(name: str) -> Artifact:
            if name not in done:
                stage = self.stages[name]
                spec = stage.spec(self.ctx, {parent: visit(parent) for parent in stage.parents(self.ctx)})
                found = None if stage.again(self.ctx) else self.ctx.store.find(spec)
                work = Work() if found else stage.work(self.ctx)
                planned = Planned(name, spec.name, found is not None, work)
                done[name] = (planned, found or self._stand_in(spec))
            return done[name][1]

        visit(kind)
        return [planned for planned, _ in done.values()]
