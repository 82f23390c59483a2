"""kill -9, then the same command again: one W&B run, with each step once, that the printed command can upload."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from wandb_files import log_records, offline_runs
from wandb_server import upload, wandb_server

import rlaif
from rlaif.io import read_json
from rlaif.tracking import Run, WandbOptions
from rlaif.tracking.killed import claim
from rlaif.tracking.runs import find_runs, load_run
from rlaif.tracking.wandb_run import sync_command

OFFLINE = WandbOptions("p", "offline", None, None, "rl", (), "text")
# A child that logs a row at a time, tells of each, and waits to be killed.
CHILD = """
import sys, time
from pathlib import Path
from rlaif.tracking import Run, WandbOptions
directory, arms, rows = Path(sys.argv[1]), sys.argv[2] == "arms", int(sys.argv[3])
options = WandbOptions("p", "offline", None, None, "rl", (), "text")
if sys.argv[2] == "none":
    options = None
with Run(directory=directory, stage="rl", config={"lr": 1}, overrides=["stage=rl"], group=None, name="n",
         wandb_options=options) as run:
    if arms:
        with run.arm("a", "", {}) as own:
            run.log({"rl/kl": 0.0}, step=0)
            own.summary({"rl/reward": 1.0})
    def rest():
        for step in range(rows):
            run.log({"rl/kl": float(step), "rl/reward": 1.0, "rl/entropy": 0.5}, step=step)
        print("logged", flush=True)
        time.sleep(600)
    if arms:
        with run.arm("b", "", {}):
            rest()
    rest()
"""
MANY = 600  # rows: more than the 32 KiB that W&B keeps in memory


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    return tmp_path / "home"


def killed(directory: Path, kind: str = "plain", rows: int = MANY) -> None:
    """A start of the command that ends by kill -9 after so many rows."""
    words = [sys.executable, "-c", CHILD, str(directory), kind, str(rows)]
    environment = os.environ | {"PYTHONPATH": str(Path(rlaif.__file__).parents[1])}
    environment.pop("WANDB_SERVICE", None)  # it would feed this process's, which is not killed
    child = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None and child.stdout.readline() == b"logged\n"
    time.sleep(0.5)  # W&B's process reads on
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()


def again(directory: Path, **changes: Any) -> Run:
    own: dict[str, Any] = {
        "stage": "rl",
        "config": {"lr": 1},
        "overrides": ["stage=rl"],
        "group": None,
        "name": "n",
        "wandb_options": OFFLINE,
    }
    return Run(directory=directory, **(own | changes))


def replay(run: Run, rows: int) -> None:
    for step in range(rows):
        run.log({"rl/kl": float(step), "rl/reward": 1.0, "rl/entropy": 0.5}, step=step)


def lose_half(directory: Path) -> None:
    """What W&B had in memory; how much that is depends on how far its process has come. A record is cut."""
    (file,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    os.truncate(file, file.stat().st_size // 2 + 3)


def kept(directory: Path) -> list[int]:
    """The iterations in the part of the log that was written."""
    from wandb.proto import wandb_internal_pb2

    (file,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    steps = []
    for payload in log_records(file.read_bytes()):
        try:
            record = wandb_internal_pb2.Record.FromString(payload)
        except Exception:  # the record that was cut
            break
        if record.HasField("history"):
            values = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
            steps.append(int(values["rl/iteration"]))
    return steps


def test_the_same_command_continues_the_run_and_sends_what_was_lost(tmp_path: Path, home: Path) -> None:
    first, second, third = (tmp_path / "runs" / "rl" / name for name in ("1", "2", "3"))
    killed(first)
    lose_half(first)
    there = kept(first)
    assert there == list(range(len(there))) and 0 < len(there) < MANY
    assert load_run(first).state == "killed"

    with again(second) as run:
        replay(run, MANY + 5)
        assert load_run(second).state == "running"
    before, after = read_json(first / "meta.json"), read_json(second / "meta.json")
    assert before["wandb"]["id"] == after["wandb"]["id"]
    assert (before["state"], before["continued_by"], after["continues"]) == ("killed", "2", "1")
    (log,) = offline_runs(second)
    assert [row["rl/iteration"] for row in log.history] == list(range(len(there), MANY + 5))

    with again(third) as run:  # the one before has ended: nothing to continue
        replay(run, 1)
    assert read_json(third / "meta.json")["wandb"]["id"] != after["wandb"]["id"]
    assert read_json(third / "meta.json")["continues"] is None

    command = sync_command(tmp_path)
    with wandb_server() as server:
        upload(command, server, str(home))
    served = server.runs[after["wandb"]["id"]]
    assert [row["rl/iteration"] for row in served.history] == list(range(MANY + 5))
    assert [row["_step"] for row in served.history] == list(range(MANY + 5))
    assert served.exits == [1, 0] and len(server.runs) == 2


def test_a_run_killed_twice_has_all_its_parts(tmp_path: Path) -> None:
    folders = [tmp_path / "runs" / "rl" / name for name in ("1", "2", "3")]
    killed(folders[0])
    killed(folders[1], rows=2 * MANY)
    with again(folders[2]) as run:
        replay(run, 2 * MANY)
    metas = [read_json(folder / "meta.json") for folder in folders]
    assert len({meta["wandb"]["id"] for meta in metas}) == 1
    assert [meta["state"] for meta in metas] == ["killed", "killed", "finished"]
    (last,) = offline_runs(folders[2])
    steps = Counter(kept(folders[0]) + kept(folders[1]) + [row["rl/iteration"] for row in last.history])
    assert set(steps) == set(range(2 * MANY)) and set(steps.values()) == {1}


def test_a_record_that_is_cut_does_not_end_the_upload(tmp_path: Path, home: Path) -> None:
    """W&B would leave out the run's next start."""
    first, second = (tmp_path / "runs" / "rl" / name for name in ("1", "2"))
    killed(first)
    lose_half(first)
    there = kept(first)
    with again(second) as run:
        replay(run, MANY)
    with wandb_server() as server:
        upload(sync_command(tmp_path), server, str(home))
    (served,) = server.runs.values()
    assert 0 < len(there) < MANY
    assert [row["rl/iteration"] for row in served.history] == list(range(MANY))


