"""The task that the configuration asks for, read from its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif.data.docs.task import load_docs
from rlaif.data.files.custom import load_custom
from rlaif.data.files.hh import load_hh
from rlaif.data.files.readers import HubPart
from rlaif.data.files.rows import Splitting
from rlaif.data.files.tldr import load_tldr
from rlaif.errors import UserError
from rlaif.io.progress import Progress
from rlaif.records import TaskData

DOCS_KEYS = (
    "max_prompt_chars",
    "min_reference_words",
    "max_reference_words",
    "max_rows",
    "test_fraction",
    "validation_fraction",
    "gold_pairs_per_construction",
    "packages",
)
SPLITTING_KEYS = ("test_fraction", "validation_fraction", "gold_fraction", "max_rows")
SOURCES = ("docs", "custom", "tldr", "hh")


def load_task(task: Mapping[str, Any], *, seed: int, cache_dir: Path, progress: Progress) -> TaskData:
    """The task of the plain configuration node `task`. Raises UserError for a source that is not known."""
    if task["source"] not in SOURCES:
        raise UserError(f"task.source={task['source']} is not known: write one of {', '.join(SOURCES)}")
    if task["source"] == "docs":
        options = {key: task[key] for key in DOCS_KEYS}
        with progress.note("reading docstrings"):
            return load_docs(cache_dir=cache_dir / "docs", search_dirs=None, seed=seed, **options)
    paths = [task["path"]] if isinstance(task["path"], str) else task["path"]
    splitting = Splitting(seed=seed, **{key: task[key] for key in SPLITTING_KEYS})
    with progress.note(f"reading {', '.join(paths)}"):
        return _read(task, paths, splitting)


def _read(task: Mapping[str, Any], paths: Sequence[str], splitting: Splitting) -> TaskData:
    hub = HubPart(task["hub_split"], task["hub_data_dir"])
    if task["source"] == "tldr":
        confidence = task["gold_confidence"]
        return load_tldr(paths=paths, hub=hub, gold_confidence=confidence, splitting=splitting)
    if task["source"] == "hh":
        return load_hh(name=task["name"], paths=paths, hub=hub, splitting=splitting)
    if len(paths) != 1:
        raise UserError(
            f"task.path lists {len(paths)} files, but task={task['name']} reads one: write its path"
        )
    return load_custom(path=paths[0], hub=hub, columns=task["columns"], splitting=splitting)
