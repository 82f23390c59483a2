"""A killed start of a command: how it is told from one that still runs, and what the next start takes over.

A run holds a lock in its folder, which the system frees however the process ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from rlaif.io import read_json, write_json

LOCK = ".running"
KILLED = "killed"


@dataclass(frozen=True)
class Killed:
    """A killed start, newest first among the `folders` of the starts of one command that a run continues.

    `wandb` is the entry of `meta.json` about the W&B run that they share; empty without one.
    """

    folders: tuple[Path, ...]
    wandb: Mapping[str, Any]

    @property
    def run(self) -> str:
        """The name of its folder."""
        return self.folders[0].name


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


def claim(directory: Path, identity: str, project: list[str | None] | None) -> Killed | None:
    """The newest killed start of the same command, for the run in `directory` alone to continue; None without one.

    `identity` is that of the command, as `meta.json` has it, and `project` where its W&B run lies. A start that ended,
    well or not, is never continued. Of two that are made at once, one gets the killed start and the other begins anew.
    """
    for file in sorted(directory.parent.glob("*/meta.json"), reverse=True):
        folder, meta = file.parent, _meta(file.parent)
        same = (meta.get("state"), meta.get("identity")) == ("running", identity)
        if same and folder != directory and _claimed(folder, directory.name):
            chain = tuple(_chain(folder))
            return Killed(chain, _wandb(chain, project))
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


def _wandb(chain: Iterable[Path], project: list[str | None] | None) -> dict[str, Any]:
    """The newest W&B run of the chain in this project, with its arms."""
    told = [own for own in (_meta(folder).get("wandb") or {} for folder in chain) if own.get("id")]
    last = next((own for own in told if own.get("project") == project), None)
    if last is None:
        return {}
    same = [own.get("arms") or {} for own in reversed(told) if own["id"] == last["id"]]
    return last | {"arms": {key: arm for arms in same for key, arm in arms.items()}}


def _chain(folder: Path) -> Iterator[Path]:
    """The run in `folder` and those that it continued, newest first."""
    seen: set[Path] = set()
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
