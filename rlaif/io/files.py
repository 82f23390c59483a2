"""Files that are either complete or absent: write to a temporary neighbour, flush to disk, rename."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml

from rlaif.errors import UserError
from rlaif.records import from_dict, to_dict

Record = TypeVar("Record")


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically: a reader sees the old file or the new one, never part of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented strict JSON, atomically. Raises ValueError for NaN and infinities."""
    text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def from_yaml(text: str) -> Any:
    """What a YAML text says, by the parser in C where it is installed. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines, atomically."""
    write_text(path, "".join(_line(row) for row in rows))


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Append one row as a line (in a single write, so that concurrent readers see whole lines)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(_line(row))


def _line(row: dict[str, Any]) -> str:
    """Strict JSON: raises ValueError for NaN and Infinity, which other readers refuse."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON-lines file; a broken line raises UserError with file and line number."""
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(f"{path}, line {number}: not valid JSON ({error.msg})") from error


def write_records(path: Path, records: Iterable[Any]) -> None:
    """Write records as JSON lines, atomically."""
    write_jsonl(path, (to_dict(record) for record in records))


def read_records(path: Path, kind: type[Record]) -> list[Record]:
    """Read the records that `write_records` wrote."""
    return [from_dict(kind, row) for row in read_jsonl(path)]


def sha256_file(path: Path) -> str:
    """sha256 of a file's content, as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
