"""Run directories that change while they are read: which have changed, and their records."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from rlaif.tracking.runs import RunRecord, load_run

Stamp = tuple[tuple[str, int, int], ...]
"""Name, size and modification time (ns) of each file of a run directory, and of its folder of tables."""


def stamp(folder: Path) -> Stamp:
    """What changes when a run writes something; empty if the folder is gone."""
    try:
        with os.scandir(folder) as entries:
            seen = [(one.name, one.stat()) for one in entries if one.is_file() or one.name == "tables"]
    except OSError:  # removed, or a temporary file renamed while it is looked at: the next look tells
        return ()
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in seen if name[0] != "."))


def written(folder: Path) -> float:
    """When a run last wrote something, in seconds since the epoch; 0 if its folder is gone."""
    return max((time for _, _, time in stamp(folder)), default=0) / 1e9


class RunChanges:
    """The runs of some stages below a root; each is read again only if its directory has changed."""

    def __init__(self, root: Path, stages: Collection[str]) -> None:
        self._root = root
        self._stages = stages
        self._stamps: dict[Path, Stamp] | None = None
        self._records: dict[Path, tuple[Stamp, RunRecord]] = {}

    def look(self) -> bool:
        """Whether anything was written, added or removed since the last look; the first one is always news."""
        files = (self._root / "runs").glob("*/*/meta.json")
        stamps = {
            file.parent: stamp(file.parent) for file in files if file.parent.parent.name in self._stages
        }
        changed, self._stamps = stamps != self._stamps, stamps
        return changed

    def runs(self) -> list[RunRecord]:
        """The runs of the last look, oldest first."""
        found = {folder: self._read(folder, own) for folder, own in (self._stamps or {}).items() if own}
        self._records = found
        return sorted((run for _, run in found.values()), key=lambda run: (run.id, run.stage))

    def _read(self, folder: Path, own: Stamp) -> tuple[Stamp, RunRecord]:
        known = self._records.get(folder)
        return known if known and known[0] == own else (own, load_run(folder))
