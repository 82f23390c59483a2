"""The run record: one folder per job that shows what ran, how far it got and what came out.

The folder is complete without W&B; reports read nothing else.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from rlaif.errors import Pruned, UserError
from rlaif.io import append_jsonl, digest, write_json, write_jsonl, write_text
from rlaif.io.lineage import LineageRow, write_lineage
from rlaif.io.plain import json_ready
from rlaif.io.versions import library_versions
from rlaif.tracking.killed import LOCK, Killed, claim, hold
from rlaif.tracking.mirror import NOWHERE, Mirror
from rlaif.tracking.redact import redact, redact_assignments
from rlaif.tracking.wandb_run import RunKey, WandbOptions, open_run

logger = logging.getLogger(__name__)
NO_ARM = ("", "")

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
    body marks both as failed (Pruned: the folder as pruned) and propagates. If the same command was killed before, its
    W&B run is continued.
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
        self._mirror = NOWHERE
        self._arm = NO_ARM
        self._config = redact(json_ready(config))
        self._options = wandb_options
        self._watch = watch
        if wandb_options is not None and wandb_options.group is None:
            self._options = replace(wandb_options, group=group)
        self._summary: dict[str, Any] = {}
        self._alerts: dict[tuple[str, str], None] = {}
        self._killed: Killed | None = None
        self._started = time.monotonic()
        words = [redact_assignments(override) for override in overrides]
        self._meta: dict[str, Any] = {
            "stage": stage,
            "name": name,
            "group": group,
            "overrides": words,
            "identity": digest([stage, name, group, words, self._config], 16),
            "continues": None,
            "git": _git_commit(),
            "versions": library_versions(),
            "started": None,
            "finished": None,
            "state": "running",
            "error": None,
            "wandb": None,
        }

    @property
    def wandb_run(self) -> Any | None:
        """W&B's own run of what is logged now: the job's, or an arm's."""
        return self._mirror.run

    @property
    def offline(self) -> bool:
        """Whether W&B's run has to be uploaded later."""
        return self._mirror.offline

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
        self._lock = hold(self.directory)
        self._killed = claim(self.directory, self._meta["identity"], self._project())
        self._meta["continues"] = self._killed and self._killed.run
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
            self._mirror.table("alerts", [{"title": title, "text": text} for title, text in self._alerts])
            self._mirror.finish(failed=not (error is None or isinstance(error, Pruned)))
        finally:
            self._finish(error)

    @contextmanager
    def arm(self, name: str, repeat: str, config: Mapping[str, Any]) -> Iterator[Mirror]:
        """Inside, what is logged is that of the arm `name` with the seeds `repeat`, whose plain options are `config`.

        Its rows of the history say so, and go to a W&B run of the arm's own in the comparison's group, as do the
        tables, artifacts and summary that are given to the mirror. Without W&B, the mirror does nothing.
        """
        own = self._open_arm(name, repeat, config)
        outer, self._mirror, self._arm = self._mirror, own, (name, repeat)
        failed = True
        try:
            yield own
            failed = False
        finally:
            self._mirror, self._arm = outer, NO_ARM
            own.finish(failed=failed)
        self._has_all(name, repeat, own)

    def arm_summary(
        self, name: str, repeat: str, config: Mapping[str, Any], summary: Mapping[str, Any]
    ) -> None:
        """What the comparison as a whole says of an arm, as the last word of the arm's W&B run."""
        told = self._arms().get(self._arm_id(name, repeat))
        if told is None or told["summary"] == digest(json_ready(dict(summary)), 16):
            return
        again = self._open_arm(name, repeat, config, part="summary")
        again.summary(summary)
        again.finish(failed=False)
        self._has_all(name, repeat, again)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Append one row {"step", "time" (seconds since the start), **metrics} to the history.

        Within an arm of a comparison, the row also has "arm" and "run", the arm's name and seeds. A search's pruner is
        told of it, and may then raise Pruned.
        """
        self.replay(metrics, step)
        if self._watch is not None:
            self._watch(json_ready(metrics), int(step))

    def replay(self, metrics: dict[str, float], step: int) -> None:
        """`log` a row of what another job has trained, of which no pruner is told."""
        reserved = {"step", "time", "arm", "run"} & metrics.keys()
        if reserved:
            raise ValueError(f"metric name {sorted(reserved)[0]!r} is a reserved column of the history")
        row = json_ready(metrics)
        seconds = round(time.monotonic() - self._started, 3)
        arm = dict(zip(("arm", "run"), self._arm, strict=True)) if self._arm != NO_ARM else {}
        append_jsonl(self.directory / "history.jsonl", {"step": int(step), "time": seconds} | arm | row)
        self._mirror.log(row, int(step))

    def table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Write rows to `tables/<name>.jsonl`, and to W&B unless the upload policy is metrics."""
        path = self.directory / "tables" / f"{name}.jsonl"
        if (self.directory / "tables").resolve() not in path.resolve().parents:
            raise ValueError(f"table name {name!r} leaves the tables folder")
        plain = [json_ready(row) for row in rows]
        write_jsonl(path, plain)
        self._mirror.table(name, plain)

    def lineage(self, rows: Sequence[LineageRow]) -> None:
        """Write `lineage.json`: the artifacts that this run builds on, as the artifact store lists them."""
        write_lineage(self.directory, [replace(row, config=redact(json_ready(row.config))) for row in rows])
        self._mirror.config({"artifacts": [row.name for row in rows]})

    def artifact(
        self,
        *,
        name: str,
        kind: str,
        metadata: Mapping[str, Any],
        path: Path | None = None,
        used: bool = False,
    ) -> None:
        """Mirror an artifact to W&B, as `Mirror.artifact` describes."""
        self._mirror.artifact(name=name, kind=kind, metadata=metadata, path=path, used=used)

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Merge `name: number or text` into `summary.json` (NaN becomes null)."""
        plain = json_ready(dict(metrics))
        nested = [name for name, value in plain.items() if isinstance(value, (dict, list))]
        if nested:
            raise ValueError(f"summary value {nested[0]!r} is not a number or text; the summary is flat")
        self._summary |= plain
        write_json(self.summary_path, self._summary)
        self._mirror.summary(plain)

    def alert(self, title: str, text: str) -> None:
        """Record a warning about this run in `alerts.jsonl` and the log; online, W&B notifies its owner.

        A repeated warning, for instance from another arm of a comparison, is dropped. W&B's run has all in a table.
        """
        title, text = redact(title), redact(text)
        if (title, text) in self._alerts:
            return
        self._alerts[title, text] = None
        append_jsonl(self.directory / "alerts.jsonl", {"time": _now(), "title": title, "text": text})
        logger.warning("%s: %s", title, text)
        self._mirror.alert(title, text)

    def _open_wandb(self) -> None:
        if self._options is None:
            return
        before = self._killed.wandb if self._killed is not None else {}
        named = os.environ.get("WANDB_RUN_ID") or None
        if named:
            before = {}  # whoever starts the command, such as W&B's agent, has said which run this is
        if before:
            self._options = replace(self._options, group=before.get("group"))
            before = self._continued(self._options, before)
        if not before:
            self._mirror = self._opened(self._options, self.name, self._config, RunKey(named))
        if self._mirror.run is not None:
            offline = self._mirror.offline
            self._meta["wandb"] = {
                "mode": "offline" if offline else "online",
                "id": self._mirror.run.id,
                "url": None if offline else self._mirror.run.url,  # asking for it offline prints a warning
                "project": self._project(),
                "group": self._options.group,
                "arms": before.get("arms", {}),
            }
            self._write_meta()

    def _continued(self, options: WandbOptions, before: Mapping[str, Any]) -> Mapping[str, Any]:
        """Continue a killed start's W&B run, and return its entry; nothing if W&B does not let us."""
        try:
            self._mirror = self._opened(options, self.name, self._config, RunKey(before["id"], resume=True))
        except Exception as error:  # such as a service that still holds the run open
            logger.warning(
                "W&B does not continue run %s (%s): a new one begins", before["id"], redact(str(error))
            )
            return {}
        return before

    def _open_arm(self, name: str, repeat: str, config: Mapping[str, Any], part: str = "") -> Mirror:
        """The W&B run of an arm, continued if it has begun; none if it has all, or if W&B cannot start one."""
        if self._options is None or self._mirror.run is None:
            return NOWHERE
        key = self._arm_id(name, repeat)
        begun = self._arms().get(key)
        if begun is not None and begun["summary"] and not part:
            return NOWHERE
        own = redact(json_ready(dict(config))) | {"arm": name, "comparison": self.directory.name}
        title = f"{name}, {repeat}" if repeat else name
        options, again = replace(self._options, job_type="arm"), RunKey(key, begun is not None, part)
        try:
            opened = self._opened(options, title[:120], own, again)
        except Exception as error:  # the service may be gone by now, and W&B's own types are many
            logger.warning("arm %s has no W&B run: %s", title, redact(str(error)))
            return NOWHERE
        if opened.run is not None and begun is None:
            self._arms()[key] = {"arm": name, "run": repeat, "summary": None}
            self._write_meta()
        return opened

    def _has_all(self, name: str, repeat: str, arm: Mirror) -> None:
        """Remember that the arm's W&B run is complete, so that no later start of the command sends it again."""
        if arm.run is not None:
            self._arms()[self._arm_id(name, repeat)]["summary"] = digest(arm.told, 16)
            self._write_meta()

    def _opened(self, options: WandbOptions, name: str, config: Mapping[str, Any], key: RunKey) -> Mirror:
        commit, _, dirty = (self._meta["git"] or "").partition("-")
        code = {"version": self._meta["versions"]["rlaif"], "commit": commit or None, "dirty": bool(dirty)}
        told = {
            "code": code,
            "versions": self._meta["versions"],
            "command": shlex.join(["rlaif", *self._meta["overrides"]]),
        }
        run = open_run(
            options,
            directory=self.directory,
            name=name,
            config={**config, **told},
            key=key,
            commit=commit or None,
        )
        before = self._killed.folders if self._killed is not None and key.resume else ()
        return Mirror(run, options.upload, before)

    def _project(self) -> list[str | None] | None:
        return None if self._options is None else [self._options.entity, self._options.project]

    def _arms(self) -> dict[str, dict[str, Any]]:
        """The arms that have a W&B run, by its id, with the digest of the summary that it has."""
        found: dict[str, dict[str, Any]] = (self._meta["wandb"] or {}).get("arms", {})
        return found

    def _arm_id(self, name: str, repeat: str) -> str:
        return f"{(self._meta['wandb'] or {}).get('id')}-{digest([name, repeat], 6)}"

    def _finish(self, error: BaseException | None) -> None:
        self._meta["finished"] = _now()
        ends = "pruned" if isinstance(error, Pruned) else "failed"
        self._meta["state"] = "finished" if error is None else ends
        if error is not None:
            kind = "" if isinstance(error, UserError | Pruned) else f"{type(error).__name__}: "
            self._meta["error"] = redact(f"{kind}{error}").removesuffix(": ")
        self._write_meta()
        self._lock.release()
        (self.directory / LOCK).unlink(missing_ok=True)

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
