"""The task that the configuration asks for, read from its source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

Source = Callable[[Mapping[str, Any], int, Path, Progress], TaskData]
"""(settings of `task`, seed, folder for an index, progress) -> the task's prompts and pairs."""


def load_task(task: Mapping[str, Any], *, seed: int, cache_dir: Path, progress: Progress) -> TaskData:
    """The task that the settings of `task` describe. Raises UserError for an unknown source."""
    if task["source"] not in SOURCES:
        raise UserError(f"task.source={task['source']} is not known: write one of {', '.join(SOURCES)}")
    return SOURCES[task["source"]](task, seed, cache_dir, progress)


def _need(task: Mapping[str, Any], keys: Sequence[str]) -> None:
    missing = [key for key in keys if key not in task]
    if missing:
        raise UserError(
            f"task.source={task['source']} reads task.{missing[0]}, which task={task['name']} does not have: write "
            "a task= of that source"
        )


def _docs(task: Mapping[str, Any], seed: int, cache_dir: Path, progress: Progress) -> TaskData:
    _need(task, DOCS_KEYS)
    options = {key: task[key] for key in DOCS_KEYS}
    with progress.note("reading docstrings"):
        return load_docs(cache_dir=cache_dir / "docs", search_dirs=None, seed=seed, **options)


def of_files(read: Callable[[Mapping[str, Any], Sequence[str], HubPart, Splitting], TaskData]) -> Source:
    """The source whose rows are in the files or hub data sets that `task.path` names."""

    def load(task: Mapping[str, Any], seed: int, cache_dir: Path, progress: Progress) -> TaskData:
        _need(task, ("path", "hub_split", "hub_data_dir", *SPLITTING_KEYS))
        paths = [task["path"]] if isinstance(task["path"], str) else task["path"]
        hub = HubPart(task["hub_split"], task["hub_data_dir"])
        splitting = Splitting(seed=seed, **{key: task[key] for key in SPLITTING_KEYS})
        with progress.note(f"reading {', '.join(paths)}"):
            return read(task, paths, hub, splitting)

    return load


def _tldr(task: Mapping[str, Any], paths: Sequence[str], hub: HubPart, splitting: Splitting) -> TaskData:
    return load_tldr(paths=paths, hub=hub, gold_confidence=task["gold_confidence"], splitting=splitting)


def _hh(task: Mapping[str, Any], paths: Sequence[str], hub: HubPart, splitting: Splitting) -> TaskData:
    return load_hh(name=task["name"], paths=paths, hub=hub, splitting=splitting)


def _custom(task: Mapping[str, Any], paths: Sequence[str], hub: HubPart, splitting: Splitting) -> TaskData:
    if len(paths) != 1:
        raise UserError(f"task.path lists {len(paths)} files, but task={task['name']} reads one: write one")
    return load_custom(path=paths[0], hub=hub, columns=task["columns"], splitting=splitting)


SOURCES: dict[str, Source] = {
    "docs": _docs,
    "custom": of_files(_custom),
    "tldr": of_files(_tldr),
    "hh": of_files(_hh),
}
"""By `task.source`."""
