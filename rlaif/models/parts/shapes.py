"""The shapes of the keys and values that a layer's attention reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CacheShape:
    """Of one layer: key/value heads K, and the sizes of a key and of a value."""

    heads: int
    key_size: int
    value_size: int


CacheShapes = Sequence[CacheShape]
"""One for each layer."""
