"""The run record: one folder per job that shows what ran, how far it got and what came out.

The folder is complete without W&B; reports read nothing else.
"""

from __future__ import annotations

import logging
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from rlaif.errors import Pruned, UserError
from rlaif.io import append_jsonl, write_json, write_jsonl, write_text
from rlaif.io.lineage import LineageRow, write_lineage
from rlaif.io.plain import json_ready
from rlaif.io.versions import library_versions
from rlaif.tracking.redact import redact, redact_assignments
from rlaif.tracking.wandb_run import WandbOptions, as_table, open_run

logger = logging.getLogger(__name__)

Watch = Callable[[Mapping[str, float | None], int], None]
"""Told of each row of a history and its step, as it is logged; may raise Pruned."""


def run_directory(root: Path, stage: str) -> Path:
    """Create and return `<root>/runs/<stage>/<UTC time>-<8 hex>`; raises UserError if it is already there."""
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
    path = root / "runs" / stage / name
    try:
        path.mkdir(parents=True)
    except FileExistsError as error:
        if not path.is_dir():
            raise
        raise UserError(f"run directory {path} already exists; start the command again") from error
    return path


class Run:
    """The record of one job, as a context manager.

    Writes `config.yaml` (secrets hidden), `summary.json`, `history.jsonl`, `lineage.json`, `tables/`,
    `alerts.jsonl` and `meta.json` into `directory`, and mirrors them to a W&B run. An exception in the `with`
    body marks both as failed (Pruned: the folder as pruned) and propagates.
    """

    def __init__(
        self,
        *,
        directory: Path,
        stage: str,
        config: dict[str, Any],
        overrides: list[str],
        group: str | None,
        name: str,
        wandb_options: WandbOptions | None,
        watch: Watch | None = None,
    ) -> None:
        """`config` is plain and resolved; with `wandb_options` None, W&B is not used at all."""
        self.directory = directory
        self.stage = stage
        self.name = name
        self.summary_path = directory / "summary.json"
        self.wandb_run: Any | None = None
        self._config = redact(json_ready(config))
        self._options = wandb_options
        self._watch = watch
        if wandb_options is not None and wandb_options.group is None:
            self._options = replace(wandb_options, group=group)
        self._summary: dict[str, Any] = {}
        self._alerts: set[tuple[str, str]] = set()
        self._mirror_failed = False
        self._started = time.monotonic()
        self._meta: dict[str, Any] = {
            "stage": stage,
            "name": name,
            "group": group,
            "overrides": [redact_assignments(override) for override in overrides],
            "git": _git_commit(),
            "versions": library_versions(),
            "started": None,
            "finished": None,
            "state": "running",
            "error": None,
            "wandb": None,
        }

    @property
    def commit(self) -> str | None:
        """The code's commit, as `meta.json` has it."""
        commit = self._meta["git"]
        return None if commit is None else str(commit)

    def __enter__(self) -> Self:
        if (self.directory / "meta.json").exists():
            raise UserError(f"{self.directory} already holds a run; give each run a directory of its own")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._started = time.monotonic()
        self._meta["started"] = _now()
        write_text(
            self.directory / "config.yaml", yaml.safe_dump(self._config, sort_keys=False, allow_unicode=True)
        )
        write_json(self.summary_path, self._summary)
        self._write_meta()
        try:
            self._open_wandb()
        except BaseException as error:
            self._finish(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # Not through the W&B run's own __exit__, which would print a traceback for a user's mistake.
            fine = error is None or isinstance(error, Pruned)
            self._mirror(lambda run: run.finish(exit_code=0 if fine else 1))
        finally:
            self._finish(error)

    def log(self, metrics: dict[str, float], step: int, *, watched: bool = True) -> None:
        """Append one row {"step", "time" (seconds since the start), **metrics} to the history.

        A search's pruner is told of it if it is `watched`, and may then raise Pruned.
        """
        reserved = {"step", "time"} & metrics.keys()
        if reserved:
            raise ValueError(f"metric name {sorted(reserved)[0]!r} is a reserved column of the history")
        row = json_ready(metrics)
        seconds = round(time.monotonic() - self._started, 3)
        append_jsonl(self.directory / "history.jsonl", {"step": int(step), "time": seconds} | row)
        numbers = {name: float("nan") if value is None else value for name, value in row.items()}
        self._mirror(lambda run: run.log(numbers | {"step": int(step)}))
        if self._watch is not None and watched:
            self._watch(row, int(step))

    def table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Write rows to `tables/<name>.jsonl`, and to W&B unless the upload policy is metrics."""
        path = self.directory / "tables" / f"{name}.jsonl"
        if (self.directory / "tables").resolve() not in path.resolve().parents:
            raise ValueError(f"table name {name!r} leaves the tables folder")
        plain = [json_ready(row) for row in rows]
        write_jsonl(path, plain)
        if self._uploads("text", "weights") and plain:
            self._mirror(lambda run: run.log({name: as_table(plain)}))

    def lineage(self, rows: Sequence[LineageRow]) -> None:
        """Write `lineage.json`: the artifacts that this run builds on, as the artifact store lists them."""
        write_lineage(self.directory, rows)
        names = [row.name for row in rows]
        self._mirror(lambda run: run.config.update({"artifacts": names}, allow_val_change=True))

    def artifact(self, *, name: str, kind: str, path: Path, metadata: dict[str, Any]) -> None:
        """Mirror an artifact to W&B: its name and metadata always, its files if the policy is weights.

        With policy text a reference says where the files are, without a copy.
        """

        def send(run: Any) -> None:
            import wandb

            mirror = wandb.Artifact(name=name, type=kind, metadata=redact(json_ready(metadata)))
            if self._uploads("weights"):
                mirror.add_dir(str(path))
            elif self._uploads("text"):
                mirror.add_reference(path.resolve().as_uri(), checksum=False)
            run.log_artifact(mirror)

        self._mirror(send)

    def summary(self, metrics: dict[str, Any]) -> None:
        """Merge `name: number or text` into `summary.json` (NaN becomes null)."""
        plain = json_ready(metrics)
        nested = [name for name, value in plain.items() if isinstance(value, (dict, list))]
        if nested:
            raise ValueError(f"summary value {nested[0]!r} is not a number or text; the summary is flat")
        self._summary |= plain
        write_json(self.summary_path, self._summary)
        self._mirror(lambda run: run.summary.update(plain))

    def alert(self, title: str, text: str) -> None:
        """Record a warning about this run in `alerts.jsonl` and the log; online, W&B notifies its owner.

        A repeated warning, for instance from another arm of a comparison, is dropped.
        """
        title, text = redact(title), redact(text)
        if (title, text) in self._alerts:
            return
        self._alerts.add((title, text))
        append_jsonl(self.directory / "alerts.jsonl", {"time": _now(), "title": title, "text": text})
        logger.warning("%s: %s", title, text)
        self._mirror(lambda run: None if run.offline else run.alert(title=title, text=text))

    def _mirror(self, send: Callable[[Any], object]) -> None:
        """Send something to W&B. A failure is reported once and costs nothing else: the folder has everything."""
        if self.wandb_run is None:
            return
        try:
            send(self.wandb_run)
        except Exception as error:  # its own types are many
            if not self._mirror_failed:
                logger.warning(
                    "W&B does not accept this run's data (%s): the run continues", redact(str(error))
                )
            self._mirror_failed = True

    def _open_wandb(self) -> None:
        if self._options is None:
            return
        config = self._config | {"versions": self._meta["versions"], "git": self._meta["git"]}
        self.wandb_run = open_run(self._options, directory=self.directory, name=self.name, config=config)
        if self.wandb_run is not None:
            offline = self.wandb_run.offline
            self._meta["wandb"] = {
                "mode": "offline" if offline else "online",
                "id": self.wandb_run.id,
                "url": None if offline else self.wandb_run.url,  # asking for it offline prints a warning
            }
            self._write_meta()

    def _uploads(self, *policies: str) -> bool:
        return self._options is not None and self._options.upload in policies

    def _finish(self, error: BaseException | None) -> None:
        self._meta["finished"] = _now()
        ends = "pruned" if isinstance(error, Pruned) else "failed"
        self._meta["state"] = "finished" if error is None else ends
        if error is not None:
            kind = "" if isinstance(error, UserError | Pruned) else f"{type(error).__name__}: "
            self._meta["error"] = redact(f"{kind}{error}").removesuffix(": ")
        self._write_meta()

    def _write_meta(self) -> None:
        write_json(self.directory / "meta.json", self._meta)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _git_commit() -> str | None:
    """Commit of the checkout that the code runs from, with `-dirty` if it was changed; None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None
