"""Content digests and hash-derived uniform numbers (independent of process, order and platform)."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def digest(value: Any, length: int = 64) -> str:
    """sha256 of the canonical JSON of `value`, as `length` hex digits. Raises for what JSON cannot hold, NaN too."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def stable_uniform(*parts: Any) -> float:
    """A number in [0, 1) that depends only on `parts`: for splits and per-item choices.

    A shared generator advanced over a list would make an item's draw depend on its neighbours.
    """
    return int(digest(list(parts), 13), 16) / 16**13
