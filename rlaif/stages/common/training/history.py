"""The curve of what was trained, kept with the artifact, so that a job that reuses it can show it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from rlaif.io import read_jsonl, write_jsonl
from rlaif.io.plain import json_ready
from rlaif.store import Artifact
from rlaif.tracking.lightning import RunLogger

HISTORY_FILE = "history.jsonl"


def write_history(file: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write rows {"step", **metrics}; values that are not finite become null (strict JSON has no NaN)."""
    write_jsonl(file, [json_ready(dict(row)) for row in rows])


def read_history(artifact: Artifact) -> list[dict[str, Any]]:
    """The rows that `write_history` wrote, null read as NaN: a value that was not finite stays so."""
    return [
        {name: math.nan if value is None else value for name, value in row.items()}
        for row in read_jsonl(artifact.file(HISTORY_FILE))
    ]


def keep_history(trainer: pl.Trainer, folder: Path) -> None:
    """Write what the Trainer logged, before it was killed and since, into the artifact's folder."""
    assert isinstance(trainer.logger, RunLogger)
    write_history(folder / HISTORY_FILE, [{"step": step, **metrics} for step, metrics in trainer.logger.rows])
