"""Give memory that a long run has freed back to the system."""

from __future__ import annotations

import ctypes
import sys
from functools import cache


def release_free_memory() -> None:
    """Return freed memory to the system if the C library can (glibc); takes milliseconds.

    Tensors whose sizes differ from batch to batch leave holes that glibc keeps: a process would grow by
    gigabytes over an epoch without using more.
    """
    library = _c_library()
    if library is not None and hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


@cache
def _c_library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None
