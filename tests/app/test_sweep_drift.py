"""What counts as a change since a sweep was started, and what becomes of its jobs at the next start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rlaif.app.sweep import start as starting
from rlaif.app.sweep.code import _meaning, code_state
from rlaif.app.sweep.drift import REFUSED, code_differences, config_differences
from rlaif.app.sweep.identity import Identity
from rlaif.app.sweep.start import Point, opened, register, said
from rlaif.errors import UserError
from rlaif.tracking.sweep import Job, Ledger

IDENTITY = Identity("label", ("labeler",), ("stage=label",))
CODE: dict[str, Any] = {
    "versions": {"python": "3.11", "torch": "2.9"},
    "commit": "a" * 40,
    "dirty": False,
    "files": {"rlaif/ops/gae.py": "1", "rlaif/ops/kl.py": "2"},
}


def test_comments_and_docstrings_are_no_change_of_code_and_a_number_is() -> None:
    source = 'def f(x):\n    """Doc."""\n    return x + 1\n'
    assert _meaning(source) == _meaning('def f(x):  # why\n    """Another."""\n\n    return (x + 1)\n')
    assert _meaning(source) != _meaning(source.replace("1", "2"))


def test_the_code_that_can_change_a_result_is_in_the_digests_and_no_other() -> None:
    files = code_state()["files"]
    assert {"rlaif/ops/gae.py", "rlaif/stages/rm/stage.py", "conf/templates/docs/base.j2"} <= set(files)
    assert not [name for name in files if name.startswith(("rlaif/report/", "rlaif/app/", "docs/"))]


def test_a_library_and_a_file_are_named_with_what_they_were() -> None:
    after = CODE | {"commit": "b" * 40, "dirty": True, "versions": {"python": "3.11", "torch": "3.0"}}
    assert code_differences(CODE, CODE | {"commit": "b" * 40}) == []
    after["files"] = {"rlaif/ops/gae.py": "7", "rlaif/ops/new.py": "3"}
    assert list(map(str, code_differences(CODE, after))) == [
        "torch: 2.9 -> 3.0",
        "rlaif/ops/gae.py: 1 of aaaaaaaa -> 7 of bbbbbbbb with changes",
        "rlaif/ops/kl.py: 2 of aaaaaaaa -> absent",
        "rlaif/ops/new.py: absent -> 3 of bbbbbbbb with changes",
    ]
    other = after | {"versions": {"python": "3.12", "torch": "2.9"}}
    assert list(map(str, code_differences(CODE, other))) == ["python: 3.11 -> 3.12"]


def _ledger(root: Path, **configs: Mapping[str, Any]) -> Ledger:
    """A ledger whose jobs have all been started."""
    ledger = Ledger(root / "sweeps" / IDENTITY.id)
    with ledger.lock():
        ledger.describe({"id": ledger.id, "created": "2026", "code": CODE})
        for number, (key, config) in enumerate(configs.items(), 1):
            ledger.write(Job(key, number, (f"labeler={key}",), "failed", attempts=1, error="e"))
            ledger.write_config(key, config)
    return ledger


def test_a_key_is_compared_for_every_job_that_was_started(tmp_path: Path) -> None:
    ledger = _ledger(tmp_path, a={"rm.lr": 1, "x": 0}, b={"rm.lr": 1, "x": 0}, c={"rm.lr": 1, "x": 0})
    now: dict[str, Any] = {
        "a": {"rm.lr": 2, "x": 0},
        "b": {"rm.lr": 2, "x": 0, "y": "z"},
        "c": "no such labeler",
    }
    found = config_differences(ledger, ledger.jobs(), lambda job: now[job.key])
    assert list(map(str, found)) == [
        "rm.lr: 1 -> 2 (2 jobs)",
        'y: absent -> "z" (1 job)',
        "labeler=c: a job -> no such labeler (1 job)",
    ]
    ledger.write_config("c", {REFUSED: "no such labeler"})
    assert not [
        f for f in config_differences(ledger, ledger.jobs(), lambda job: now[job.key]) if "c" in f.name
    ]


@pytest.fixture
def drifted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """A sweep that was started with rm.lr=1, of which a job now resolves to rm.lr=2."""
    monkeypatch.setattr("rlaif.app.sweep.start.code_state", lambda: CODE)
    monkeypatch.setattr("rlaif.app.sweep.drift.code_state", lambda: CODE)
    return _ledger(tmp_path, a={"rm.lr": 1})


def _now(job: Job) -> dict[str, Any]:
    return {"rm.lr": 2}


def test_drift_is_refused_with_the_difference(drifted: Ledger) -> None:
    with pytest.raises(UserError, match=r"rm\.lr: 1 -> 2 \(1 job\); write sweep\.on_drift=new"):
        opened(drifted.root, IDENTITY, _now, "refuse")
    assert opened(drifted.root, IDENTITY, lambda job: {"rm.lr": 1}, "refuse") == drifted


def test_drift_makes_a_new_sweep_which_the_next_start_goes_on_with(drifted: Ledger) -> None:
    new = opened(drifted.root, IDENTITY, _now, "new")
    assert new.id == f"{drifted.id}-2" and new.jobs() == [] and len(drifted.jobs()) == 1
    assert opened(drifted.root, IDENTITY, _now, "refuse") == new


def test_accepted_drift_is_noted_and_is_none_the_next_time(drifted: Ledger) -> None:
    assert opened(drifted.root, IDENTITY, _now, "accept") == drifted
    (note,) = drifted.about()["accepted"]
    assert note["differences"] == ["rm.lr: 1 -> 2 (1 job)"] and note["finished"] == 0
    assert opened(drifted.root, IDENTITY, _now, "refuse") == drifted


def test_each_job_has_its_fate(tmp_path: Path) -> None:
    ledger = _ledger(tmp_path, failed={})
    run = ledger.root / "runs" / "label" / "one"
    run.mkdir(parents=True)
    (run / "summary.json").write_text("{}", encoding="utf-8")
    whole, gone = ("runs/label/one",), ("runs/label/deleted",)
    for key, state, runs in (
        ("whole", "finished", whole),
        ("gone", "finished", gone),
        ("died", "running", whole),
        ("waits", "queued", ()),
    ):
        ledger.write(Job(key, 9, (key,), state, runs=runs, attempts=1))  # type: ignore[arg-type]
    points = [Point(key, (key,), {"k": 1}) for key in ("failed", "whole", "gone", "died", "waits", "fresh")]
    fates = register(ledger, points, force=False)
    assert fates == {
        "failed": "retried",
        "whole": "skipped",
        "gone": "again",
        "died": "resumed",
        "waits": "waiting",
        "fresh": "new",
    }
    assert said(fates) == (
        "1 finished and skipped, 1 failed and retried, 1 stopped and resumed, 1 finished and run again, "
        "1 still to run, 1 new"
    )
    states = {job.key: job.state for job in ledger.jobs()}
    assert states.pop("whole") == "finished" and set(states.values()) == {"queued"}
    assert register(ledger, points, force=True)["whole"] == "again"
    assert starting._SAID.keys() >= set(fates.values())
