"""What a stage is: what it reads, builds, refuses and costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rlaif.stages.common.context import Context
from rlaif.store import Artifact, ArtifactSpec

Parents = Mapping[str, Artifact]
Row = dict[str, Any]


@dataclass(frozen=True)
class Rates:
    """How much of each kind of `Work` a machine does per second: tokens, and steps of decoding."""

    forward: float
    decoded: float
    steps: float
    trained: float
    scored: float
    ranked: float


@dataclass(frozen=True)
class Work:
    """What building an artifact takes, in tokens.

    `forward` run through the whole model, `decoded` one after another (in so many `steps`, each of a batch, whose time
    does not shrink with its rows), `trained` run forward and backward through the top on the trunk's features, `ranked`
    the same for a reward model, which needs no vocabulary, `scored` run through the top alone. `usd` is None if a price
    is unknown. What this machine does not compute, such as a server's work, takes `seconds`; its tokens are `read` and
    `written`.
    """

    forward: float = 0.0
    decoded: float = 0.0
    steps: float = 0.0
    trained: float = 0.0
    scored: float = 0.0
    ranked: float = 0.0
    usd: float | None = 0.0
    seconds: float = 0.0
    read: float = 0.0
    written: float = 0.0

    def __add__(self, other: Work) -> Work:
        known = None if None in (self.usd, other.usd) else (self.usd or 0.0) + (other.usd or 0.0)
        names = [field.name for field in fields(self) if field.name != "usd"]
        return Work(**{name: getattr(self, name) + getattr(other, name) for name in names}, usd=known)


@dataclass(frozen=True)
class Stage:
    """A stage as a function of its slice of the config and of the artifacts it reads.

    `version` rises when a change of the stage's code changes what equal inputs give. `check` raises UserError for
    options that `build` would reject. `gate` sees what the stage is built on (all ancestors by kind) each time the
    stage is requested, even if its artifact already exists: it returns entries for the summary, such as a warning, or
    raises UserError. `review` sees the stage's own artifact, new or reused, and returns entries that depend on
    settings outside its identity. `again` says whether to rebuild a finished artifact with new content under its old
    name (`labeler.retry`); if its metric `<kind>/asked_again` is above 0, artifacts built on it earlier are rebuilt.

    What a run records beside the metrics: `items`, a row per test item that the measures are means of; `tables` by
    name; `history`, the rows of the training curves if the stage keeps them.
    """

    kind: str
    version: int
    seed: str
    parents: Callable[[Context], tuple[str, ...]]
    config: Callable[[Context], dict[str, Any]]
    build: Callable[[Context, Path, Parents], dict[str, Any]]
    work: Callable[[Context], Work]
    check: Callable[[Context], None]
    gate: Callable[[Context, Parents], dict[str, Any]] = lambda ctx, built: {}
    review: Callable[[Context, Artifact], dict[str, Any]] = lambda ctx, artifact: {}
    again: Callable[[Context], bool] = lambda ctx: False
    items: Callable[[Context, Parents], list[Row]] = lambda ctx, built: []
    tables: Callable[[Context, Parents], dict[str, list[Row]]] = lambda ctx, built: {}
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
