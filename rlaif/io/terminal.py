"""Where tables for people are printed."""

from __future__ import annotations

import os

from rich.console import Console

PIPE_WIDTH = 120


def console(*, stderr: bool = False) -> Console:
    """stdout (or stderr) as wide as its terminal; a pipe or file has no width and gets `PIPE_WIDTH` columns."""
    target = Console(stderr=stderr)
    if target.is_terminal or "COLUMNS" in os.environ:
        return target
    return Console(stderr=stderr, width=PIPE_WIDTH)
