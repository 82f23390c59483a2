"""The artifact store: reuse, resume, locking between processes, damage, force, lineage, digests."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlaif.errors import UserError
from rlaif.io.lineage import ArtifactKey, LineageRow, read_lineage, write_lineage
from rlaif.store import Artifact, ArtifactSpec, ArtifactStore
from rlaif.store import manifest as manifest_module

SPEC = ArtifactSpec(kind="sft", config={"lr": 0.1, "epochs": 2}, parents=(), seed=0, version=1)

# A build in a process of its own: three steps, one file each, logging every step it really does.
WORKER = """
import sys, time
from pathlib import Path
from rlaif.store import ArtifactSpec, ArtifactStore

root, log, die_at, pause = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])

def build(folder):
    (folder / "work").mkdir(exist_ok=True)
    for step in range(3):
        done = folder / f"step{step}.txt"
        if done.exists():
            continue
        with log.open("a") as stream:
            stream.write(f"{step}\\n")
        if step == die_at:
            (folder / "work" / "state.txt").write_text("halfway")
            print("ready", flush=True)
            time.sleep(60)
        time.sleep(pause)
        done.write_text(str(step))
    return {"sft/loss": 1.5}

spec = ArtifactSpec(kind="sft", config={"lr": 0.1, "epochs": 2}, parents=(), seed=0, version=1)
print("built" if not ArtifactStore(root).get_or_build(spec, build).reused else "reused", flush=True)
"""


def start_worker(root: Path, log: Path, die_at: int = -1, pause: float = 0.0) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", WORKER, str(root), str(log), str(die_at), str(pause)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def builder(content: str = "weights", metrics: dict[str, Any] | None = None) -> Any:
    """A build that writes two files and counts its calls in `.calls`."""

    def build(folder: Path) -> dict[str, Any]:
        build.calls += 1  # type: ignore[attr-defined]
        (folder / "model").mkdir()
        (folder / "model" / "weights.bin").write_text(content)
        (folder / "notes.txt").write_text("n")
        return metrics if metrics is not None else {"sft/loss": 1.5}

    build.calls = 0  # type: ignore[attr-defined]
    return build


def forget_verified() -> None:
    """What a new process starts with."""
    manifest_module.VERIFIED.clear()


def test_second_request_reuses(tmp_path: Path) -> None:
    store, build = ArtifactStore(tmp_path / "a"), builder()
    assert store.find(SPEC) is None
    first = store.get_or_build(SPEC, build)
    second = store.get_or_build(SPEC, build)
    third = ArtifactStore(tmp_path / "a").find(SPEC)
    assert (first.reused, second.reused, build.calls) == (False, True, 1)
    assert third is not None and third.reused
    assert first.manifest == second.manifest == third.manifest
    assert second.path == tmp_path / "a" / f"sft-{SPEC.digest}"
    assert second.file("model/weights.bin").read_text() == "weights"
    with pytest.raises(KeyError, match=r"has no file 'weights\.bin'"):
        second.file("weights.bin")


def test_manifest_content(tmp_path: Path) -> None:
    parent = ArtifactStore(tmp_path).get_or_build(replace(SPEC, kind="data"), builder())
    spec = replace(SPEC, parents=(parent,), seed=3, version=7, data_hash="abc")
    metrics = {"sft/loss": 1.5, "sft/val_loss": float("nan"), "sft/device": "cpu"}
    artifact = ArtifactStore(tmp_path).get_or_build(spec, builder(metrics=metrics))
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    assert manifest == artifact.manifest
    assert (manifest["kind"], manifest["digest"], manifest["seed"]) == ("sft", spec.digest, 3)
    assert (manifest["version"], manifest["data_hash"]) == (7, "abc")
    assert manifest["config"] == {"lr": 0.1, "epochs": 2}
    assert manifest["parents"] == [{"kind": "data", "digest": parent.digest}]
    assert set(manifest["versions"]) == {"python", "rlaif", "torch", "transformers", "pytorch_lightning"}
    # From the shell: printf weights | sha256sum; printf n | sha256sum
    weights = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    notes = "1b16b1df538ba12dc3f97edbb85caa7050d46c148134290feba80f8236c83db9"
    assert manifest["files"] == {
        "model/weights.bin": {"sha256": weights, "bytes": 7},
        "notes.txt": {"sha256": notes, "bytes": 1},
    }
    assert artifact.bytes == 8
    assert artifact.metrics == {"sft/loss": 1.5, "sft/val_loss": None, "sft/device": "cpu"}
    assert "NaN" not in (artifact.path / "manifest.json").read_text()
    assert manifest["created"].endswith("+00:00") and 0 <= manifest["seconds"] < 5


def test_digest_covers_each_field_and_no_order() -> None:
    parent_a = Artifact("data", "1" * 16, Path("x"), {}, True)
    parent_b = Artifact("data", "2" * 16, Path("x"), {}, True)
    base = replace(SPEC, parents=(parent_a,))
    variants = [
        base,
        replace(base, kind="rm"),
        replace(base, config={"lr": 0.2, "epochs": 2}),
        replace(base, config={"lr": 0.1, "epochs": 2, "extra": None}),
        replace(base, config={"lr": 0.1, "epochs": "2"}),
        replace(base, parents=()),
        replace(base, parents=(parent_b,)),
        replace(base, parents=(parent_a, parent_b)),
        replace(base, parents=(replace(parent_a, kind="label"),)),
        replace(base, seed=1),
        replace(base, version=2),
        replace(base, data_hash="abc"),
    ]
    digests = [variant.digest for variant in variants]
    assert len(set(digests)) == len(variants)
    assert all(len(digest) == 16 and set(digest) <= set("0123456789abcdef") for digest in digests)
    assert replace(base, config={"epochs": 2, "lr": 0.1}).digest == base.digest
    # Where a parent lies, and whether it was reused, does not change its content.
    assert replace(base, parents=(replace(parent_a, path=Path("y"), reused=False),)).digest == base.digest


@pytest.mark.parametrize("kind", ["", "../up", "Sft", "a-b", "a/b"])
def test_kind_must_be_a_plain_name(kind: str) -> None:
    with pytest.raises(ValueError, match="artifact kind"):
        replace(SPEC, kind=kind)


def test_killed_build_resumes_where_it_was(tmp_path: Path) -> None:
    root, log = tmp_path / "a", tmp_path / "log"
    worker = start_worker(root, log, die_at=2)
    assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
    store = ArtifactStore(root)
    assert store.is_held(SPEC.name)
    holder = store.holders()[SPEC.name]
    assert holder["pid"] == worker.pid and holder["host"] and holder["since"].endswith("+00:00")
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    partial = root / f".partial-{SPEC.name}"
    assert not store.is_held(SPEC.name) and store.holders() == {}
    assert store.find(SPEC) is None and partial.is_dir()
    assert (partial / "work" / "state.txt").exists()
    output, errors = start_worker(root, log).communicate(timeout=30)
    assert output == "built\n", errors
    # Steps 0 and 1 were done once; step 2 was begun twice.
    assert log.read_text().split() == ["0", "1", "2", "2"]
    artifact = store.find(SPEC)
    assert artifact is not None and sorted(artifact.manifest["files"]) == [
        "step0.txt",
        "step1.txt",
        "step2.txt",
    ]
    assert artifact.manifest["resumed"] is True
    assert not partial.exists() and not (artifact.path / "work").exists()


def test_killed_between_manifest_and_rename_is_published_without_a_build(
    tmp_path: Path,
) -> None:
    store = ArtifactStore(tmp_path)
    artifact = store.get_or_build(SPEC, builder())
    os.replace(artifact.path, tmp_path / f".partial-{SPEC.name}")
    forget_verified()
    build = builder()
    again = store.get_or_build(SPEC, build)
    assert build.calls == 0 and again.manifest == artifact.manifest and again.path.is_dir()


def test_two_processes_build_once(tmp_path: Path) -> None:
    root, log = tmp_path / "a", tmp_path / "log"
    workers = [start_worker(root, log, pause=0.3) for _ in range(2)]
    results = [worker.communicate(timeout=30) for worker in workers]
    assert sorted(output for output, _ in results) == ["built\n", "reused\n"], results
    assert log.read_text().split() == ["0", "1", "2"]
    assert all(errors.count("waiting for artifact") <= 1 for _, errors in results)


def test_waiting_says_once_who_holds_the_lock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, begun, finish = ArtifactStore(tmp_path), threading.Event(), threading.Event()

    def slow(folder: Path) -> dict[str, float]:
        begun.set()
        assert finish.wait(10)
        return {"sft/loss": 1.0}

    first = threading.Thread(target=lambda: store.get_or_build(SPEC, slow))
    first.start()
    assert begun.wait(10)
    artifacts: list[Artifact] = []
    build = builder()
    second = threading.Thread(target=lambda: artifacts.append(store.get_or_build(SPEC, build)))
    with caplog.at_level(logging.WARNING):
        second.start()
        deadline = time.monotonic() + 10
        while "waiting" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        finish.set()
        first.join(10)
        second.join(10)
    assert build.calls == 0 and artifacts[0].reused
    lines = [record.getMessage() for record in caplog.records if "waiting" in record.getMessage()]
    assert len(lines) == 1 and f"process {os.getpid()} on" in lines[0] and SPEC.name in lines[0]


def flip_a_byte(artifact: Artifact) -> None:
    path = artifact.file("model/weights.bin")
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a failing disk would


def delete_a_file(artifact: Artifact) -> None:
    artifact.file("notes.txt").unlink()


def truncate_manifest(artifact: Artifact) -> None:
    path = artifact.path / "manifest.json"
    path.write_text(path.read_text()[:-30])


def delete_manifest(artifact: Artifact) -> None:
    (artifact.path / "manifest.json").unlink()


def edit_manifest(artifact: Artifact) -> None:
    path = artifact.path / "manifest.json"
    path.write_text(path.read_text().replace('"sft/loss": 1.5', '"sft/loss": 0.5'))


def foreign_manifest(artifact: Artifact) -> None:
    other = ArtifactStore(artifact.path.parent / "other").get_or_build(replace(SPEC, seed=9), builder())
    (artifact.path / "manifest.json").write_text((other.path / "manifest.json").read_text())


DAMAGES = [flip_a_byte, delete_a_file, truncate_manifest, delete_manifest, edit_manifest, foreign_manifest]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_set_aside_and_rebuilt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any
) -> None:
    store = ArtifactStore(tmp_path)
    damage(store.get_or_build(SPEC, builder()))
    forget_verified()
    assert store.find(SPEC) is None and "is damaged" in caplog.text
    assert (tmp_path / SPEC.name).is_dir()  # find only looks
    caplog.clear()
    build = builder()
    rebuilt = store.get_or_build(SPEC, build)
    assert (rebuilt.reused, build.calls) == (False, 1)
    assert rebuilt.file("model/weights.bin").read_text() == "weights"
    aside = list((tmp_path / ".damaged").iterdir())
    assert len(aside) == 1 and aside[0].name.startswith(f"{SPEC.name}-")
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1 and str(aside[0]) in messages[0] and "built again" in messages[0]
    assert store.get_or_build(SPEC, build).reused and build.calls == 1


def test_damage_in_the_same_process_is_seen(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    artifact = store.get_or_build(SPEC, builder())
    artifact.file("model/weights.bin").write_text("weighty")  # same size, new content
    assert store.find(SPEC) is None


def test_sums_are_computed_once_per_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ArtifactStore(tmp_path)
    store.get_or_build(SPEC, builder())
    forget_verified()
    hashed: list[str] = []
    real = manifest_module.sha256_file
    monkeypatch.setattr(manifest_module, "sha256_file", lambda path: hashed.append(path.name) or real(path))
    for _ in range(3):
        assert ArtifactStore(tmp_path).find(SPEC) is not None
    assert sorted(hashed) == ["notes.txt", "weights.bin"]


def test_a_build_that_refuses_at_once_leaves_nothing(tmp_path: Path) -> None:
    def refusing(folder: Path) -> dict[str, float]:
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        ArtifactStore(tmp_path).get_or_build(SPEC, refusing)
    assert [entry.name for entry in tmp_path.iterdir()] == [".locks"]


def test_exception_in_build_keeps_the_partial_and_frees_the_lock(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)

    def failing(folder: Path) -> dict[str, float]:
        (folder / "half.txt").write_text("h")
        raise UserError("no such column")

    with pytest.raises(UserError, match="no such column"):
        store.get_or_build(SPEC, failing)
    assert (tmp_path / f".partial-{SPEC.name}" / "half.txt").exists()
    assert not store.is_held(SPEC.name) and store.find(SPEC) is None and store.all() == []

    def resuming(folder: Path) -> dict[str, float]:
        assert (folder / "half.txt").read_text() == "h"
        return {}

    assert store.get_or_build(SPEC, resuming).manifest["resumed"] is True


def test_build_may_not_write_the_manifest_itself(tmp_path: Path) -> None:
    def build(folder: Path) -> dict[str, float]:
        (folder / "manifest.json").write_text("{}")
        return {}

    with pytest.raises(ValueError, match="reserved for the store"):
        ArtifactStore(tmp_path).get_or_build(SPEC, build)


def test_force_replaces_only_once_the_new_one_is_whole(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    old = store.get_or_build(SPEC, builder("old"))

    def failing(folder: Path) -> dict[str, float]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        store.get_or_build(SPEC, failing, force=True)
    kept = store.find(SPEC)
    assert kept is not None and kept.file("model/weights.bin").read_text() == "old"

    def checking(folder: Path) -> dict[str, Any]:
        assert old.file("model/weights.bin").read_text() == "old"  # readable while the new one is built
        return builder("new")(folder)

    new = store.get_or_build(SPEC, checking, force=True)
    assert not new.reused and new.path == old.path
    assert new.file("model/weights.bin").read_text() == "new"
    found = ArtifactStore(tmp_path).find(SPEC)
    assert found is not None and found.manifest == new.manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == [".locks", SPEC.name]


def test_force_of_two_waiting_jobs_builds_once(tmp_path: Path) -> None:
    store, begun, finish = ArtifactStore(tmp_path), threading.Event(), threading.Event()
    store.get_or_build(SPEC, builder("old"))

    def slow(folder: Path) -> dict[str, Any]:
        begun.set()
        assert finish.wait(10)
        return builder("new")(folder)

    first = threading.Thread(target=lambda: store.get_or_build(SPEC, slow, force=True))
    first.start()
    assert begun.wait(10)
    results: list[Artifact] = []
    build = builder("newer")
    second = threading.Thread(target=lambda: results.append(store.get_or_build(SPEC, build, force=True)))
    second.start()
    time.sleep(0.2)
    finish.set()
    first.join(10)
    second.join(10)
    assert build.calls == 0 and results[0].reused
    assert results[0].file("model/weights.bin").read_text() == "new"


def chain(store: ArtifactStore) -> tuple[Artifact, Artifact, Artifact, Artifact]:
    """data -> (sft, label) -> rm; `data` is reached by two ways."""
    data = store.get_or_build(ArtifactSpec("data", {}, (), 0, 1), builder(metrics={"data/n": 4}))
    sft = store.get_or_build(ArtifactSpec("sft", {}, (data,), 1, 1), builder(metrics={"sft/loss": 2.0}))
    label = store.get_or_build(ArtifactSpec("label", {}, (data,), 2, 1), builder(metrics={"label/n": 9}))
    rm = store.get_or_build(ArtifactSpec("rm", {}, (sft, label), 3, 1), builder(metrics={"rm/n": 7}))
    return data, sft, label, rm


def test_lineage_lists_every_ancestor_once(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    data, sft, label, rm = chain(store)
    rows = ArtifactStore(tmp_path).lineage(rm)
    assert [row.kind for row in rows] == ["rm", "sft", "label", "data"]
    assert [row.seed for row in rows] == [3, 1, 2, 0]
    assert rows[0].parents == (ArtifactKey("sft", sft.digest), ArtifactKey("label", label.digest))
    expected = LineageRow(
        "data",
        data.digest,
        seed=0,
        metrics={"data/n": 4},
        created=data.manifest["created"],
        seconds=data.manifest["seconds"],
        bytes=8,
        reused=True,
        config=data.manifest["config"],
        version=data.manifest["version"],
        data_hash=data.manifest["data_hash"],
    )
    assert rows[-1] == expected
    assert store.lineage(data) == [replace(expected, reused=False)], "this process has built it"
    write_lineage(tmp_path, rows)
    assert read_lineage(tmp_path / "lineage.json") == rows


def test_lineage_keeps_the_name_of_a_removed_ancestor(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    data, _, label, rm = chain(store)
    store.remove(label)
    rows = store.lineage(rm)
    assert [row.kind for row in rows] == ["rm", "sft", "label", "data"]
    assert rows[2] == LineageRow("label", label.digest)
    assert rows[3].digest == data.digest  # still found through sft


def test_all_and_remove(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "none")
    assert store.all() == []
    data, sft, label, rm = chain(store)
    assert store.all() == [replace(artifact, reused=True) for artifact in (data, sft, label, rm)]
    store.remove(sft)
    assert not sft.path.exists()
    assert [artifact.kind for artifact in store.all()] == ["data", "label", "rm"]
    assert sorted(path.name for path in store.root.iterdir() if path.name.startswith(".")) == [".locks"]
    with pytest.raises(ValueError, match="not a folder of the artifact store"):
        store.remove(replace(data, path=tmp_path))


def test_remove_refuses_what_is_being_built(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    artifact = store.get_or_build(SPEC, builder())
    with (
        store.lock(SPEC.name, parents=[]),
        pytest.raises(UserError, match=f"while process {os.getpid()} on "),
    ):
        store.remove(artifact)
    assert artifact.path.is_dir()
