"""What W&B wrote, read back from its files."""

from __future__ import annotations

import struct
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
