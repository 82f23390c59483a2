"""What has failed, for the exit code: jobs may run in processes of their own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rlaif.app.command.words import one_sentence

FAILED = "RLAIF_FAILED"  # names the file in which jobs note failures: some launchers start processes


def report(error: Exception) -> None:
    """A user's mistake: one sentence on stderr, no traceback."""
    print(f"error: {one_sentence(error)}", file=sys.stderr)
    note_failure(one_sentence(error))


def note_failure(sentence: str) -> None:
    """Have the command exit with 2. On another machine nothing is noted: there the sweep's ledger tells."""
    file = Path(os.environ[FAILED])
    if file.parent.is_dir():
        file.write_text(f"{sentence}\n", encoding="utf-8")
