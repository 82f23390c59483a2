"""kill -9 in the middle, then the same command again: nothing is lost, repeated or different."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import torch
from processes import Command
from safetensors.torch import load_file

from rlaif.io import sha256_file
from rlaif.tracking.runs import RunRecord, find_runs

PATIENCE = 120.0


def _kill_when(process: Command, reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "the run never came far enough"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def _artifact(root: Path, record: RunRecord) -> Path:
    row = record.lineage[0]
    return root / "artifacts" / row.name


def _newest(root: Path, stage: str) -> RunRecord:
    return find_runs(root, stage=stage)[-1]


def test_a_killed_ppo_run_ends_bit_identical(pipeline, run, copied_root, start_process, command) -> None:
    root = copied_root(["sft", "sample", "label", "rm"])
    options = ["stage=rl", "rl.num_epochs=6", "rl.lr=0.003"]
    whole = run(*options)
    words = [*options, "profile=smoke", "tracking=none", f"paths.root={root}"]
    process = start_process(*words)
    _kill_when(process, lambda: bool(list(root.glob("artifacts/.partial-rl-*/work/checkpoints/last.ckpt"))))
    partial = next(root.glob("artifacts/.partial-rl-*"))
    reached = torch.load(partial / "work" / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] + 1
    assert not list(root.glob("artifacts/rl-*")) and find_runs(root, stage="rl") == []
    assert 1 <= reached < whole.summary["rl/iterations"] == 12

    ended = command(*words)
    assert ended.returncode == 0, ended.stderr
    assert "continuing from the last whole epoch" in ended.stderr
    resumed = _newest(root, "rl")
    assert [row.reused for row in resumed.lineage] == [False, True, True, True, True]
    folders = _artifact(Path(whole.path).parents[2], whole), _artifact(root, resumed)
    assert folders[0].name == folders[1].name
    tops = [folder / "top.safetensors" for folder in folders]
    assert sha256_file(tops[0]) == sha256_file(tops[1])
    # The comparison can fail: the policy did move away from where it started.
    start = load_file(next((root / "artifacts").glob("sft-*")) / "top.safetensors")
    assert any(not torch.equal(value, start[name]) for name, value in load_file(tops[0]).items())
    clock = ("seconds", "samples_per_s")
    histories = [
        [{k: v for k, v in row.items() if not any(word in k for word in clock)} for row in _history(folder)]
        for folder in folders
    ]
    assert histories[0] == histories[1] and len(histories[0]) == 12
    manifest = json.loads((folders[1] / "manifest.json").read_text())
    assert manifest["resumed"] is True and not (folders[1] / "work").exists()
    assert not list(root.glob("artifacts/.partial-*"))


def test_a_killed_ensemble_ends_bit_identical(pipeline, run, copied_root, start_process, command) -> None:
    """Two reward models in micro-batches, killed in the middle of an epoch and continued."""
    root = copied_root(["sft", "sample", "label"])
    epochs = 12
    options = [
        "stage=rm",
        "rm.ensemble=2",
        "rm.micro_batch_size=3",
        f"rm.num_epochs={epochs}",
        "rm.patience=10",
    ]
    whole = run(*options)
    words = [*options, "profile=smoke", "tracking=none", f"paths.root={root}"]
    process = start_process(*words)
    checkpoints = "artifacts/.partial-rm-*/work/checkpoints"
    _kill_when(process, lambda: bool(list(root.glob(f"{checkpoints}/previous.ckpt"))))
    newest = next(root.glob(f"{checkpoints}/last.ckpt"))
    assert 1 <= torch.load(newest, weights_only=True)["epoch"] < whole.summary["rm/epochs"] - 1

    ended = command(*words)
    assert ended.returncode == 0, ended.stderr
    assert "continuing from the last whole epoch" in ended.stderr
    resumed = _newest(root, "rm")
    folders = _artifact(Path(whole.path).parents[2], whole), _artifact(root, resumed)
    assert folders[0].name == folders[1].name
    for name in ("top.safetensors", "normalization.json", "scores.jsonl"):
        assert sha256_file(folders[0] / name) == sha256_file(folders[1] / name), name
    for name in ("rm/epochs", "rm/best_val_loss", "rm/accuracy"):
        assert resumed.summary[name] == whole.summary[name], name
    assert "rm/pairs_per_s" in whole.summary and "rm/pairs_per_s" not in resumed.summary
    # The comparison can fail: the members differ from each other and from where they started.
    weights = load_file(folders[0] / "top.safetensors")
    start = load_file(next((root / "artifacts").glob("sft-*")) / "top.safetensors")
    name = next(iter(start))
    assert not torch.equal(weights[name], weights[f"member1.{name}"])
    assert not torch.equal(weights[name], start[name])
    assert {"score.weight", "member1.score.weight"} <= weights.keys()


def _history(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def _answers(root: Path) -> int:
    file = root / "labels.sqlite"
    if not file.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
            return connection.execute("SELECT count(*) FROM answers").fetchone()[0]
    except sqlite3.OperationalError:  # the file is there, its tables are not yet
        return 0


def test_a_killed_label_run_loses_and_repeats_nothing(
    pipeline, run, copied_root, start_process, command
) -> None:
    root = copied_root(["sft", "sample"])
    options = ["stage=label", "labeler=cot", "labeler.batch_size=4", "labeler.max_rationale_tokens=3"]
    # People's answers are stored too, but are not counted as the labeler's.
    options.append("people.simulated=never")
    other = root / "uninterrupted"
    other.mkdir()
    for name in ("artifacts", "cache"):
        shutil.copytree(root / name, other / name, symlinks=True)
    whole = run(*options, root=other)
    assert whole.summary["label/reused"] == 0
    words = [*options, "profile=smoke", "tracking=none", f"paths.root={root}"]
    process = start_process(*words)
    _kill_when(process, lambda: _answers(root) >= 8)
    kept = _answers(root)
    assert not list(root.glob("artifacts/label-*"))

    ended = command(*words)
    assert ended.returncode == 0, ended.stderr
    resumed = _newest(root, "label")
    assert resumed.lineage[0].digest == whole.lineage[0].digest
    folders = _artifact(other, whole), _artifact(root, resumed)
    for name in ("preferences.jsonl", "gold_preferences.jsonl"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes() != b""
    assert resumed.summary["label/reused"] == kept > 0
    assert _answers(root) == _answers(other) > kept
    for name in ("label/alignment", "label/ece", "label/same_position_rate", "label/choice_mass"):
        assert resumed.summary[name] == whole.summary[name], name
