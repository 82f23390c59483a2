"""Where tables for people are printed."""

from __future__ import annotations

import os

from rich.console import Console

PIPE_WIDTH = 120


def console(*, stderr: bool = False) -> Console:
    """stdout (or stderr), as wide as its terminal; a pipe or file, which has no width, gets `PIPE_WIDTH` columns."""
    target = Console(stderr=stderr)
    known = target.is_terminal or "COLUMNS" in os.environ
    return target if known else Console(stderr=stderr, width=PIPE_WIDTH)
