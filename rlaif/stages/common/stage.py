"""What a stage is: what it reads, builds, refuses and costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif.stages.common.context import Context
from rlaif.store import Artifact, ArtifactSpec

Parents = Mapping[str, Artifact]
Gate = Callable[[Context, Parents], dict[str, Any]]
Review = Callable[[Context, Artifact], dict[str, Any]]
Row = dict[str, Any]


def no_gate(ctx: Context, built: Parents) -> dict[str, Any]:
    """Nothing to object to."""
    return {}


def nothing(ctx: Context, built: Parents) -> list[Row]:
    """No rows."""
    return []


def no_tables(ctx: Context, built: Parents) -> dict[str, list[Row]]:
    """No tables."""
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

    What a run tells of the artifact beside its metrics: `items`, a row for each test item that its measures are means
    of; `tables` by name; `history`, the rows of its training's curves where it keeps them.
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
    items: Callable[[Context, Parents], list[Row]] = nothing
    tables: Callable[[Context, Parents], dict[str, list[Row]]] = no_tables
    history: Callable[[Artifact], list[Row]] | None = None

    def spec(self, ctx: Context, parents: Parents) -> ArtifactSpec:
        """The artifact's identity; needs no model and no parent's files."""
        return ArtifactSpec(
            kind=self.kind,
            config=self.config(ctx),
            parents=tuple(parents.values()),
            seed=getattr(ctx.options.seeds, self.seed),
            version=self.version,
            data_hash=ctx.task.fingerprint,
        )
