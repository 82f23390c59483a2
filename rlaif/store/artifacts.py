"""Content-addressed stage outputs: built once, resumed after kill -9, never read half-written.

A finished artifact is a folder `<kind>-<digest>/` with a `manifest.json`. It is written to
`.partial-<kind>-<digest>/` under a file lock and renamed into place as the last step, so a folder
under its final name is always complete. If a file later goes missing or changes, its sha256 reveals
it: the artifact is set aside in `.damaged/` and built again.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rlaif.errors import UserError
from rlaif.io import read_json, write_json
from rlaif.io.lineage import LineageRow
from rlaif.io.plain import json_ready
from rlaif.store.manifest import (
    MANIFEST,
    VERIFIED,
    Artifact,
    ArtifactSpec,
    fsync_folder,
    inspect_artifact,
    lineage_row,
    make_manifest,
    read_manifest,
    signature,
)

logger = logging.getLogger(__name__)
WORK = "work"
PARTIAL_PREFIX = ".partial-"
TRASH_PREFIX = ".trash-"

Build = Callable[[Path], Mapping[str, float | str]]


class ArtifactStore:
    """Artifacts under one root folder, shared by all processes that use that root."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def find(self, spec: ArtifactSpec) -> Artifact | None:
        """The finished, undamaged artifact of `spec`, or None. Changes nothing on disk.

        sha256 sums are computed once per process, and again if a file's size or time has changed.
        """
        path = self.root / spec.name
        if not path.is_dir():
            return None
        manifest, fault = inspect_artifact(path, spec.name)
        if manifest is None:
            logger.warning("artifact %s is damaged: %s", path, fault)
            return None
        return Artifact(spec.kind, spec.digest, path, manifest, reused=True)

    def get_or_build(self, spec: ArtifactSpec, build: Build, *, force: bool = False) -> Artifact:
        """The artifact of `spec`, built by `build(folder)` if there is none.

        `build` writes files into the folder and returns metrics. After a crash it gets the same folder
        with what it had written, and continues from there; the subfolder `work/` is scratch space for that and
        is deleted before publishing. Exceptions of `build` propagate and leave the folder for a resume.
        With `force` the artifact is built anew, and the old one removed once the new one is complete.
        While another process builds the same artifact, this one waits, then uses the result.
        """
        final = self.root / spec.name
        before = self._published(spec)
        if not force:
            manifest, _ = inspect_artifact(final, spec.name)
            if manifest:
                return Artifact(spec.kind, spec.digest, final, manifest, reused=True)
        with self.lock(spec.name, parents=[parent.name for parent in spec.parents]):
            # Another process may have finished while this one waited; with force only such a new one counts.
            if final.exists() and (not force or self._published(spec) != before):
                manifest, fault = inspect_artifact(final, spec.name)
                if manifest:
                    return Artifact(spec.kind, spec.digest, final, manifest, reused=True)
                self._set_aside(final, fault)
            manifest = self._build(spec, build)
            return Artifact(spec.kind, spec.digest, final, manifest, reused=False)

    def lineage(self, artifact: Artifact) -> list[LineageRow]:
        """The artifact and all its ancestors, nearest first, each once.

        Of an ancestor without a folder only kind and digest are known; the rest of its row is None or empty.
        """
        rows = [lineage_row(artifact.kind, artifact.digest, artifact.manifest, artifact.reused)]
        seen = {artifact.name}
        for row in rows:  # grows while it is walked: breadth first
            for parent in row.parents:
                if parent.name not in seen:
                    seen.add(parent.name)
                    manifest = read_manifest(self.root / parent.name)
                    rows.append(lineage_row(parent.kind, parent.digest, manifest, reused=True))
        return rows

    def all(self) -> list[Artifact]:
        """All artifacts with a readable manifest (sha256 not checked), oldest first."""
        folders = self.root.iterdir() if self.root.is_dir() else iter(())
        found = []
        for folder in folders:
            manifest = None if folder.name.startswith(".") else read_manifest(folder)
            if manifest and folder.name == f"{manifest['kind']}-{manifest['digest']}":
                found.append(Artifact(manifest["kind"], manifest["digest"], folder, manifest, reused=True))
        return sorted(found, key=lambda artifact: (artifact.manifest["created"], artifact.name))

    def remove(self, artifact: Artifact) -> None:
        """Delete an artifact's folder. Raises UserError while a process is building that artifact."""
        if not self.remove_folder(artifact.path):
            raise UserError(
                f"artifact {artifact.name} cannot be removed while {self._holder_text(artifact.name)} builds it; "
                "wait for it or stop it, then run stage=clean again"
            )

    def remove_folder(self, folder: Path) -> bool:
        """Delete a folder of this store (final, partial or trash); False if its artifact is being built."""
        if folder.parent != self.root:
            raise ValueError(f"{folder} is not a folder of the artifact store {self.root}")
        try:
            with self._file_lock(artifact_name(folder)).acquire(blocking=False):
                if folder.exists():
                    shutil.rmtree(self._rename_to_trash(folder))
        except Timeout:
            return False
        return True

    def is_held(self, name: str) -> bool:
        """Whether a live process is building the artifact `<kind>-<digest>`."""
        if not (self.root / ".locks" / f"{name}.lock").exists():
            return False
        try:
            with self._file_lock(name).acquire(blocking=False):
                return False
        except Timeout:
            return True

    def holders(self) -> dict[str, dict[str, Any]]:
        """The artifacts that are being built: name -> {pid, host, since (UTC ISO), parents (names)}."""
        files = sorted((self.root / ".locks").glob("*.holder")) if self.root.is_dir() else []
        names = [file.name.removesuffix(".holder") for file in files]
        return {name: self._holder(name) for name in names if self.is_held(name)}

    @contextmanager
    def lock(self, name: str, *, parents: list[str]) -> Iterator[None]:
        """Hold the lock of artifact `name`; if it has to wait, it logs once who holds the lock."""
        lock = self._file_lock(name)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            logger.warning("waiting for artifact %s, which %s is building", name, self._holder_text(name))
            lock.acquire()
        holder_file = self.root / ".locks" / f"{name}.holder"
        try:
            since = datetime.now(UTC).isoformat(timespec="seconds")
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "parents": parents}
            write_json(holder_file, holder)
            yield
        finally:
            holder_file.unlink(missing_ok=True)
            lock.release()

    def _build(self, spec: ArtifactSpec, build: Build) -> dict[str, Any]:
        """Build into the partial folder, publish it, return its manifest. The caller holds the lock."""
        partial = self.root / f"{PARTIAL_PREFIX}{spec.name}"
        # After a kill between the manifest and the rename all the work is there, and only has to be published.
        manifest, _ = inspect_artifact(partial, spec.name)
        if manifest is None:
            resumed = partial.is_dir()
            partial.mkdir(parents=True, exist_ok=True)
            (partial / MANIFEST).unlink(missing_ok=True)
            started = time.monotonic()
            try:
                metrics = json_ready(dict(build(partial)))
            except BaseException:
                if not any(partial.iterdir()):  # nothing was written, so there is nothing to resume
                    partial.rmdir()
                raise
            seconds = time.monotonic() - started
            if (partial / MANIFEST).exists():
                raise ValueError(f"the build of {spec.kind} wrote {MANIFEST}, a name reserved for the store")
            shutil.rmtree(partial / WORK, ignore_errors=True)
            manifest = make_manifest(spec, partial, metrics, seconds, resumed)
            write_json(partial / MANIFEST, manifest)
        self._publish(partial, self.root / spec.name, manifest)
        return manifest

    def _publish(self, partial: Path, final: Path, manifest: dict[str, Any]) -> None:
        fsync_folder(partial)
        old = self._rename_to_trash(final) if final.exists() else None
        os.replace(partial, final)
        fsync_folder(self.root)
        VERIFIED[final] = signature(final, manifest)
        if old:
            shutil.rmtree(old)

    def _rename_to_trash(self, folder: Path) -> Path:
        # Renamed before it is deleted, so that no process sees a half-deleted folder under the old name.
        trash = self.root / f"{TRASH_PREFIX}{artifact_name(folder)}-{uuid.uuid4().hex[:8]}"
        os.replace(folder, trash)
        VERIFIED.pop(folder, None)
        return trash

    def _set_aside(self, path: Path, fault: str) -> None:
        target = self.root / ".damaged" / f"{path.name}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
        VERIFIED.pop(path, None)
        logger.warning("artifact %s is damaged: %s; moved to %s and built again", path.name, fault, target)

    def _published(self, spec: ArtifactSpec) -> tuple[int, int] | None:
        """A value that changes whenever another build of `spec` is published."""
        try:
            status = (self.root / spec.name / MANIFEST).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def _file_lock(self, name: str) -> FileLock:
        folder = self.root / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{name}.lock")

    def _holder(self, name: str) -> dict[str, Any]:
        try:
            return dict(read_json(self.root / ".locks" / f"{name}.holder"))
        except (OSError, ValueError):  # released, or not yet written
            return {}

    def _holder_text(self, name: str) -> str:
        if holder := self._holder(name):
            return f"process {holder['pid']} on {holder['host']} (since {holder['since']})"
        return "another process"


def finished_folder(partial: Path) -> Path:
    """Where the artifact built in `partial` will be; if it is built anew, an older one may be there."""
    return partial.with_name(partial.name.removeprefix(PARTIAL_PREFIX))


def artifact_name(folder: Path) -> str:
    """`<kind>-<digest>` of a final, partial or trash folder."""
    name = folder.name
    if name.startswith(TRASH_PREFIX):
        return name.removeprefix(TRASH_PREFIX).rpartition("-")[0]
    return name.removeprefix(PARTIAL_PREFIX)
