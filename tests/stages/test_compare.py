"""Experiments: arms share what they have in common, and their policies meet under one judge."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest

from rlaif.io import read_json
from rlaif.tracking.glossary import unknown

CODE = Path(__file__).resolve().parents[2]


def _digests(record, kind: str) -> set[str]:
    return {row["digest"] for row in record.lineage if row["kind"] == kind}


@pytest.mark.parametrize("name", sorted(f.stem for f in (CODE / "experiments").glob("*.yaml")))
def test_every_experiment_runs(name, run, pipeline, warm_root, capsys) -> None:
    record = run(f"experiments={name}")
    assert record.state == "finished" and record.stage == "compare"
    arms = {row["arm"]: row for row in record.table("arms")}
    assert set(arms) == set(record.config["arms"]) and len(arms) >= 2
    metric = "rm/accuracy" if record.config["until"] == "rm" else "eval/win_rate"
    for arm, row in arms.items():
        assert record.summary[f"{arm}/{metric}"] == row[metric]
    text = capsys.readouterr().out
    assert "Arms" in text and all(arm in text for arm in arms)
    page = warm_root / "reports" / f"compare-{record.id}.html"
    assert all(arm in page.read_text(encoding="utf-8") for arm in arms)


def test_two_labelers_share_policy_and_pairs(run, pipeline) -> None:
    record = run("experiments=labelers")
    assert len(_digests(record, "sft")) == len(_digests(record, "sample")) == 1
    assert len(_digests(record, "label")) == len(_digests(record, "rm")) == 2
    mine = {(row["kind"], row["digest"]) for row in pipeline.lineage}
    shared = {(row["kind"], row["digest"]) for row in record.lineage} & mine
    assert {kind for kind, _ in shared} == {"sft", "sample", "label", "rm"}, "the arm of the default labeler"


def test_policies_meet_under_the_experiments_judge(run, warm_root, pipeline, capsys) -> None:
    """Not under an arm's own labeler, which would favour it."""
    # The reward models must differ by more than their common start, or the tiny policies end up equal.
    learn = ["rm.lr=0.03", "rm.num_epochs=4", "rl.lr=0.03"]
    record = run("experiments=label_vs_length", "judge=scripted", "judge.scripted.rule=hash", *learn)
    (digest,) = _digests(record, "headtohead")
    manifest = read_json(warm_root / "artifacts" / f"headtohead-{digest}" / "manifest.json")
    judge = manifest["config"]["judge"]
    assert judge["backend"]["engine"] == "scripted" and manifest["config"]["name"] == "scripted"
    policies = [parent["digest"] for parent in manifest["parents"] if parent["kind"] == "ppo"]
    assert len(set(policies)) == 2 and set(policies) == _digests(record, "ppo")
    (verdict,) = record.table("verdicts")
    assert (verdict["first"], verdict["second"]) == ("likelihood", "longer")
    rows = record.table("samples_likelihood_vs_longer")
    value = {"win": 1.0, "tie": 0.5, "loss": 0.0}
    assert fmean(value[row["outcome"]] for row in rows) == pytest.approx(verdict["win_rate"])
    assert record.summary["likelihood_vs_longer/eval/win_rate"] == verdict["win_rate"]
    # This judge tells any two texts apart, so only equal responses tie.
    assert all(row["outcome"] == "tie" for row in rows if row["policy"] == row["baseline"])
    assert any(row["outcome"] != "tie" for row in rows if row["policy"] != row["baseline"])
    assert "Head to head" in capsys.readouterr().out
    assert unknown(name.split("/", 1)[1] for name in record.summary) == []


def test_a_second_call_reuses_all_and_clean_keeps_it(run, warm_root, pipeline) -> None:
    run("experiments=label_vs_length")
    again = run("experiments=label_vs_length")
    assert all(row["reused"] for row in again.lineage)
    assert {row["kind"] for row in again.lineage} >= {"headtohead", "eval", "ppo"}
    run("stage=clean")
    for row in again.lineage:
        assert (warm_root / "artifacts" / f"{row['kind']}-{row['digest']}").is_dir()


def test_the_command_line_reaches_every_arm_and_seeds_too(run, pipeline) -> None:
    """A seed belongs to the last stage; an arm's own value wins over the command line's."""
    first = run("experiments=labelers", "labeler.readout.temperature=2.0")
    second = run("experiments=labelers", "labeler.readout.temperature=2.0", "seed=3")
    assert _digests(first, "label") == _digests(second, "label")
    assert not _digests(first, "label") & _digests(run("experiments=labelers"), "label")
    assert len(_digests(first, "rm") | _digests(second, "rm")) == 4
    third = run("experiments=labelers", "+arms.again=['labeler=base']", "labeler=cot", "labeler.order=first")
    assert {row["arm"] for row in third.table("arms")} == {"likelihood", "base", "again"}
    assert len(_digests(third, "label")) == 2


def test_plan_of_an_experiment(run, capsys, pipeline) -> None:
    run("experiments=labelers")
    capsys.readouterr()
    assert run("experiments=labelers", "plan=true") is None
    text = capsys.readouterr().out
    assert "Plan of arm likelihood" in text and "Plan of arm base" in text and "build" not in text
