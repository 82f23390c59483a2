"""The claims ledger as users run it: each claim's experiment, what it needs, more seeds, the page and the planner."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from jobs import CODE

from rlaif.errors import UserError
from rlaif.tracking.runs import RunRecord

CLAIMS = sorted(file.stem for file in (CODE / "experiments").glob("c[0-9][0-9]_*.yaml"))
HARMLESS = f"ledger.harmless={CODE / 'tests' / 'fixtures' / 'hh_harmless.jsonl'}"
LABELERS = ("ledger.small_labeler=org/small", "ledger.large_labeler=org/large")
NEEDS = {"c02": (HARMLESS,), "c08": LABELERS, "c11": LABELERS}
# Fewer seeds; fewer test pairs would leave none.
SMALL = {
    "c01": ("repeats=2",),
    "c02": ("repeats=1", "rm.test_fraction=0.4", "eval.num_prompts=4"),
    "c03": ("repeats=2",),
    "c04": ("repeats=1",),
    "c10": ("repeats=2", "rm.test_fraction=0.4"),
}


def _words(name: str) -> list[str]:
    return [f"experiments={name}", *NEEDS.get(name[:3], ()), *SMALL.get(name[:3], ())]


def test_there_are_twelve_claims_and_the_sweep_has_them_all() -> None:
    assert [name[:3] for name in CLAIMS] == [f"c{number:02}" for number in range(1, 13)]
    values = yaml.safe_load((CODE / "sweeps" / "ledger.yaml").read_text(encoding="utf-8"))
    assert [name.strip() for name in values["hydra"]["sweeper"]["params"]["experiments"].split(",")] == CLAIMS


def test_the_sweep_ends_in_one_page(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """The command itself, on the two claims that need models: undecided within seconds, and no other report."""
    words = ("experiments=c08_labeler_size,c11_position_bias", "profile=smoke", "tracking=none")
    done = command("sweeps=ledger", *words, f"paths.root={tmp_path}")
    assert done.returncode == 0, done.stderr
    page = tmp_path / "reports" / "ledger.html"
    assert done.stdout.count(f"ledger: {page}") == done.stdout.count("Undecided: needs a small labeler") == 2
    text = page.read_text(encoding="utf-8")
    assert "2 claims: 0 supported, 0 contradicted, 2 undecided." in text
    assert "python train.py experiments=c11_position_bias profile=smoke<" in text
    assert not list(tmp_path.glob("reports/sweep-*"))


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_is_measured(name: str, run: Callable[..., RunRecord], pipeline: RunRecord) -> None:
    record = run(*_words(name))
    (row,) = record.table("claim")
    assert record.summary["claim/id"] == row["id"] == f"C{int(name[1:3])}"
    assert record.summary["claim/verdict"] == row["verdict"] in ("supported", "contradicted", "undecided")
    assert row["ci_low"] <= row["effect"] <= row["ci_high"] and row["detectable"] > 0 and row["n"] > 1
    assert row["seeds"] == len(record.table("arm_runs")) / len(record.table("arms"))
    ledger = (record.root / "reports" / "ledger.md").read_text(encoding="utf-8")
    assert f"| {row['id']} {row['title']} |" in ledger and row["measured"] in ledger
    page = (record.root / "reports" / f"compare-{record.id}.html").read_text(encoding="utf-8")
    assert "The claim" in page


@pytest.mark.parametrize("name", [name for name in CLAIMS if name[:3] in NEEDS])
def test_a_claim_without_its_models_or_data_is_undecided_at_once(
    name: str, run: Callable[..., RunRecord | None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run(f"experiments={name}", root=tmp_path)
    assert record is not None and record.lineage == () and not (tmp_path / "artifacts").exists()
    assert record.summary["claim/verdict"] == "undecided"
    key = NEEDS[name[:3]][0].partition("=")[0]
    assert f"({key})" in str(record.summary["claim/sentence"])
    assert f"({key})" in capsys.readouterr().out.replace("\n", "")
    assert run(f"experiments={name}", "plan=true", root=tmp_path) is None
    assert "needs a" in capsys.readouterr().out


def test_one_word_adds_seeds_and_runs_only_what_is_new(run: Callable[..., RunRecord]) -> None:
    words = ("experiments=c10_saturation", "rm.test_fraction=0.4", "rm.lr=0.0003")
    first, more = run(*words, "repeats=2"), run(*words, "repeats=3")
    built = [row for row in more.lineage if not row.reused]
    assert {row.kind for row in built} == {"rm"} and len(built) == 4  # one per arm, for the new seed
    assert {row["run"] for row in more.table("arm_runs")} == {f"seeds.rm={seed}" for seed in range(3)}
    old = {(row["arm"], row["run"]): row["rm/gold_accuracy"] for row in first.table("arm_runs")}
    new = {(row["arm"], row["run"]): row["rm/gold_accuracy"] for row in more.table("arm_runs")}
    assert old.items() <= new.items()
    with pytest.raises(UserError, match="repeats=2 has no meaning, since the experiment repeats nothing"):
        run("experiments=c05_cot", "repeats=2")


def test_the_planner_goes_by_finished_runs(
    run: Callable[..., RunRecord | None],
    pipeline: RunRecord,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(pipeline.path, tmp_path / "runs" / "pipeline" / pipeline.path.name)
    (tmp_path / "cache").symlink_to(pipeline.root / "cache")
    plan = ("stage=doctor", "doctor.injection_pairs=0", "labeler=scripted", "planner.effect=0.1")
    run(*plan, root=tmp_path)
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "an arm's own distance from chance of 10.0 points" in text
    assert "3 seeds: not known" in text and "1 seed (nothing is said about other seeds):" in text
    with pytest.raises(UserError, match="planner failed"):
        run(*plan, "planner.metric=eval/rouge_l_gain", root=tmp_path)
    assert "no finished run" in capsys.readouterr().out
    with pytest.raises(UserError, match="planner failed"):
        run(*plan, "planner.seeds=[0]", root=tmp_path)
    assert "planner.seeds=[0] is not a list of numbers of seeds" in " ".join(
        capsys.readouterr().out.replace("│", " ").split()
    )


@pytest.mark.parametrize(
    "words, message",
    [
        (["claim.effect.metric=label/algnment"], "claim.effect.metric=label/algnment is not a metric"),
        (["+claim.effect.weights={bass: -1}"], "claim.effect: bass is not an arm"),
        (["claim.relation=bigger"], "claim.relation=bigger is not known"),
        (
            ["+claim.needs={ledger.big_labeler: a model}"],
            "claim.needs: ledger.big_labeler is not a configuration key",
        ),
        (["claim.smallest=-1"], "claim.smallest=-1 is out of range"),
        (
            ["~claim.effect.weights", "~claim.effect.metric", "+claim.effect.meeting=[cot,base]"],
            "compare: all",
        ),
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused(
    words: list[str], message: str, run: Callable[..., RunRecord]
) -> None:
    with pytest.raises(UserError, match=message):
        run("experiments=c05_cot", *words)
