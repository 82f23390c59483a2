"""`lineage.json`: the artifacts that a run depends on, as the store writes them and reports read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlaif.io.files import read_json, write_json
from rlaif.io.plain import json_ready

LINEAGE_FILE = "lineage.json"


@dataclass(frozen=True)
class ArtifactKey:
    """What identifies an artifact."""

    kind: str
    digest: str

    def __post_init__(self) -> None:
        if not all(isinstance(part, str) and part for part in (self.kind, self.digest)):
            raise ValueError(f"an artifact's kind and digest are texts, got {self.kind!r}, {self.digest!r}")

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.kind}-{self.digest}"


@dataclass(frozen=True)
class LineageRow(ArtifactKey):
    """One artifact of a run. If its folder is gone, only kind and digest are known.

    `created` is UTC ISO text, `seconds` the build time, `bytes` the size on disk; `reused` is False if the run itself
    built it. `config`, `version` and `data_hash` are what it was made from besides parents and seed (empty and None in
    the rows of older versions).
    """

    parents: tuple[ArtifactKey, ...] = ()
    seed: int | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    created: str | None = None
    seconds: float | None = None
    bytes: int | None = None
    reused: bool = True
    config: Mapping[str, Any] = field(default_factory=dict)
    version: int | None = None
    data_hash: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = self.seconds, self.bytes
        if not all(value is None or isinstance(value, int | float) for value in numbers):
            raise ValueError(f"{self.name}: seconds and bytes are numbers, got {numbers}")


def write_lineage(folder: Path, rows: Sequence[LineageRow]) -> None:
    """Write the rows to `lineage.json` in `folder`."""
    write_json(folder / LINEAGE_FILE, json_ready([asdict(row) for row in rows]))


def read_lineage(file: Path) -> list[LineageRow]:
    """Read what `write_lineage` wrote. Raises ValueError for a file of any other form."""
    try:
        return [
            LineageRow(**{**row, "parents": tuple(ArtifactKey(**parent) for parent in row["parents"])})
            for row in read_json(file)
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a list of artifacts ({error})") from error
