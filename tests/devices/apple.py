"""Which operations of torch have kernels for Apple's GPUs, by torch's own table of kernels."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torchgen
from torchgen.gen import parse_native_yaml
from torchgen.model import DispatchKey, NativeFunction

KEYS = (
    DispatchKey.MPS,
    DispatchKey.CompositeImplicitAutograd,
    DispatchKey.CompositeExplicitAutograd,
    DispatchKey.CompositeExplicitAutogradNonFunctional,
)


@cache
def _table() -> dict[str, tuple[NativeFunction, Any]]:
    """torch's functions by name (`aten.add.Tensor`), with the kernels of each that are written, not generated."""
    folder = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native"
    parsed = parse_native_yaml(str(folder / "native_functions.yaml"), str(folder / "tags.yaml"))
    found = {}
    for function in parsed.native_functions:
        name = function.func.name
        found[f"aten.{name.name}.{name.overload_name or 'default'}"] = (function, parsed.backend_indices)
    return found


def _has_kernel(name: str) -> bool:
    function, indices = _table()[name]
    if function.structured_delegate is not None:
        out = function.structured_delegate
        name = f"aten.{out.name}.{out.overload_name or 'default'}"
        function, indices = _table()[name]
    return any(indices[key].has_kernel(function) for key in KEYS if key in indices)


def without_kernel(operations: Iterable[str]) -> list[str]:
    """Those of `operations`, by name (`aten.mm.default`), that an Apple GPU cannot run."""
    return sorted(name for name in set(operations) if not _has_kernel(name))
