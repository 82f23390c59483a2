"""What cleaning may remove, and what it must not."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlaif.errors import UserError
from rlaif.io.lineage import write_lineage
from rlaif.store import Artifact, ArtifactSpec, ArtifactStore, damaged_copies, stale_partials, unneeded


def make(store: ArtifactStore, kind: str, parents: tuple[Artifact, ...] = (), seed: int = 0) -> Artifact:
    def build(folder: Path) -> dict[str, float]:
        (folder / "f.txt").write_text(kind)
        return {}

    return store.get_or_build(ArtifactSpec(kind, {}, parents, seed, 1), build)


def kinds(artifacts: list[Artifact]) -> list[str]:
    return [artifact.kind for artifact in artifacts]


def test_unneeded_keeps_what_runs_and_their_ancestors_need(tmp_path: Path) -> None:
    store, runs = ArtifactStore(tmp_path / "artifacts"), tmp_path / "runs"
    data = make(store, "data")
    sft = make(store, "sft", (data,))
    label = make(store, "label", (data,))
    rm = make(store, "rm", (sft, label))
    assert kinds(unneeded(store, runs)) == ["data", "sft", "label", "rm"]
    run = runs / "label" / "20240101T000000Z-00000000"
    write_lineage(run, store.lineage(label))
    assert kinds(unneeded(store, runs)) == ["sft", "rm"]
    # A row alone is enough: ancestors are found through the manifests.
    write_lineage(run, store.lineage(rm)[:1])
    assert unneeded(store, runs) == []
    (run / "lineage.json").unlink()
    assert kinds(unneeded(store, runs)) == ["data", "sft", "label", "rm"]


def test_answers_stay_as_long_as_their_policy(tmp_path: Path) -> None:
    """No run names them. Those by a policy and a reward model need both."""
    store, runs = ArtifactStore(tmp_path / "artifacts"), tmp_path / "runs"
    sft, rm = make(store, "sft"), make(store, "rm")
    alone, chosen = make(store, "answers", (sft,), seed=1), make(store, "answers", (sft, rm), seed=2)
    run = runs / "eval" / "20240101T000000Z-00000000"
    write_lineage(run, store.lineage(sft))
    assert {one.name for one in unneeded(store, runs)} == {rm.name, chosen.name}
    write_lineage(run, store.lineage(rm))
    assert {one.name for one in unneeded(store, runs)} == {sft.name, alone.name, chosen.name}


def test_unneeded_keeps_the_parents_of_a_build_in_progress(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "artifacts")
    data = make(store, "data")
    sft = make(store, "sft", (data,))
    make(store, "label", (data,))
    seen: list[list[str]] = []

    def build(folder: Path) -> dict[str, float]:
        seen.append(kinds(unneeded(ArtifactStore(store.root), tmp_path / "runs")))
        return {}

    store.get_or_build(ArtifactSpec("rm", {}, (sft,), 0, 1), build)
    assert seen == [["label"]]


@pytest.mark.parametrize(
    "text",
    [
        '[{"kind": "sft"',
        '[{"kind": "sft"}]',
        "7",
        '["sft-ab"]',
        '[{"kind": "sft", "digest": "ab", "parents": ["data-cd"]}]',
        '[{"kind": "sft", "digest": "", "parents": []}]',
        '[{"kind": "sft", "digest": "ab", "parents": [], "seconds": "3"}]',
    ],
)
def test_a_broken_lineage_file_is_refused(tmp_path: Path, text: str) -> None:
    store = ArtifactStore(tmp_path / "artifacts")
    make(store, "data")
    file = tmp_path / "runs" / "rm" / "x" / "lineage.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(UserError, match="lineage.json cannot be read"):
        unneeded(store, tmp_path / "runs")


def test_stale_partials_are_those_without_a_live_holder(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    assert stale_partials(store) == [] and damaged_copies(store) == []

    def failing(folder: Path) -> dict[str, float]:
        assert stale_partials(ArtifactStore(tmp_path)) == []  # held by this build
        (folder / "half.txt").write_text("x")
        raise RuntimeError

    spec = ArtifactSpec("sft", {}, (), 0, 1)
    with pytest.raises(RuntimeError):
        store.get_or_build(spec, failing)
    trash = tmp_path / f".trash-{spec.name}-01234567"
    trash.mkdir()
    assert stale_partials(store) == [tmp_path / f".partial-{spec.name}", trash]
    with store.lock(spec.name, parents=[]):
        assert stale_partials(store) == []
        assert not store.remove_folder(trash)
    assert store.remove_folder(trash) and store.remove_folder(tmp_path / f".partial-{spec.name}")
    assert stale_partials(store) == []


def test_damaged_copies_are_listed(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    artifact = make(store, "sft")
    artifact.file("f.txt").write_text("other")
    make(store, "sft")
    assert [path.name.startswith(artifact.name) for path in damaged_copies(store)] == [True]
