"""One file per job of a sweep below `<root>/sweeps/<ID>/`, written whole or not at all.

A job holds a file lock as long as it runs. Whoever finds a job `running` and its lock free knows that its process has
died, whatever killed it and on whichever machine, so nothing has to be tidied up before a sweep goes on.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from rlaif.io import append_jsonl, read_json, read_jsonl, write_json

logger = logging.getLogger(__name__)

State = Literal["queued", "running", "finished", "pruned", "failed", "stopped"]
"""`pruned`: a search ended the job early. `stopped` is never written: a job that is `running` in its file while no
process holds its lock."""

_PROBE = 5.0  # seconds: others hold a job's lock for a moment to see whether it is held


@dataclass(frozen=True)
class Job:
    """A row of the ledger. `runs`: run directories of all attempts, relative to the root, the latest last."""

    key: str
    number: int
    words: tuple[str, ...]
    state: State = "queued"
    runs: tuple[str, ...] = ()
    attempts: int = 0
    started: str | None = None
    finished: str | None = None
    host: str | None = None
    pid: int | None = None
    error: str | None = None
    commit: str | None = None

    @property
    def title(self) -> str:
        """The job in words."""
        return f"job {self.number} ({' '.join(self.words)})"


@dataclass(frozen=True)
class Ledger:
    """The ledger in `folder`, `<root>/sweeps/<ID>`; several processes may use it at once."""

    folder: Path

    @property
    def id(self) -> str:
        """The sweep's ID, which its runs have as their group."""
        return self.folder.name

    @property
    def root(self) -> Path:
        """The folder that holds `sweeps/` and `runs/`."""
        return self.folder.parents[1]

    @property
    def exists(self) -> bool:
        """Whether a sweep has been started here."""
        return (self.folder / "sweep.json").is_file()

    def about(self) -> dict[str, Any]:
        """What `sweep.json` says: name, identity, code, and what all jobs have agreed on."""
        return dict(read_json(self.folder / "sweep.json"))

    def describe(self, values: Mapping[str, Any]) -> None:
        """Merge values into `sweep.json`. The caller holds `lock`."""
        write_json(self.folder / "sweep.json", (self.about() if self.exists else {}) | dict(values))

    def lock(self) -> FileLock:
        """The lock under which `sweep.json` and the set of jobs change."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / "sweep.lock")

    def agree(self, name: str, choose: Callable[[], Any]) -> Any:
        """What the first job that asked for `name` has chosen, so that all jobs of the sweep have the same."""
        with self.lock():
            agreed = self.about().get("agreed", {})
            if name not in agreed:
                agreed = agreed | {name: choose()}
                self.describe({"agreed": agreed})
            return agreed[name]

    def jobs(self) -> list[Job]:
        """All jobs in the order in which they were added, each with its state at this moment."""
        keys = [file.stem for file in (self.folder / "jobs").glob("*.json")]
        return sorted(filter(None, map(self.job, keys)), key=lambda job: job.number)

    def job(self, key: str) -> Job | None:
        """The job `key` with its state at this moment; None if there is no such job."""
        found = self._read(key)
        if found is None or found.state != "running" or self.is_held(key):
            return found
        again = self._read(key)  # it may have ended between the two looks
        return replace(again, state="stopped") if again and again.state == "running" else again

    def _read(self, key: str) -> Job | None:
        try:
            values = read_json(self.folder / "jobs" / f"{key}.json")
        except FileNotFoundError:
            return None
        return Job(**values | {"words": tuple(values["words"]), "runs": tuple(values["runs"])})

    def write(self, job: Job) -> None:
        """Write a job's row. The caller holds `lock` or the job's own lock."""
        write_json(self.folder / "jobs" / f"{job.key}.json", asdict(job))

    def config(self, key: str) -> dict[str, Any]:
        """The configuration with which a job was added, flat."""
        try:
            return dict(read_json(self.folder / "configs" / f"{key}.json"))
        except FileNotFoundError:
            return {}

    def write_config(self, key: str, config: Mapping[str, Any]) -> None:
        """Keep a job's flat configuration."""
        write_json(self.folder / "configs" / f"{key}.json", dict(config))

    def is_held(self, key: str) -> bool:
        """Whether a live process runs the job `key`."""
        return _held(self._file_lock(key))

    @contextmanager
    def claim(self, key: str) -> Iterator[Entry | None]:
        """The job, for this process to run; None if it is unknown, has been run, or runs elsewhere."""
        lock = self._file_lock(key)
        try:
            lock.acquire(timeout=_PROBE)
        except Timeout:
            logger.warning("%s: %s runs it already", self.title(key), self._holder(key))
            yield None
            return
        with lock:  # held twice now, and freed for good at the end of the function
            lock.release()
            job = self._read(key)
            if job is not None and job.state in ("finished", "pruned", "failed"):
                logger.info("%s: another process has run it (%s)", self.title(key), job.state)
                job = None
            yield None if job is None else Entry(self, job)

    def requeue(self, key: str, config: Mapping[str, Any]) -> bool:
        """Let a job that has ended run again, with `config`; False if a process has begun to run it."""
        try:
            with self._file_lock(key).acquire(timeout=0):
                if job := self._read(key):
                    self.write_config(key, config)
                    self.write(replace(job, state="queued"))
                return True
        except Timeout:
            return False

    def wait(self, key: str) -> None:
        """Wait until no process runs the job `key`; says once for whom."""
        if self.is_held(key):
            logger.warning("waiting for %s, which %s runs", self.title(key), self._holder(key))
            with self._file_lock(key):
                pass

    def title(self, key: str) -> str:
        """A job in words."""
        job = self._read(key)
        return f"job {key}" if job is None else job.title

    def _holder(self, key: str) -> str:
        job = self._read(key)
        if job is None or job.pid is None:
            return "another process"
        return f"process {job.pid} on {job.host} (since {job.started})"

    def _file_lock(self, key: str) -> FileLock:
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{key}.lock")

    def starts(self) -> list[dict[str, Any]]:
        """One row per start of the sweep: time, host, pid, words, and how many jobs were skipped, retried and new."""
        file = self.folder / "starts.jsonl"
        return list(read_jsonl(file)) if file.is_file() else []

    @contextmanager
    def start(self, row: Mapping[str, Any]) -> Iterator[None]:
        """Note a start of the sweep; while the body runs, `active` is true."""
        with self._file_lock(f"start-{os.getpid()}-{socket.gethostname()}"):
            append_jsonl(self.folder / "starts.jsonl", {**_here(), "time": now(), **row})
            yield

    @property
    def active(self) -> bool:
        """Whether a process works on the sweep."""
        files = (self.folder / "locks").glob("start-*.lock")
        return any(_held(FileLock(file)) for file in files)


