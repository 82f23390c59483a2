"""A search's options as its file has them, and a search over jobs that cost nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from jobs import CODE
from sqlalchemy import event
from sqlalchemy.engine import Engine

from rlaif.app.search.objective import read_objectives
from rlaif.app.search.place import Place
from rlaif.app.search.space import read_space
from rlaif.app.search.study import Search, open_search
from rlaif.io import write_json
from rlaif.options.read import read
from rlaif.options.search import SearchOptions

Measure = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""The summary of a trial's run, by its values."""


@pytest.fixture(scope="module", autouse=True)
def _without_waiting_for_the_disk():
    """SQLite as the search uses it, but for the flush of each commit, which guards against power cuts alone."""

    def prepare(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", prepare)
    yield
    event.remove(Engine, "connect", prepare)


@pytest.fixture(scope="session")
def search_values() -> dict[str, Any]:
    values = yaml.safe_load((CODE / "conf/hydra/sweeper/optuna.yaml").read_text(encoding="utf-8"))
    del values["_target_"]
    return values


@pytest.fixture(scope="session")
def search_options(search_values) -> Callable[..., SearchOptions]:
    return lambda **own: read(SearchOptions, {**search_values, **own}, "hydra.sweeper")


@pytest.fixture
def searching(search_options, tmp_path) -> Callable[..., Search]:
    """`searching(["x=interval(0,1)"], root=..., n_trials=3)`: the search there, as a call of the command opens it."""

    def opened(words: list[str], *, root: Path = tmp_path, name: str = "study", **own: Any) -> Search:
        options = search_options(**{"objective": "rm/accuracy", **own})
        space = read_space(OverridesParser.create().parse_overrides(words))
        objectives = read_objectives(options, "rm")
        identity = {"space": space.described, "objectives": [[o.name, o.direction] for o in objectives]}
        return open_search(Place(root, name), options, space, objectives, identity)

    return opened


class Jobs:
    """Stands in for a launcher: each trial's run is a summary on disk. It dies at the trial `kill`."""

    def __init__(self, search: Search, measure: Measure, kill: int | None = None) -> None:
        self.search, self.measure, self.kill = search, measure, kill
        self.batches: list[list[int]] = []

    def __call__(self, batch) -> str | None:
        self.batches.append([trial.number for trial in batch])
        for trial in batch:
            if trial.number == self.kill:
                raise KeyboardInterrupt
            self.end(trial.number, self.measure(trial.params))
        return None

    def end(self, number: int, summary: Mapping[str, Any]) -> None:
        """The outcome of a trial whose run came to `summary`; of one with the key `error`, that it failed of it."""
        if error := summary.get("error"):
            outcome = {"state": "failed", "run": None, "error": error}
        else:
            write_json(self.search.place.root / "runs" / str(number) / "summary.json", dict(summary))
            outcome = {"state": "finished", "run": f"runs/{number}", "error": None}
        write_json(self.search.place.outcome(number), outcome)


@pytest.fixture
def jobs() -> type[Jobs]:
    return Jobs
