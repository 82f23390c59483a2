"""Sweeps as a user starts them: killed and gone on with, twice at once, with jobs that fail, by each launcher."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rlaif.tracking.runs import find_runs, load_run
from rlaif.tracking.sweep import Job, Ledger, find_ledgers

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "custom.jsonl"
GRID = "labeler=likelihood,base,score,scripted"
SMALL = ("profile=smoke", "tracking=none", "stage=label")


def _ledger(root: Path) -> Ledger:
    (ledger,) = find_ledgers(root)
    return ledger


def _until(holds: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.02)


def _finished(root: Path) -> list[Job]:
    return [job for ledger in find_ledgers(root) for job in ledger.jobs() if job.state == "finished"]


def _kinds(root: Path) -> Counter[str]:
    return Counter(f.name.split("-")[0] for f in (root / "artifacts").iterdir() if not f.name.startswith("."))


@pytest.fixture(scope="module")
def killed(start_process, command, tmp_path_factory):
    """A sweep killed once two jobs had finished, as it was then, and the same command up to its end."""
    root = tmp_path_factory.mktemp("killed")
    words = ["-m", *SMALL, GRID, f"paths.root={root}"]
    process = start_process(*words)
    _until(lambda: len(_finished(root)) >= 2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    before = {job.key: job for job in _ledger(root).jobs()}
    done = command(*words)
    return root, before, done


def test_the_same_command_ends_a_killed_sweep_and_repeats_nothing(killed) -> None:
    root, before, done = killed
    assert done.returncode == 0, done.stderr
    ledger = _ledger(root)
    finished = [key for key, job in before.items() if job.state == "finished"]
    assert 2 <= len(finished) < 4 and len(before) == 4
    jobs = {job.key: job for job in ledger.jobs()}
    assert {job.state for job in jobs.values()} == {"finished"}
    assert all(jobs[key] == before[key] for key in finished), "not touched, let alone run again"
    first, second = ledger.starts()
    assert set(first["fates"].values()) == {"new"}
    assert sorted(k for k, fate in second["fates"].items() if fate == "skipped") == sorted(finished)
    assert f"sweep {ledger.id}: 4 jobs: {len(finished)} finished and skipped" in done.stderr
    assert done.stdout.count("summary: ") == 4 - len(finished)
    assert done.stdout.rstrip("\n").splitlines()[-1] == (
        f"sweep: {ledger.id} (4 jobs: 4 finished); python train.py stage=report sweep={ledger.id} paths.root={root}"
    )
    assert len([r for r in find_runs(root, stage="label") if r.state == "finished"]) == 4


def test_a_third_start_asks_the_labelers_nothing(killed, command) -> None:
    root, _, _ = killed
    runs = set((root / "runs" / "label").iterdir())
    stored = {file: file.stat().st_mtime_ns for file in root.rglob("*.sqlite*")}
    done = command("-m", *SMALL, GRID, f"paths.root={root}")
    assert done.returncode == 0 and "4 jobs: 4 finished and skipped" in done.stderr, done.stderr
    assert set((root / "runs" / "label").iterdir()) == runs
    assert {file: file.stat().st_mtime_ns for file in root.rglob("*.sqlite*")} == stored
    assert "summary: " not in done.stdout


def test_the_report_has_the_jobs_of_both_starts(killed, command) -> None:
    root, before, _ = killed
    ledger = _ledger(root)
    done = command("stage=report", "sweep=label", "tracking=none", f"paths.root={root}", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert f"Sweep {ledger.id}: 4 jobs: 4 finished" in done.stdout
    text = (root / "reports" / f"sweep-{ledger.id}.html").read_text(encoding="utf-8")
    for job in ledger.jobs():
        assert load_run(ledger.root / job.runs[-1]).id in text
    assert all(f"labeler={name}" in text for name in ("likelihood", "base", "score", "scripted"))
    skipped = sum(job.state == "finished" for job in before.values())
    assert f"{skipped} finished and skipped" in text


def test_points_and_seeds_are_added_to_a_sweep(killed, command) -> None:
    root, _, _ = killed
    words = [*SMALL, "labeler=scripted,likelihood", "seed=0,1", f"paths.root={root}"]
    done = command("-m", *words)
    assert done.returncode == 0, done.stderr
    assert "4 jobs: 2 finished and skipped, 2 new" in done.stderr
    assert len(_ledger(root).jobs()) == 6


def test_two_sweeps_at_once_run_each_job_once(start_process, tmp_path) -> None:
    words = ["-m", *SMALL, GRID, f"paths.root={tmp_path}"]
    processes = [start_process(*words) for _ in range(2)]
    assert [process.wait(280) for process in processes] == [0, 0]
    jobs = _ledger(tmp_path).jobs()
    assert [(job.state, job.attempts) for job in jobs] == [("finished", 1)] * 4
    assert len(find_runs(tmp_path, stage="label", state=None)) == 4
    assert len(_ledger(tmp_path).starts()) == 2


def _custom(root: Path, *launcher: str) -> tuple[Path, list[str]]:
    """A file that is not there yet, and the words of a sweep over it and one that is."""
    there, missing = root / "there.jsonl", root / "missing.jsonl"
    shutil.copy(FIXTURE, there)
    paths = f"task.path={there},{missing}"
    return missing, [
        "-m",
        *launcher,
        *SMALL,
        "labeler=scripted",
        "task=custom",
        paths,
        f"paths.root={root}/out",
    ]


def _retried(command, root: Path, *launcher: str) -> None:
    missing, words = _custom(root, *launcher)
    out = root / "out"
    done = command(*words)
    assert done.returncode == 2, done.stderr
    ledger = _ledger(out)
    good, bad = ledger.jobs()
    assert (good.state, bad.state) == ("finished", "failed") and str(missing) in (bad.error or "")
    assert f"{bad.title} failed: {bad.error}" in done.stderr and "Traceback" not in done.stderr
    shown = command("stage=report", f"sweep={ledger.id}", "tracking=none", f"paths.root={out}", COLUMNS="600")
    assert "2 jobs: 1 finished, 1 failed" in shown.stdout and str(bad.error) in shown.stdout
    assert str(missing) in (out / "reports" / f"sweep-{ledger.id}.html").read_text(encoding="utf-8")
    shutil.copy(FIXTURE, missing)
    again = command(*words)
    assert again.returncode == 0, again.stderr
    assert "2 jobs: 1 finished and skipped, 1 failed and retried" in again.stderr
    assert [(job.state, job.attempts, job.error) for job in ledger.jobs()] == [
        ("finished", 1, None),
        ("finished", 2, None),
    ]


def test_a_failed_job_is_a_row_with_its_sentence_and_is_retried(command, tmp_path) -> None:
    _retried(command, tmp_path)


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_in_processes_build_what_they_share_once(launcher: str, command, tmp_path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    words = ["-m", f"hydra/launcher={launcher}", *SMALL, "labeler=scripted,likelihood"]
    done = command(*words, f"paths.root={tmp_path}", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert _kinds(tmp_path) == {"sft": 1, "sample": 1, "label": 2}
    jobs = _ledger(tmp_path).jobs()
    assert [job.state for job in jobs] == ["finished"] * 2 and len({job.pid for job in jobs}) == 2
    assert {record.group for record in find_runs(tmp_path, stage="label")} == {_ledger(tmp_path).id}
    assert list(elsewhere.iterdir()) == []
    printed = done.stderr + "".join(
        file.read_text(encoding="utf-8") for file in tmp_path.rglob("submitit/**/*.out")
    )
    assert re.search(r"waiting for artifact (sft|sample)-\w+, which process \d+ on \S+ \(since ", printed)


def test_a_job_that_fails_in_a_process_of_a_launcher_gives_exit_code_2(command, tmp_path) -> None:
    missing, words = _custom(tmp_path, "hydra/launcher=submitit_local")
    done = command(*words)
    assert done.returncode == 2, done.stderr
    good, bad = _ledger(tmp_path / "out").jobs()
    assert (good.state, bad.state) == ("finished", "failed")
    assert f"{bad.title} failed: {bad.error}" in done.stderr and str(missing) in done.stderr


def _tool(folder: Path, name: str, text: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


SBATCH = """
here="$(dirname "$0")"
cp "${@: -1}" "$here/script.sh"
(
  for i in 0 1; do
    SLURM_JOB_ID=$((70 + i)) SLURM_ARRAY_JOB_ID=70 SLURM_ARRAY_TASK_ID=$i SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 \\
    SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 bash "$here/script.sh" &
  done
  wait
  touch "$here/done"
) > "$here/log" 2>&1 &
echo "Submitted batch job 70"
"""
SRUN = 'while [[ "$1" == -* ]]; do if [[ "$1" == --output ]]; then shift; fi; shift; done; exec "$@"'
SACCT = """
state=RUNNING
[ -e "$(dirname "$0")/done" ] && state=COMPLETED
printf 'JobID|State|NodeList\\n70_0|%s|n\\n70_1|%s|n\\n' $state $state
"""


def test_a_cluster_gets_one_array_with_what_the_launcher_says(command, tmp_path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT), ("squeue", "true")):
        _tool(tools, name, text)
    slurm = [
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.partition=long",
        "hydra.launcher.gpus_per_node=1",
        "hydra.launcher.mem_gb=24",
    ]
    words = ["-m", *slurm, *SMALL, "labeler=scripted", "seed=0,1", f"paths.root={tmp_path}/out"]
    done = command(*words, PATH=f"{tools}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert [job.state for job in _ledger(tmp_path / "out").jobs()] == ["finished"] * 2
    script = (tools / "script.sh").read_text(encoding="utf-8")
    for option in (
        "array=0-1%2",
        "partition=long",
        "gpus-per-node=1",
        "mem=24GB",
        "cpus-per-task=8",
        "time=1440",
    ):
        assert f"#SBATCH --{option}\n" in script, script
    assert f"{tmp_path}/out/sweeps/" in script


def _refused(words: Sequence[str], command, root: Path, **env: str) -> str:
    done = command("-m", *SMALL, "labeler=scripted,base", *words, f"paths.root={root}", **env)
    assert done.returncode == 2 and "Traceback" not in done.stderr and find_ledgers(root) == []
    return str(done.stderr)


def test_what_cannot_start_is_one_sentence(command, tmp_path) -> None:
    said = _refused(["hydra/launcher=submitit_slurm"], command, tmp_path, PATH="/nowhere")
    assert "needs Slurm's sbatch" in said
    assert "max_batch_size=0" in _refused(["hydra.sweeper.max_batch_size=0"], command, tmp_path)
    assert "sweep.on_drift=no is not known: write refuse, new or accept" in _refused(
        ["sweep.on_drift=no"], command, tmp_path
    )
    assert "hydra.sweep.dir is where" in _refused([f"hydra.sweep.dir={tmp_path}/x"], command, tmp_path)
