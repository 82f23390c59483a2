"""A killed start of a command: how it is told from one that still runs, and what the next start takes over.

A run holds a lock in its folder, which the system frees however the process ends.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from rlaif.io import read_json, write_json

LOCK = ".running"
KILLED = "killed"

Sent = tuple[int, frozenset[str]]
"""A row of a history: its step and the names of its metrics."""
Arm = tuple[str, str]
"""An arm of a comparison and its seeds; two empty texts outside of an arm."""
NO_ARM: Arm = ("", "")


@dataclass(frozen=True)
class Killed:
    """What a killed start had reached: its W&B entry of `meta.json`, and the rows of its history by arm.

    `run` is the name of its folder.
    """

    run: str
    wandb: Mapping[str, Any]
    sent: Mapping[Arm, Collection[Sent]] = field(default_factory=dict)


def hold(directory: Path) -> BaseFileLock:
    """Hold the lock of the run in `directory` until it is released, or this process ends."""
    lock = FileLock(directory / LOCK)
    lock.acquire()
    return lock


def is_gone(directory: Path) -> bool:
    """Whether the process of a run that has not ended is no more; not known of a folder without a lock."""
    if not (directory / LOCK).is_file():
        return False
    try:
        with FileLock(directory / LOCK).acquire(blocking=False):
            return True
    except (Timeout, OSError):  # the latter in a folder that only its owner may write to
        return False


def row_key(row: Mapping[str, Any], step: int) -> Sent:
    """What makes two rows of a history the same one."""
    return step, frozenset(name for name in row if "/" in name)


def claim(directory: Path, identity: str, project: Any) -> Killed | None:
    """The newest killed start of the same command, for the run in `directory` alone to continue; None without one.

    `identity` is that of the command, as `meta.json` has it, and `project` where its W&B run lies. A start that ended,
    well or not, is never continued. Of two that are made at once, one gets the killed start and the other begins anew.
    """
    for file in sorted(directory.parent.glob("*/meta.json"), reverse=True):
        folder = file.parent
        meta = _meta(folder)
        same = (meta.get("state"), meta.get("identity")) == ("running", identity)
        if same and folder != directory and _claimed(folder, directory.name):
            return _reached(folder, project)
    return None


def _claimed(folder: Path, by: str) -> bool:
    """Mark the run in `folder` as killed and continued `by` another; False if it runs, or another was first."""
    if not (folder / LOCK).is_file():
        return False
    try:
        with FileLock(folder / LOCK).acquire(blocking=False):
            meta = _meta(folder)
            if meta.get("state") != "running":
                return False
            write_json(folder / "meta.json", meta | {"state": KILLED, "continued_by": by})
            return True
    except (Timeout, OSError):
        return False


def _reached(folder: Path, project: Any) -> Killed:
    """What the run in `folder`, and those that it continued in turn, had sent to the W&B run."""
    chain = list(_chain(folder))
    told = [_meta(one).get("wandb") or {} for one in chain]
    last = next((one for one in told if one.get("id") and one.get("project") == project), {})
    sent: dict[Arm, set[Sent]] = {}
    arms: dict[str, Any] = {}
    for one, own in zip(chain, told, strict=True):
        if own and own.get("id") == last.get("id"):
            arms = {**own.get("arms", {}), **arms}
            for row in _rows(one):
                key = str(row.get("arm", "")), str(row.get("run", ""))
                sent.setdefault(key, set()).add(row_key(row, int(row["step"])))
    return Killed(folder.name, {**last, "arms": arms} if last else {}, sent)


def _chain(folder: Path) -> Iterator[Path]:
    """The run in `folder` and those that it continued, newest first."""
    seen = set()
    while folder.is_dir() and folder not in seen:
        seen.add(folder)
        yield folder
        before = _meta(folder).get("continues")
        if not before:
            return
        folder = folder.with_name(str(before))


def _meta(folder: Path) -> dict[str, Any]:
    try:
        return dict(read_json(folder / "meta.json"))
    except (OSError, ValueError, TypeError):
        return {}


def _rows(folder: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a history, without a last one that was cut."""
    file = folder / "history.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        with suppress(ValueError):
            yield json.loads(line)
