"""Values in the form that strict JSON can hold (JSON has no NaN; many readers refuse Python's)."""

from __future__ import annotations

import math
from pathlib import PurePath
from typing import Any


def json_ready(value: Any) -> Any:
    """`value` with NaN and infinities as None, tuples as lists, paths as text, scalars as Python numbers.

    Scalars are zero-dimensional tensors, numpy scalars and anything else with `item()`. Raises TypeError for
    anything else that JSON cannot hold.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return json_ready(value.item())
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")
