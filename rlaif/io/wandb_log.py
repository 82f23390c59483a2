"""The transaction log of a W&B run (`run-<id>.wandb`), as far as it was written before its process ended.

W&B's process ends with ours, and what it had not flushed (up to 32 KiB) is lost if ours is killed.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MAGIC = b":W&B"
_HEADER, _BLOCK, _CHUNK = 7, 32768, 7  # bytes: of the file's header, a block, a chunk's header
_WHOLE, _FIRST, _LAST = 1, 2, 4


def repair(file: Path) -> bool:
    """Take the cut record at the end of a killed run's log off, and say whether the log names its run.

    W&B uploads nothing after a record that is cut, not even the logs of the same run's next starts, and nothing at
    all if one of several logs does not name its run.
    """
    content = file.read_bytes()
    end = max((end for _, end in _payloads(content)), default=0)
    if 0 < end < len(content):
        os.truncate(file, end)
    return any(record.HasField("run") for record in _records(file))


def history_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of the run's history: name -> value."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in _records(file)
        if record.HasField("history")
    ]


def _records(file: Path) -> Iterator[Any]:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto.wandb_internal_pb2 import Record

    for payload, _ in _payloads(file.read_bytes()):
        try:
            yield Record.FromString(payload)
        except DecodeError:
            return


def _payloads(content: bytes) -> Iterator[tuple[bytes, int]]:
    """The log's records with where each ends, up to the first that is cut.

    After the file's header come LevelDB's log blocks. A chunk is a checksum (4 bytes), its length (2), its kind (1) and
    its part of a record; the last bytes of a block, too few for a chunk's header, are padding.
    """
    if not content.startswith(_MAGIC):
        return
    offset, record = _HEADER, b""
    while offset + _CHUNK <= len(content):
        left = _BLOCK - offset % _BLOCK
        if left < _CHUNK:
            offset += left
            continue
        length, kind = struct.unpack_from("<HB", content, offset + 4)
        start, offset = offset + _CHUNK, offset + _CHUNK + length
        if not any(content[start - _CHUNK : start]) or offset > len(content):
            return
        record = content[start:offset] if kind in (_WHOLE, _FIRST) else record + content[start:offset]
        if kind in (_WHOLE, _LAST):
            yield record, offset
