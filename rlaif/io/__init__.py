"""Digests, atomic writes, JSON lines and YAML: nothing here is half-written after kill -9."""

from rlaif.io.files import (
    append_jsonl,
    from_yaml,
    read_json,
    read_jsonl,
    read_records,
    sha256_file,
    write_json,
    write_jsonl,
    write_records,
    write_text,
)
from rlaif.io.hashing import digest, stable_uniform
from rlaif.io.memory import release_free_memory

__all__ = [
    "append_jsonl",
    "digest",
    "from_yaml",
    "read_json",
    "read_jsonl",
    "read_records",
    "release_free_memory",
    "sha256_file",
    "stable_uniform",
    "write_json",
    "write_jsonl",
    "write_records",
    "write_text",
]
