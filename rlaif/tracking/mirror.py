"""What W&B gets of a job, or of one arm of a comparison. It never costs the job anything: the folder has everything."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif.io.plain import json_ready
from rlaif.io.wandb_log import history_rows
from rlaif.tracking.redact import redact
from rlaif.tracking.wandb_run import AXES, Upload, as_table, axis_of

logger = logging.getLogger(__name__)

TABLES = "tables/"
TYPES = {
    "data": "dataset",
    "sample": "pairs",
    "label": "labels",
    "rm": "reward-model",
    "rl": "policy",
    "eval": "evaluation",
    "headtohead": "evaluation",
}
"""What W&B calls an artifact of a kind; another kind has its own name."""


class Mirror:
    """One W&B run, or none (`run` is None): then every call does nothing.

    What W&B refuses is reported once. `before` are the folders of killed starts that fed the same W&B run: what it has
    of them is not sent again. `told` is the summary so far.
    """

    def __init__(self, run: Any | None, upload: Upload, before: Iterable[Path] = ()) -> None:
        self.run, self._upload, self._failed = run, upload, False
        self._sent = _sent(run, before) if run is not None else set()
        # What the server has got of a run that is continued online.
        self._reached = dict(run.summary) if run is not None and run.resumed and not run.offline else {}
        self.told: dict[str, Any] = {}

    @property
    def offline(self) -> bool:
        """Whether there is a run that has to be uploaded later."""
        return self.run is not None and bool(self.run.offline)

    def log(self, metrics: Mapping[str, float | None], step: int) -> None:
        """A row of the history: `step` goes to the axis of each stage that the row has metrics of."""
        if not metrics or self._has(metrics, step):
            return
        numbers = {name: float("nan") if value is None else value for name, value in metrics.items()}
        axes = {axis_of(name): step for name in metrics}
        self._send(lambda run: run.log(numbers | axes))

    def replay(self, metrics: Mapping[str, float | None], step: int) -> None:
        """`log` a row of what another job has trained."""
        self.log(metrics, step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table as `tables/<name>`, unless the upload policy is metrics."""
        plain = [json_ready(dict(row)) for row in rows]
        if plain and self._upload in ("text", "weights"):
            self._send(lambda run: run.log({f"{TABLES}{name}": as_table(plain)}))

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Values that replace what W&B keeps of the history by itself."""
        if self.run is None:
            return
        plain = json_ready(dict(metrics))
        self.told |= plain
        self._send(lambda run: run.summary.update(plain))

    def config(self, values: Mapping[str, Any]) -> None:
        """More of the configuration, known only now."""
        self._send(lambda run: run.config.update(dict(values), allow_val_change=True))

    def artifact(
        self,
        *,
        name: str,
        kind: str,
        metadata: Mapping[str, Any],
        path: Path | None = None,
        used: bool = False,
    ) -> None:
        """An artifact that the run made or, if `used`, built on.

        Its name and metadata always; with policy text a reference that says where the files in `path` are, with policy
        weights the files. An artifact has the same name and files in each run, so W&B keeps one version, with the
        runs that made and used it.
        """

        def send(run: Any) -> None:
            import wandb

            mirror = wandb.Artifact(
                name=name, type=TYPES.get(kind, kind), metadata=redact(json_ready(dict(metadata)))
            )
            if path is not None and self._upload == "weights":
                mirror.add_dir(str(path), policy="immutable", skip_cache=True)
            elif path is not None and self._upload == "text":
                mirror.add_reference(path.resolve().as_uri(), checksum=False)
            if used:
                # use_artifact() refuses to work offline, and online waits for the server; this is what it calls.
                run._log_artifact(mirror, is_user_created=True, use_after_commit=True)
            else:
                run.log_artifact(mirror)

        self._send(send)

    def alert(self, title: str, text: str) -> None:
        """Notify the run's owner. An offline run does not: its alerts would arrive with the upload, days later."""
        self._send(lambda run: None if run.offline else run.alert(title=title, text=text))

    def finish(self, *, failed: bool) -> None:
        """Close the run."""
        # Not through the W&B run's own __exit__, which would print a traceback for a user's mistake.
        self._send(lambda run: run.finish(exit_code=int(failed)))

    def _has(self, metrics: Mapping[str, Any], step: int) -> bool:
        reached = [self._reached.get(axis_of(name)) for name in metrics]
        there = all(isinstance(last, int | float) and step <= last for last in reached)
        return there or (step, frozenset(metrics)) in self._sent

    def _send(self, send: Callable[[Any], object]) -> None:
        if self.run is None:
            return
        try:
            send(self.run)
        except Exception as error:  # its own types are many
            if not self._failed:
                logger.warning(
                    "W&B does not accept this run's data (%s): the run continues", redact(str(error))
                )
            self._failed = True


def _sent(run: Any, folders: Iterable[Path]) -> set[tuple[int, frozenset[str]]]:
    """Step and metrics of each row of the run that killed starts have left in their folders.

    What is there of an offline run will be uploaded. What is there of an online one may have been: the server knows.
    """
    found = set()
    for folder in folders:
        for file in folder.glob(f"wandb/*run-*/run-{run.id}.wandb"):
            if run.offline or file.parent.name.startswith("offline-"):
                for row in history_rows(file):
                    names = frozenset(filter(_is_metric, row))
                    if names:
                        found.add((int(row[axis_of(next(iter(names)))]), names))
    return found


def _is_metric(name: str) -> bool:
    return "/" in name and name not in AXES.values() and not name.startswith(TABLES)


NOWHERE = Mirror(None, "metrics")
