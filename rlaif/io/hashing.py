"""Content digests and hash-derived uniforms (independent of process, order and platform)."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> str:
    """One text for equal values: sorted keys, no spaces, no NaN. Raises on what JSON cannot hold."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any, length: int = 64) -> str:
    """sha256 of the canonical JSON of `value`, as `length` hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


def stable_uniform(*parts: Any) -> float:
    """A number in [0, 1) that depends on `parts` alone: for splits and per-item choices.

    A shared generator advanced over a list would make an item's fate depend on its neighbours.
    """
    return int(digest(list(parts), 13), 16) / 16**13
