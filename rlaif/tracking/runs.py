"""Run directories as records: the only input of every table, plot and page.

A run may be incomplete (killed, still running, of an older layout). Reading never fails because of that: missing
parts are empty, broken ones are named in `problems`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rlaif.errors import UserError
from rlaif.io import from_yaml
from rlaif.io.lineage import LINEAGE_FILE, LineageRow, read_lineage
from rlaif.stats import Interval
from rlaif.tracking.killed import KILLED, is_gone

Scalar = float | str | None
Row = Mapping[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """One run directory. `summary` is flat (`stage/name` to number or string), `history` has one row per step.

    `started` is as the run wrote it (ISO text or seconds since the epoch); `git` is the commit of the code, with
    `-dirty` if the checkout had other changes. `state` is running, finished, failed, or killed: the process of a run
    that has not ended is gone.
    """

    path: Path
    id: str
    stage: str
    state: str
    name: str | None = None
    group: str | None = None
    overrides: tuple[str, ...] = ()
    started: str | float | None = None
    error: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Scalar] = field(default_factory=dict)
    history: tuple[Row, ...] = ()
    lineage: tuple[LineageRow, ...] = ()
    alerts: tuple[Row, ...] = ()
    versions: Mapping[str, Any] = field(default_factory=dict)
    git: str | None = None
    problems: tuple[str, ...] = ()

    @property
    def root(self) -> Path:
        """The folder that holds `runs/` and `artifacts/`."""
        return self.path.parents[2]

    @property
    def artifacts(self) -> dict[str, Path]:
        """The folders of the artifacts that the run stands on, by kind, or by name where it has several of a kind."""
        kinds = Counter(row.kind for row in self.lineage)
        folder = self.root / "artifacts"
        return {row.kind if kinds[row.kind] == 1 else row.name: folder / row.name for row in self.lineage}

    def table(self, name: str) -> list[Row]:
        """Rows of `tables/<name>.jsonl`; none if the run wrote no such table."""
        return list(_rows(self.path / "tables" / f"{name}.jsonl", []))


def load_run(path: Path) -> RunRecord:
    """Read a run directory. Raises UserError if it does not exist."""
    if not path.is_dir():
        raise UserError(f"{path}: no such run directory; give one of outputs/runs/<stage>/<time>-<id>")
    problems: list[str] = []
    meta = _mapping(path / "meta.json", problems)
    state = str(meta.get("state") or "unknown")
    growing = state == "running"
    return RunRecord(
        path=path,
        id=path.name,
        stage=str(meta.get("stage") or path.parent.name),
        state=KILLED if state == "running" and is_gone(path) else state,
        name=meta.get("name"),
        group=meta.get("group"),
        overrides=tuple(str(item) for item in meta.get("overrides") or ()),
        started=meta.get("started"),
        error=meta.get("error"),
        config=_mapping(path / "config.yaml", problems),
        summary={
            key: value
            for key, value in _mapping(path / "summary.json", problems).items()
            if value is None or isinstance(value, int | float | str)
        },
        history=tuple(_rows(path / "history.jsonl", problems, growing)),
        lineage=tuple(_lineage(path / LINEAGE_FILE, problems)),
        alerts=tuple(_rows(path / "alerts.jsonl", problems, growing)),
        versions=meta.get("versions") or {},
        git=meta.get("git"),
        problems=tuple(problems),
    )


def find_runs(
    root: Path, *, stage: str | None = None, group: str | None = None, state: str | None = "finished"
) -> list[RunRecord]:
    """Runs below `root` (the `runs` folder, or its parent), oldest first.

    `None` means any stage, group or state. Directories without `meta.json` are not runs yet.
    """
    wanted = {"stage": stage, "group": group, "state": state}
    runs = map(load_run, run_folders(root))
    return [
        run for run in runs if all(getattr(run, key) == own for key, own in wanted.items() if own is not None)
    ]


def run_folders(root: Path) -> list[Path]:
    """The directories of all runs below `root`, as `find_runs` orders them."""
    base = root / "runs" if (root / "runs").is_dir() else root
    return sorted((file.parent for file in base.glob("*/*/meta.json")), key=_start)


def _start(folder: Path) -> tuple[str, ...]:
    """A directory's name has the second, which a job that fails at once shares with the next one."""
    second, _, _ = folder.name.partition("-")
    return (
        second,
        str(_mapping(folder / "meta.json", []).get("started") or ""),
        folder.name,
        folder.parent.name,
    )


def number(summary: Mapping[str, Any], *names: str) -> float | None:
    """The first of `names` that holds a finite number."""
    for value in map(summary.get, names):
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf"):
            return float(value)
    return None


def interval(summary: Mapping[str, Any], name: str) -> Interval | None:
    """`name` with its `_ci_low` and `_ci_high`, without a count; None unless all three are finite numbers."""
    estimate, low, high = (number(summary, f"{name}{end}") for end in ("", "_ci_low", "_ci_high"))
    return None if estimate is None or low is None or high is None else Interval(estimate, low, high, 0)


def series(history: Sequence[Row], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one metric, without rows in which it is missing or not finite."""
    steps, values = [], []
    for position, row in enumerate(history):
        value = number(row, name)
        if value is not None:
            step = number(row, "step")
            steps.append(float(position) if step is None else step)
            values.append(value)
    return steps, values


def _mapping(file: Path, problems: list[str]) -> dict[str, Any]:
    if not file.is_file():
        problems.append(f"{file.name} is missing")
        return {}
    try:
        text = file.read_text(encoding="utf-8")
        value = from_yaml(text) if file.suffix == ".yaml" else json.loads(text)
    except (ValueError, yaml.YAMLError):
        problems.append(f"{file.name} is not readable")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{file.name} is not a mapping")
        return {}
    return value


def _rows(file: Path, problems: list[str], growing: bool = False) -> Iterator[Row]:
    """The rows of a file; of one that is `growing`, a last line without its end is not there yet."""
    if not file.is_file():
        return
    text = file.read_text(encoding="utf-8", errors="replace")
    if growing:
        text = text[: text.rfind("\n") + 1]
    for place, line in enumerate(text.splitlines(), start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError:
            problems.append(f"{file.name}, line {place} is not readable")
            continue
        if isinstance(row, dict):
            yield row


def _lineage(file: Path, problems: list[str]) -> list[LineageRow]:
    try:
        return read_lineage(file) if file.is_file() else []
    except ValueError:
        problems.append(f"{file.name} is not readable")
        return []
