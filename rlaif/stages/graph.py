"""The stage graph: what each artifact depends on, and building what is missing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif.artifacts import Artifact, ArtifactSpec
from rlaif.data.report import report_metrics
from rlaif.stages.context import Context

logger = logging.getLogger(__name__)

Parents = Mapping[str, Artifact]
Gate = Callable[[Context, Parents], dict[str, Any]]
Review = Callable[[Context, Artifact], dict[str, Any]]


def no_gate(ctx: Context, built: Parents) -> dict[str, Any]:
    """Nothing to object to."""
    return {}


def never(ctx: Context) -> bool:
    """Nothing asks for the artifact to be made anew."""
    return False


def no_review(ctx: Context, artifact: Artifact) -> dict[str, Any]:
    """Nothing to tell."""
    return {}


@dataclass(frozen=True)
class Work:
    """What building an artifact takes: tokens run forward, decoded, and trained (forward and backward).

    `usd` is None where a price is not known. `seconds` is given where the work is not this machine's.
    """

    forward: float = 0.0
    decoded: float = 0.0
    trained: float = 0.0
    usd: float | None = 0.0
    seconds: float | None = None


@dataclass(frozen=True)
class Stage:
    """A stage as a function of its slice of the config and of the artifacts it reads.

    `version` rises when the stage's code changes what comes out of equal inputs. `check` raises UserError
    for options that `build` would refuse. `gate` sees what the stage stands on (all ancestors by kind)
    each time that the stage is asked for, also where its artifact is there already: it returns entries
    for the summary, such as a warning, or raises UserError. `review` sees the stage's own artifact, new or
    reused, and returns entries that depend on settings which are no part of it. `again` says whether a
    finished artifact is to be made anew with other content under its old name (`labeler.retry`); where its
    metric `<kind>/asked_again` is above 0, so are those that were built on it before.
    """

    kind: str
    version: int
    seed: str
    parents: Callable[[Context], tuple[str, ...]]
    config: Callable[[Context], dict[str, Any]]
    build: Callable[[Context, Path, Parents], dict[str, Any]]
    work: Callable[[Context], Work]
    check: Callable[[Context], None]
    gate: Gate = no_gate
    review: Review = no_review
    again: Callable[[Context], bool] = never

    def spec(self, ctx: Context, parents: Parents) -> ArtifactSpec:
        """The artifact's identity; needs no model and no parent's files."""
        return ArtifactSpec(
            kind=self.kind,
            config=self.config(ctx),
            parents=tuple(parents.values()),
            seed=ctx.cfg.seeds[self.seed],
            version=self.version,
            data_hash=ctx.task.fingerprint,
        )


@dataclass(frozen=True)
class Planned:
    """One stage of a plan: its artifact's name, whether it exists, and the work if not."""

    kind: str
    name: str
    exists: bool
    work: Work


class Graph:
    """Builds artifacts of one context, parents first, each at most once."""

    def __init__(self, ctx: Context, stages: Mapping[str, Stage]) -> None:
        self.ctx, self.stages = ctx, stages
        self.built: dict[str, Artifact] = {}
        self.notes: dict[str, Any] = {}
        self._follows = False

    def check(self, kind: str) -> None:
        """Raise UserError for options that `kind` or an ancestor would refuse, before anything is built."""
        self.ctx.check_model()
        stage = self.stages[kind]
        stage.check(self.ctx)
        stage.config(self.ctx)
        for parent in stage.parents(self.ctx):
            self.check(parent)

    def get(self, kind: str, *, force: bool = False, force_parents: bool = False) -> Artifact:
        """The artifact of stage `kind`, with its ancestors built where they are missing."""
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
        """Whether a finished artifact must be made anew: it is asked for, or an ancestor has other content by now."""
        if self._follows or spec.name in self.ctx.renewed:
            return False
        if stage.again(self.ctx):
            return True
        if not any(self._content_renewed(kind) for kind in self._ancestors(stage)):
            return False
        found = self.ctx.store.find(spec)
        return found is not None and any(
            self._content_renewed(kind) and self.built[kind].manifest["created"] > found.manifest["created"]
            for kind in self._ancestors(stage)
        )

    def _content_renewed(self, kind: str) -> bool:
        built = self.built.get(kind)
        return built is not None and bool(built.metrics.get(f"{kind}/asked_again"))

    def _ancestors(self, stage: Stage) -> set[str]:
        parents = stage.parents(self.ctx)
        return {*parents, *(one for kind in parents for one in self._ancestors(self.stages[kind]))}

    def follow(self, kind: str, folder: Path) -> None:
        """Take part in another process's build of `kind` in `folder`, which has all ancestors' artifacts."""
        stage, self._follows = self.stages[kind], True
        stage.build(self.ctx, folder, {name: self.get(name) for name in stage.parents(self.ctx)})

    def summary(self) -> dict[str, Any]:
        """All metrics of what was built or reused, with each stage's seconds, and what the gates noted."""
        metrics: dict[str, Any] = report_metrics(self.ctx.task) | self.notes
        for artifact in self.built.values():
            metrics |= artifact.metrics | {f"{artifact.kind}/seconds": artifact.manifest["seconds"]}
        return metrics

    def lineage(self) -> list[dict[str, Any]]:
        """The store's rows of the artifacts, the last one first, each with `reused`."""
        reused = {artifact.name: artifact.reused for artifact in self.built.values()}
        rows: dict[str, dict[str, Any]] = {}
        for artifact in reversed(self.built.values()):
            for row in self.ctx.store.lineage(artifact):
                name = f"{row['kind']}-{row['digest']}"
                rows.setdefault(name, {**row, "reused": reused.get(name, True)})
        return list(rows.values())

    def plan(self, kind: str) -> list[Planned]:
        """What `get(kind)` would do, parents first; nothing is built."""
        done: dict[str, tuple[Planned, Artifact]] = {}

        def visit(name: str) -> Artifact:
            if name not in done:
                stage = self.stages[name]
                spec = stage.spec(self.ctx, {parent: visit(parent) for parent in stage.parents(self.ctx)})
                found = None if stage.again(self.ctx) else self.ctx.store.find(spec)
                work = Work() if found else stage.work(self.ctx)
                stand_in = Artifact(
                    spec.kind, spec.digest, self.ctx.store.root / spec.name, {"metrics": {}}, reused=False
                )
                done[name] = (Planned(name, spec.name, found is not None, work), found or stand_in)
            return done[name][1]

        visit(kind)
        return [planned for planned, _ in done.values()]