class Entry:
    """A job that this process runs, and how its row changes."""

    def __init__(self, ledger: Ledger, job: Job) -> None:
        self.ledger, self._job = ledger, job

    def began(self, directory: Path, commit: str | None) -> None:
        """The job runs, into the run directory `directory`."""
        run = directory.relative_to(self.ledger.root).as_posix()
        self._set(
            state="running",
            runs=(*self._job.runs, run),
            attempts=self._job.attempts + 1,
            started=now(),
            finished=None,
            error=None,
            commit=commit,
            **_here(),
        )

    def finished(self) -> None:
        """The job's run is complete."""
        self._set(state="finished", finished=now())

    def pruned(self, sentence: str) -> None:
        """A search has seen enough of the job."""
        self._set(state="pruned", finished=now(), error=sentence)

    def failed(self, sentence: str) -> None:
        """The job ended with an error. A job that had finished, and failed at its report, stays finished."""
        if self._job.state == "finished":
            return
        began = self._job.state == "running"
        own = {} if began else {"started": None, "attempts": self._job.attempts + 1, **_here()}
        self._set(state="failed", finished=now(), error=sentence, **own)

    def _set(self, **values: Any) -> None:
        self._job = replace(self._job, **values)
        self.ledger.write(self._job)


def find_ledgers(root: Path) -> list[Ledger]:
    """The ledgers below `root`, oldest first."""
    found = [Ledger(file.parent) for file in (root / "sweeps").glob("*/sweep.json")]
    return sorted(found, key=lambda ledger: (str(ledger.about().get("created")), ledger.id))


def counts(jobs: Sequence[Job]) -> dict[State, int]:
    """How many jobs are in each state; states without any are left out."""
    order: tuple[State, ...] = ("finished", "pruned", "failed", "stopped", "running", "queued")
    numbers = {state: sum(job.state == state for job in jobs) for state in order}
    return {state: number for state, number in numbers.items() if number}


def now() -> str:
    """The time, as the ledger writes it: UTC in ISO format."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _here() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _held(lock: FileLock) -> bool:
    try:
        with lock.acquire(blocking=False):
            return False
    except Timeout:
        return True
