"""What W&B wrote, read back from its files."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def log_records(content: bytes) -> list[bytes]:
    """Payloads of a W&B transaction log: a 7-byte file header, then LevelDB log blocks of 32 KiB.

    A chunk is checksum (4 bytes), length (2), type (1: 1 whole, 2 first, 3 middle, 4 last), payload; the
    last 6 bytes or fewer of a block are padding.
    """
    assert content.startswith(b":W&B")
    payloads, parts, offset = [], b"", 7
    while offset + 7 <= len(content):
        left = 32768 - offset % 32768
        if left < 7:
            offset += left
            continue
        length, kind = struct.unpack_from("<HB", content, offset + 4)
        parts = (b"" if kind in (1, 2) else parts) + content[offset + 7 : offset + 7 + length]
        if kind in (1, 4):
            payloads.append(parts)
        offset += 7 + length
    return payloads


def wandb_records(directory: Path) -> list[Any]:
    """All records of the one W&B run below `directory`, from its transaction log."""
    from wandb.proto import wandb_internal_pb2

    files = list(directory.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 1
    return [wandb_internal_pb2.Record.FromString(payload) for payload in log_records(files[0].read_bytes())]


@dataclass
class OfflineRun:
    """What one log says. `artifacts` are (type, name, whether used rather than made, metadata); `axes` by metric."""

    file: Path
    id: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    commit: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    tables: dict[str, Path] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[tuple[str, str, bool, dict[str, Any]]] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    exit: int | None = None
    alerts: int = 0

    def rows(self, table: str) -> list[dict[str, Any]]:
        """The rows of `tables/<table>`, as they will be uploaded."""
        read = json.loads(self.tables[table].read_text())
        return [dict(zip(read["columns"], row, strict=True)) for row in read["data"]]


def offline_runs(directory: Path) -> list[OfflineRun]:
    """Every log below a run directory, oldest first."""
    files = sorted(directory.glob("wandb/offline-run-*/run-*.wandb"))
    return [_read(file) for file in files]


def _read(file: Path) -> OfflineRun:
    from wandb.proto import wandb_internal_pb2

    found = OfflineRun(file)
    for payload in log_records(file.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(payload)
        kind = record.WhichOneof("record_type")
        if kind == "run" and not found.id:
            run = record.run
            found.id, found.name, found.group = run.run_id, run.display_name, run.run_group
            found.job_type, found.commit = run.job_type, run.git.commit
        if kind == "run":
            found.config |= _values(record.run.config.update)
        elif kind == "config":
            found.config |= _values(record.config.update)
        elif kind == "history":
            _history(found, _values(record.history.item))
        elif kind == "summary":
            found.summary |= _values(record.summary.update)
        elif kind == "artifact" and record.artifact.type != "run_table":
            own = record.artifact
            metadata = json.loads(own.metadata or "{}")
            found.artifacts.append((own.type, own.name, own.use_after_commit, metadata))
            found.digests[own.name] = own.digest
        elif kind == "metric":
            found.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
            found.hidden |= {record.metric.name} if record.metric.options.hidden else set()
        elif kind == "exit":
            found.exit = record.exit.exit_code
        elif kind == "alert":
            found.alerts += 1
    return found


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _history(found: OfflineRun, row: dict[str, Any]) -> None:
    path = next((name for name in row if name.startswith("tables/") and name.endswith("/path")), None)
    if path is None:
        found.history.append({name: value for name, value in row.items() if not name.startswith("_")})
    else:
        name = path.removeprefix("tables/").removesuffix("/path")
        found.tables[name] = found.file.parent / "files" / row[path]
