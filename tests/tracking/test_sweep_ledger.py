"""The ledger of a sweep: who may run a job, what a killed process leaves, and what all jobs agree on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import processes
import pytest

from rlaif.tracking.sweep import Job, Ledger, find_ledgers
from rlaif.tracking.sweep.ledger import counts


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    found = Ledger(tmp_path / "sweeps" / "label-12345678")
    with found.lock():
        found.describe({"id": found.id, "created": "2026-01-01T00:00:00+00:00"})
        for number, key in enumerate("ab", 1):
            found.write(Job(key, number, (f"labeler={key}",)))
    return found


def _run_for_ever(folder: str, key: str) -> None:
    """Claim a job, as a command would, and never end."""
    ledger = Ledger(Path(folder))
    with ledger.claim(key) as entry:
        assert entry is not None
        entry.began(ledger.root / "runs" / "label" / "one", "c0ffee")
        time.sleep(300)


def _until(holds: object) -> None:
    end = time.monotonic() + 60
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < end, "nothing happened within a minute"
        time.sleep(0.02)


def _state(ledger: Ledger, key: str) -> str:
    job = ledger.job(key)
    assert job is not None
    return job.state


def test_a_job_goes_from_queued_to_finished_and_is_then_nobodys(ledger: Ledger) -> None:
    with ledger.claim("a") as entry:
        assert entry is not None and _state(ledger, "a") == "queued"
        entry.began(ledger.root / "runs" / "label" / "one", "c0ffee")
        assert _state(ledger, "a") == "running"
        entry.finished()
        entry.failed("the report could not be rendered")
    job = ledger.job("a")
    assert job is not None and (job.state, job.attempts, job.error) == ("finished", 1, None)
    assert (job.runs, job.commit, job.pid) == (("runs/label/one",), "c0ffee", os.getpid())
    with ledger.claim("a") as entry:
        assert entry is None
    with ledger.claim("unknown") as entry:
        assert entry is None


def test_a_failed_job_is_run_again_only_once_it_is_queued_again(ledger: Ledger) -> None:
    with ledger.claim("a") as entry:
        assert entry is not None
        entry.failed("task.path=x: no such file")
    job = ledger.job("a")
    assert job is not None and (job.state, job.attempts) == ("failed", 1)
    assert job.error == "task.path=x: no such file"
    with ledger.claim("a") as entry:
        assert entry is None, "another process of the same start has tried it"
    assert ledger.requeue("a", {"rm.lr": 1})
    with ledger.claim("a") as entry:
        assert entry is not None
        entry.began(ledger.root / "runs" / "label" / "two", None)
        entry.finished()
    job = ledger.job("a")
    assert job is not None and (job.state, job.attempts, job.error) == ("finished", 2, None)
    assert ledger.config("a") == {"rm.lr": 1} and ledger.config("b") == {}


def test_a_job_that_another_process_runs_is_left_to_it_until_it_is_killed(
    ledger: Ledger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlaif.tracking.sweep.ledger._PROBE", 0.05)
    process = processes.start(_run_for_ever, str(ledger.folder), "a")
    try:
        _until(lambda: _state(ledger, "a") == "running")
        with ledger.claim("a") as entry:
            assert entry is None
        assert f"job 1 (labeler=a): process {process.pid} on" in caplog.text
        assert not ledger.requeue("a", {}) and ledger.is_held("a") and not ledger.is_held("b")
        assert counts(ledger.jobs()) == {"running": 1, "queued": 1}
    finally:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert _state(ledger, "a") == "stopped" and counts(ledger.jobs()) == {"stopped": 1, "queued": 1}
    with ledger.claim("a") as entry:
        assert entry is not None
        entry.began(ledger.root / "runs" / "label" / "two", None)
        assert _state(ledger, "a") == "running"
        entry.finished()
    job = ledger.job("a")
    assert job is not None and (job.attempts, len(job.runs)) == (2, 2)


def test_what_the_first_job_chooses_holds_for_all(ledger: Ledger) -> None:
    assert ledger.agree("size", lambda: ["small", "why"]) == ["small", "why"]
    assert ledger.agree("size", lambda: pytest.fail("it was agreed on")) == ["small", "why"]
    assert ledger.about()["id"] == ledger.id, "nothing else is lost"


def test_a_start_is_noted_and_active_while_it_works(ledger: Ledger) -> None:
    assert not ledger.active and ledger.starts() == []
    with ledger.start({"said": "2 new"}):
        assert ledger.active
    assert not ledger.active
    (row,) = ledger.starts()
    assert (row["said"], row["pid"]) == ("2 new", os.getpid())


def test_ledgers_are_found_by_age_and_jobs_by_number(ledger: Ledger, tmp_path: Path) -> None:
    older = Ledger(tmp_path / "sweeps" / "rm-00000000")
    with older.lock():
        older.describe({"created": "2025-01-01T00:00:00+00:00"})
    (tmp_path / "sweeps" / "no-ledger").mkdir()
    assert [found.id for found in find_ledgers(tmp_path)] == ["rm-00000000", "label-12345678"]
    assert [job.key for job in ledger.jobs()] == ["a", "b"]
