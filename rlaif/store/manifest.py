"""What an artifact is made from, what its manifest says, and whether its files are still as written."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlaif.io import digest as content_digest
from rlaif.io import read_json, sha256_file
from rlaif.io.lineage import ArtifactKey, LineageRow
from rlaif.io.plain import json_ready
from rlaif.io.versions import library_versions

MANIFEST = "manifest.json"
DIGEST_LENGTH = 16
_KIND = re.compile(r"[a-z][a-z0-9_]*")

Signature = tuple[tuple[str, int, int, int], ...]
# Folder -> the stat signature for which this process has verified its sha256 sums.
VERIFIED: dict[Path, Signature] = {}


@dataclass(frozen=True)
class Artifact:
    """A finished artifact on disk. `reused` is False only if this call built it."""

    kind: str
    digest: str
    path: Path
    manifest: dict[str, Any]
    reused: bool

    @property
    def name(self) -> str:
        """Folder name, `<kind>-<digest>`."""
        return f"{self.kind}-{self.digest}"

    @property
    def metrics(self) -> dict[str, Any]:
        """What `build` returned: name -> number, text, or None for a number that was not finite."""
        return dict(self.manifest["metrics"])

    @property
    def bytes(self) -> int:
        """Size of all files except the manifest."""
        return sum(entry["bytes"] for entry in self.manifest["files"].values())

    def file(self, name: str) -> Path:
        """Path of a file of this artifact; `name` is relative, with forward slashes.

        Raises KeyError if the artifact has no such file.
        """
        if name not in self.manifest["files"]:
            raise KeyError(f"{self.name} has no file {name!r}; it has {sorted(self.manifest['files'])}")
        return self.path / name


@dataclass(frozen=True)
class ArtifactSpec:
    """What an artifact is made from: everything that can change its content, and nothing else.

    `config` is the stage's slice of the resolved configuration (plain values), `version` the stage's own
    integer, `data_hash` a digest of data that no parent covers.
    """

    kind: str
    config: dict[str, Any]
    parents: tuple[Artifact, ...]
    seed: int
    version: int
    data_hash: str = ""

    def __post_init__(self) -> None:
        if not _KIND.fullmatch(self.kind):
            raise ValueError(
                f"artifact kind {self.kind!r} must be lower-case letters, digits and underscores"
            )

    @property
    def digest(self) -> str:
        """16 hex digits over every field (parents by kind and digest; key order does not matter)."""
        content = {
            "kind": self.kind,
            "config": self.config,
            "parents": [[parent.kind, parent.digest] for parent in self.parents],
            "seed": self.seed,
            "version": self.version,
            "data_hash": self.data_hash,
        }
        return content_digest(content, DIGEST_LENGTH)

    @property
    def name(self) -> str:
        """Folder name, `<kind>-<digest>`."""
        return f"{self.kind}-{self.digest}"


def make_manifest(
    spec: ArtifactSpec, folder: Path, metrics: dict[str, Any], seconds: float, resumed: bool
) -> dict[str, Any]:
    """The manifest of a folder; its files are flushed to disk and hashed here.

    `seconds` is the wall-clock time of the last attempt; `resumed` says whether there was an earlier one.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
            entry = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
            files[path.relative_to(folder).as_posix()] = entry
        elif path.is_dir():
            fsync_folder(path)
    manifest = {
        "kind": spec.kind,
        "digest": spec.digest,
        "config": json_ready(spec.config),
        "parents": [{"kind": parent.kind, "digest": parent.digest} for parent in spec.parents],
        "seed": spec.seed,
        "version": spec.version,
        "data_hash": spec.data_hash,
        "versions": library_versions(),
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        "seconds": seconds,
        "resumed": resumed,
        "metrics": metrics,
        "files": files,
    }
    return manifest | {"checksum": content_digest(manifest)}


def fsync_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a folder, or None if there is none that is intact."""
    try:
        manifest = read_json(path / MANIFEST)
        content = {key: value for key, value in manifest.items() if key != "checksum"}
        return manifest if manifest["checksum"] == content_digest(content) else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def signature(path: Path, manifest: dict[str, Any]) -> Signature:
    """Names, sizes and times of the files in the manifest."""
    names = [MANIFEST, *sorted(manifest["files"])]
    stats = [(name, (path / name).stat()) for name in names]
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats)


def inspect_artifact(path: Path, name: str) -> tuple[dict[str, Any] | None, str]:
    """The manifest of artifact `name` in folder `path` and "", or None and what is wrong with it, in words."""
    manifest = read_manifest(path)
    if manifest is None:
        return None, f"its {MANIFEST} is missing or cannot be read"
    if f"{manifest['kind']}-{manifest['digest']}" != name:
        return None, f"its {MANIFEST} belongs to {manifest['kind']}-{manifest['digest']}"
    try:
        found = signature(path, manifest)
        if VERIFIED.get(path) != found:
            for file, entry in manifest["files"].items():
                if sha256_file(path / file) != entry["sha256"]:
                    return None, f"file {file} has changed since it was written (sha256 differs)"
    except OSError as error:
        return None, f"a file is missing or cannot be read ({error.strerror}: {error.filename})"
    VERIFIED[path] = found
    return manifest, ""


def lineage_row(kind: str, digest: str, manifest: dict[str, Any] | None, reused: bool) -> LineageRow:
    """An artifact as a row of a run's lineage; without its manifest only its name."""
    if manifest is None:
        return LineageRow(kind, digest, reused=reused)
    return LineageRow(
        kind,
        digest,
        tuple(ArtifactKey(**parent) for parent in manifest["parents"]),
        manifest["seed"],
        manifest["metrics"],
        manifest["created"],
        manifest["seconds"],
        sum(entry["bytes"] for entry in manifest["files"].values()),
        reused,
        manifest["config"],
        manifest["version"],
        manifest["data_hash"],
    )