def test_a_log_without_anything_is_set_aside(tmp_path: Path, home: Path) -> None:
    """W&B would upload none of the others."""
    first, second = (tmp_path / "runs" / "rl" / name for name in ("1", "2"))
    killed(first, rows=0)
    file = next(first.glob("wandb/offline-run-*/run-*.wandb"))
    os.truncate(file, 7)  # what is there before anything is written
    with again(second, name="other") as run:
        replay(run, 1)
    with wandb_server() as server:
        upload(sync_command(tmp_path), server, str(home))
    assert [len(one.history) for one in server.runs.values()] == [1]
    assert not list(first.glob("wandb/offline-run-*")) and list(first.glob("wandb/empty-offline-run-*"))


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {"lr": 2}},
        {"overrides": ["stage=rl", "rl.lr=2"]},
        {"group": "sweep"},
        {"stage": "rm"},
        {"wandb_options": WandbOptions("other", "offline", None, None, "rl", (), "text")},
    ],
)
def test_another_command_begins_anew(tmp_path: Path, changes: dict[str, Any]) -> None:
    first, second = (tmp_path / "runs" / "rl" / name for name in ("1", "2"))
    killed(first, rows=1)
    with again(second, **changes) as run:
        replay(run, 1)
    (log,) = offline_runs(second)
    assert log.id != read_json(first / "meta.json")["wandb"]["id"]
    assert len(log.history) == 1


def test_a_run_that_the_starter_names_is_that_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B's agent does so: what its trial reports must not go to the run of another one."""
    killed(tmp_path / "1", rows=3)
    monkeypatch.setenv("WANDB_RUN_ID", "ofagent")
    with again(tmp_path / "2") as run:
        replay(run, 3)
    assert read_json(tmp_path / "2" / "meta.json")["wandb"]["id"] == "ofagent"
    (log,) = offline_runs(tmp_path / "2")
    assert [row["rl/iteration"] for row in log.history] == [0, 1, 2]


def test_a_running_command_is_not_taken_over(tmp_path: Path) -> None:
    first, second, third = (tmp_path / "runs" / "rl" / name for name in ("1", "2", "3"))
    with again(first), again(second):
        assert read_json(second / "meta.json")["continues"] is None
        assert load_run(first).state == "running"
    ids = [read_json(folder / "meta.json")["wandb"]["id"] for folder in (first, second)]
    assert len(set(ids)) == 2
    with pytest.raises(KeyboardInterrupt), again(third):  # ends, so it is no killed one either
        raise KeyboardInterrupt
    assert (
        claim(tmp_path / "runs" / "rl" / "4", read_json(third / "meta.json")["identity"], [None, "p"]) is None
    )


def test_of_two_only_one_continues(tmp_path: Path) -> None:
    first, second, third = (tmp_path / "runs" / "rl" / name for name in ("1", "2", "3"))
    killed(first, rows=1)
    with again(second), again(third):
        pass
    metas = [read_json(folder / "meta.json") for folder in (first, second, third)]
    assert [meta["continues"] for meta in metas] == [None, "1", None]
    assert metas[0]["wandb"]["id"] == metas[1]["wandb"]["id"] != metas[2]["wandb"]["id"]


def test_a_killed_comparison_goes_on_with_its_arms(tmp_path: Path, home: Path) -> None:
    first, second = (tmp_path / "runs" / "rl" / name for name in ("1", "2"))
    killed(first, "arms")
    with again(second) as run:
        with run.arm("a", "", {}) as own:
            assert own.run is None  # W&B has all of it
            run.log({"rl/kl": 0.0}, step=0)
        with run.arm("b", "", {}) as own:
            replay(run, MANY)
            own.summary({"rl/reward": 2.0})
        run.arm_summary("a", "", {}, {"rl/reward": 1.0})  # nothing new
    with wandb_server() as server:
        upload(sync_command(tmp_path), server, str(home))
    served = {one.name: one for one in server.runs.values()}
    assert len(server.runs) == 3 and set(served) == {"n", "a", "b"}
    assert [row["rl/iteration"] for row in served["a"].history] == [0] and served["a"].exits == [0]
    assert [row["rl/iteration"] for row in served["b"].history] == list(range(MANY))
    assert served["b"].summary["rl/reward"] == 2.0


def test_without_wandb_a_killed_run_is_called_so(tmp_path: Path) -> None:
    first, second = (tmp_path / "runs" / "rl" / name for name in ("1", "2"))
    killed(first, "none", rows=1)
    assert load_run(first).state == "killed"
    assert [run.id for run in find_runs(tmp_path, state="killed")] == ["1"]
    with again(second, wandb_options=None):
        pass
    assert read_json(second / "meta.json")["continues"] == "1"
    assert find_runs(tmp_path)[0].id == "2" and not (second / ".running").exists()
