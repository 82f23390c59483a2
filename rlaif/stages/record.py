"""What a run records of a finished graph: curves, tables, artifacts and the summary.

A job records its own; of a comparison, each arm and seeds is a W&B run of its own, in the comparison's group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rlaif.options.read import plain
from rlaif.records import TaskData
from rlaif.stages.common.context import Context
from rlaif.stages.graph import Graph
from rlaif.store import Artifact
from rlaif.store.manifest import DIGEST_LENGTH

OF_THE_COMPARISON = (
    "arms",
    "grid",
    "repeat",
    "repeats",
    "test",
    "curve",
    "dashboard",
    "diagnose",
    "controls",
    "compare",
    "claim",
    "ledger",
)
"""Options that say nothing of a single arm."""


class Recorder(Protocol):
    """A job's run record, or the W&B run of one arm of a comparison."""

    def replay(self, metrics: dict[str, float], step: int) -> None: ...

    def table(self, name: str, rows: list[dict[str, Any]]) -> None: ...

    def summary(self, metrics: Mapping[str, Any]) -> None: ...

    def artifact(
        self,
        *,
        name: str,
        kind: str,
        metadata: Mapping[str, Any],
        path: Path | None = None,
        used: bool = False,
    ) -> None: ...


def record(graph: Graph, to: Recorder) -> None:
    """Record everything of `graph`; the curves of what another job trained belong here too."""
    for kind, rows in graph.histories().items():
        for row in rows if graph.built[kind].reused else ():
            to.replay({name: value for name, value in row.items() if name != "step"}, step=int(row["step"]))
    for name, rows in graph.tables().items():
        to.table(name, rows)
    items = graph.items()
    if items:
        to.table("items", items)
    record_artifacts([graph.ctx.task], graph.built.values(), to)
    to.summary(graph.summary())  # after the history, whose best or last value W&B puts into its summary


def record_artifacts(tasks: Iterable[TaskData], artifacts: Iterable[Artifact], to: Recorder) -> None:
    """The data and `artifacts`, parents first: those that were there are what the run used, the others what it made."""
    names = {}
    for task in tasks:
        names[task.fingerprint] = f"data-{task.fingerprint[:DIGEST_LENGTH]}"
        sizes = {"train": len(task.train), "validation": len(task.validation), "test": len(task.test)}
        known = {"fingerprint": task.fingerprint, **sizes}
        to.artifact(name=names[task.fingerprint], kind="data", metadata=known, used=True)
    for artifact in artifacts:
        made = artifact.manifest
        parents: list[str | None] = [f"{one['kind']}-{one['digest']}" for one in made["parents"]]
        data = names.get(made["data_hash"])
        own = {
            "digest": artifact.digest,
            "parents": parents or [data],
            "seed": made["seed"],
            "created": made["created"],
        }
        to.artifact(
            name=artifact.name,
            kind=artifact.kind,
            path=artifact.path,
            metadata=own | {"metrics": artifact.metrics},  # W&B takes 100 keys, of which this is one
            used=artifact.reused,
        )


@contextmanager
def recorded_arm(arm: str, repeat: str, graph: Graph) -> Iterator[None]:
    """Inside, `graph` is built: what is logged, and what came of it in the end, goes to the arm's W&B run."""
    run = graph.ctx.run
    if run is None:
        yield
        return
    with run.arm(arm, repeat, arm_config(graph.ctx, repeat)) as mirror:
        yield
        if mirror.run is not None:
            record(graph, mirror)


def conclude_arm(arm: str, repeat: str, graph: Graph, summary: Mapping[str, Any]) -> None:
    """Give the arm's W&B run the `summary` that the comparison has of it, with results of meeting other arms."""
    run = graph.ctx.run
    if run is not None:
        run.arm_summary(arm, repeat, arm_config(graph.ctx, repeat), summary)


def arm_config(ctx: Context, repeat: str) -> dict[str, Any]:
    """The arm's own options, nested as they are written; `seed` is its seed if one kind of seed is repeated."""
    config: dict[str, Any] = plain(ctx.options)
    seeds = [word.partition("=")[2] for word in repeat.split(", ") if word]
    own = {name: value for name, value in config.items() if name not in OF_THE_COMPARISON}
    return own | {"seed": int(seeds[0]) if len(seeds) == 1 else config["seed"]}
