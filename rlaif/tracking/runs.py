"""Run directories as records: the only input of every table, plot and page.

A run may be half-written (killed, still going, an older layout). Reading never fails for that: what is
missing is empty, what is broken is named in `problems`.
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
from rlaif.io.lineage import LINEAGE_FILE, LineageRow, read_lineage
from rlaif.stats import Interval

Scalar = float | str | None
Row = Mapping[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """One run directory. `summary` is flat (`stage/name` to number or string), `history` one row a step.

    `started` and `finished` are as the run wrote them (ISO text or seconds since the epoch).
    """

    path: Path
    id: str
    stage: str
    state: str
    name: str | None = None
    group: str | None = None
    overrides: tuple[str, ...] = ()
    started: str | float | None = None
    finished: str | float | None = None
    error: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Scalar] = field(default_factory=dict)
    history: tuple[Row, ...] = ()
    lineage: tuple[LineageRow, ...] = ()
    alerts: tuple[Row, ...] = ()
    versions: Mapping[str, Any] = field(default_factory=dict)
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
        """Rows of `tables/<name>.jsonl`, or none where the run wrote no such table."""
        return list(_rows(self.path / "tables" / f"{name}.jsonl", []))


def load_run(path: Path) -> RunRecord:
    """Read a run directory; raises UserError when there is no such directory."""
    if not path.is_dir():
        raise UserError(f"{path}: no such run directory; give one of outputs/runs/<stage>/<time>-<id>")
    problems: list[str] = []
    meta = _mapping(path / "meta.json", problems)
    return RunRecord(
        path=path,
        id=path.name,
        stage=str(meta.get("stage") or path.parent.name),
        state=str(meta.get("state") or "unknown"),
        name=meta.get("name"),
        group=meta.get("group"),
        overrides=tuple(str(item) for item in meta.get("overrides") or ()),
        started=meta.get("started"),
        finished=meta.get("finished"),
        error=meta.get("error"),
        config=_mapping(path / "config.yaml", problems),
        summary=_scalars(_mapping(path / "summary.json", problems)),
        history=tuple(_rows(path / "history.jsonl", problems)),
        lineage=tuple(_lineage(path / LINEAGE_FILE, problems)),
        alerts=tuple(_rows(path / "alerts.jsonl", problems)),
        versions=meta.get("versions") or {},
        problems=tuple(problems),
    )


def find_runs(
    root: Path, *, stage: str | None = None, group: str | None = None, state: str | None = "finished"
) -> list[RunRecord]:
    """Runs below `root` (the `runs` folder, or the folder that holds it), oldest first.

    `None` means any stage, group or state. Directories without `meta.json` are not runs yet.
    """
    base = root / "runs" if (root / "runs").is_dir() else root
    wanted = {"stage": stage, "group": group, "state": state}
    found = []
    for file in base.glob("*/*/meta.json"):
        run = load_run(file.parent)
        if all(value is None or getattr(run, key) == value for key, value in wanted.items()):
            found.append(run)
    return sorted(found, key=_start)


def _start(run: RunRecord) -> tuple[str, ...]:
    """Directories' names tell the second, which a job that fails at once shares with the next one."""
    second, _, _ = run.path.name.partition("-")
    return second, str(run.started or ""), run.path.name, run.path.parent.name


def number(summary: Mapping[str, Any], *names: str) -> float | None:
    """The first of `names` that holds a finite number."""
    for name in names:
        value = summary.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf"):
            return float(value)
    return None


def interval(summary: Mapping[str, Any], name: str, count: str | None = None) -> Interval | None:
    """`name` with its `_ci_low` and `_ci_high`; None unless all three are finite numbers."""
    low, high = number(summary, f"{name}_ci_low"), number(summary, f"{name}_ci_high")
    estimate = number(summary, name)
    if estimate is None or low is None or high is None:
        return None
    return Interval(estimate, low, high, int(number(summary, count) or 0) if count else 0)


def series(history: Sequence[Row], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one metric, leaving out rows where it is missing or not finite."""
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
        value = yaml.safe_load(text) if file.suffix == ".yaml" else json.loads(text)
    except (ValueError, yaml.YAMLError):
        problems.append(f"{file.name} is not readable")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{file.name} holds no mapping")
        return {}
    return value


def _rows(file: Path, problems: list[str]) -> Iterator[Row]:
    if not file.is_file():
        return
    for line_number, line in enumerate(
        file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1
    ):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError:
            problems.append(f"{file.name}, line {line_number} is not readable")
            continue
        if isinstance(row, dict):
            yield row


def _lineage(file: Path, problems: list[str]) -> list[LineageRow]:
    try:
        return read_lineage(file) if file.is_file() else []
    except ValueError:
        problems.append(f"{file.name} is not readable")
        return []


def _scalars(values: Mapping[str, Any]) -> dict[str, Scalar]:
    return {
        key: value for key, value in values.items() if value is None or isinstance(value, int | float | str)
    }
