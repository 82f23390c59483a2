"""Experiments: arms share what they have in common, and their policies meet under one judge."""

from __future__ import annotations

from html import unescape
from pathlib import Path
from statistics import fmean

import pytest

from rlaif.errors import UserError
from rlaif.io import read_json
from rlaif.study.arms import arm_overrides, combinations
from rlaif.tracking.glossary import unknown
from rlaif.tracking.runs import RunRecord

CODE = Path(__file__).resolve().parents[2]
HARMLESS = [f"task.path={CODE / 'tests' / 'fixtures' / 'hh_harmless.jsonl'}", "rm.test_fraction=0.4"]
SEEDS = "repeat={seeds.rm:[0,1]}"
# Fewer rungs and seeds, and files where the task has no embedded data.
SMALL = {
    "rm_label_count": [*HARMLESS, "grid={rm.n:[2,null]}", SEEDS],
    "rm_label_quality": [*HARMLESS, "grid={rm.label_noise:[0,0.4]}", SEEDS],
    "ai_feedback_recipes": ["repeat={seeds.rl:[0]}"],
    "rl_algorithms": ["grid={rl:[ppo,grpo],reward:[rm,direct]}"],
    # Labels of a random model are all close to 0.5: sharper ones, for the arm that filters.
    "rm_soft_vs_hard": ["labeler.readout.temperature=0.05", SEEDS],
}


def _digests(record, kind: str) -> set[str]:
    return {row.digest for row in record.lineage if row.kind == kind}


@pytest.fixture(scope="module")
def records() -> dict[str, RunRecord]:
    """The experiments that have run, by name."""
    return {}


CLAIMS = "c[0-9][0-9]_*"  # tests/stages/test_claims.py


@pytest.mark.parametrize(
    "name", sorted(f.stem for f in (CODE / "experiments").glob("*.yaml") if not f.match(f"{CLAIMS}.yaml"))
)
def test_every_experiment_runs(name, run, records, pipeline, warm_root, capsys) -> None:
    record = records[name] = run(f"experiments={name}", *SMALL.get(name, []))
    assert record.state == "finished" and record.stage == "compare"
    arms = {row["arm"]: row for row in record.table("arms")}
    assert set(arms) == set(arm_overrides(record.config["arms"], record.config["grid"])) and len(arms) >= 2
    metric = "rm/accuracy" if record.config["until"] == "rm" else "eval/win_rate"
    for arm, row in arms.items():
        assert record.summary[f"{arm}/{metric}"] == row[metric]
    repeats = combinations("repeat", record.config["repeat"])
    assert {row["seeds"] for row in arms.values()} == {len(repeats)}
    assert len(record.table("arm_runs")) == len(repeats) * len(arms)
    text = capsys.readouterr().out
    assert "Arms" in text and all(arm in text for arm in arms if len(arm) < 12)
    report = warm_root / "reports" / f"compare-{record.id}"
    assert all(arm in report.with_suffix(".html").read_text(encoding="utf-8") for arm in arms)
    assert all(arm in report.with_suffix(".md").read_text(encoding="utf-8") for arm in arms)
    if record.config["curve"]:
        assert {row["arm"] for row in record.table("curve")} == set(arms)
        assert "Curve" in text and {row["metric"] for row in record.table("curve")} == {
            *record.config["curve"]["y"]
        }
    assert unknown(name.split("/", 1)[1] for name in record.summary) == []


def test_a_grid_makes_arms_and_repeats_make_seeds(run, warm_root) -> None:
    """All that the arms share is built once, and each number is the mean over what its seeds gave."""
    learn = ["rm.lr=0.03", "rm.num_epochs=4"]
    record = run("experiments=rm_label_count", *HARMLESS, "grid={rm.n:[2,8]}", SEEDS, *learn)
    assert len(_digests(record, "sample")) == len(_digests(record, "label")) == 1
    assert len(_digests(record, "rm")) == 8
    runs = record.table("arm_runs")
    assert {row["run"] for row in runs} == {"seeds.rm=0", "seeds.rm=1"}
    for row in record.table("arms"):
        own = [r for r in runs if r["arm"] == row["arm"]]
        assert row["rm/gold_accuracy"] == pytest.approx(fmean(r["rm/gold_accuracy"] for r in own))
        assert row["rm/train_pairs"] == row["rm.n"]
        spread = max(r["rm/gold_accuracy"] for r in own) - min(r["rm/gold_accuracy"] for r in own)
        assert row["rm/gold_accuracy_ci_high"] - row["rm/gold_accuracy_ci_low"] >= spread
        assert row["arm"] == f"rm.labels={row['rm.labels']}, rm.n={row['rm.n']}"
    assert {row["rm/flipped_pairs"] for row in runs} == {0}
    tests = record.table("arm_tests")
    assert len(tests) == 6 and {(t["metric"], t["seeds"]) for t in tests} == {("rm/gold_accuracy", 2)}
    best = max(record.table("arms"), key=lambda row: row["rm/gold_accuracy"])
    assert best["best"] and best["p_holm"] is None and "a" in best["group"]
    points = {
        (row["line"], row["x"]): row["value"]
        for row in record.table("curve")
        if row["metric"] == tests[0]["metric"]
    }
    assert set(points) == {(line, n) for line in ("ai", "gold") for n in (2, 8)}
    assert points["gold", 8] == record.summary["rm.labels=gold, rm.n=8/rm/gold_accuracy"]


def test_noise_is_seen_in_the_labels_alone(run, records) -> None:
    name = "rm_label_quality"
    record = records[name] if name in records else run(f"experiments={name}", *SMALL[name])
    arms = {row["arm"]: row for row in record.table("arms")}
    clean, noisy = (arms[f"rm.labels=gold, rm.label_noise={noise}"] for noise in (0, 0.4))
    assert clean["rm/label_alignment"] == 1.0 and noisy["rm/label_alignment"] < 1.0
    flipped = noisy["rm/flipped_pairs"] / noisy["rm/train_pairs"]
    assert noisy["rm/label_alignment"] == pytest.approx(1 - flipped)
    assert {row["first"] for row in record.table("labeler_tests")} <= set(arms), "gold arms have no labeler"


def test_overrides_of_a_grid() -> None:
    grid = {"rm.n": [8, None], "rm.labels": ["ai"], "rm.hard_labels": [True]}
    assert list(arm_overrides({"plain": ["rm.n=4"]}, grid).items()) == [
        ("plain", ["rm.n=4"]),
        ("rm.n=8, rm.labels=ai, rm.hard_labels=true", ["rm.n=8", "rm.labels=ai", "rm.hard_labels=true"]),
        (
            "rm.n=null, rm.labels=ai, rm.hard_labels=true",
            ["rm.n=null", "rm.labels=ai", "rm.hard_labels=true"],
        ),
    ]
    assert arm_overrides({"x": []}, {}) == {"x": []} and combinations("repeat", {}) == [{}]
    quoted = arm_overrides({}, {"task.path": ["it's a, b.jsonl"]})
    assert list(quoted.values()) == [["task.path='it\\'s a, b.jsonl'"]]
    with pytest.raises(UserError, match="which grid makes too"):
        arm_overrides({"rm.n=2": []}, {"rm.n": [2]})


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["grid={rm.n:8}"], "grid: rm.n must be a list of values"),
        (["repeat={seeds.rm:[]}"], "repeat: seeds.rm must be a list"),
        (["+repeat={rm.n:[1,2]}"], "repeat: rm.n is not a seed"),
        (["seed=3"], "write 'repeat={seeds.rm:[3]}'"),
        (
            ["until=rl", "+compare=[['rm.labels=ai, rm.n=2','rm.labels=gold, rm.n=2']]"],
            "drop compare, or drop repeat",
        ),
        (["curve.x=rm.size"], "curve: rm.size is not a configuration key"),
        (["curve.y=[rm/size]"], "curve: rm/size is not a metric"),
        (["curve.y=rm.n"], "curve: rm.n is not a metric"),
        (["+curve.z=rm.n"], "write x and y"),
        (["test=[rm/size]"], "test: rm/size is not a metric"),
    ],
)
def test_an_experiment_that_cannot_be_run_says_so_at_once(words, sentence, run) -> None:
    small = [
        word for word in SMALL["rm_label_count"] if word.split("=")[0] not in {w.split("=")[0] for w in words}
    ]
    with pytest.raises(UserError) as told:
        run("experiments=rm_label_count", *small, *words)
    assert sentence in str(told.value)


def test_plan_counts_what_arms_and_seeds_share_once(run, capsys, tmp_path) -> None:
    words = ["experiments=rm_label_count", *HARMLESS, "grid={rm.n:[2,3]}", SEEDS]
    assert run(*words, "plan=true", root=tmp_path) is None
    text = capsys.readouterr().out
    rows = [line for line in text.splitlines() if "build" in line]
    kinds = [line.split("│")[1].strip() for line in rows]
    assert sorted(kinds) == ["label", *["rm"] * 8, "sample"] and "All 4 arms: about" in text


def test_two_labelers_share_policy_and_pairs(run, pipeline) -> None:
    record = run("experiments=labelers")
    assert len(_digests(record, "sft")) == len(_digests(record, "sample")) == 1
    assert len(_digests(record, "label")) == len(_digests(record, "rm")) == 2
    mine = {(row.kind, row.digest) for row in pipeline.lineage}
    shared = {(row.kind, row.digest) for row in record.lineage} & mine
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
    policies = [parent["digest"] for parent in manifest["parents"] if parent["kind"] == "rl"]
    assert len(set(policies)) == 2 and set(policies) == _digests(record, "rl")
    (verdict,) = record.table("verdicts")
    assert (verdict["first"], verdict["second"]) == ("likelihood", "longer")
    (control,) = record.table("controls")
    arm = next(row for row in record.table("arms") if row["arm"] == "longer")
    rose = arm["eval/length_policy"] > arm["eval/length_baseline"]
    assert control["control"] == "length" and (rose or control["state"] == "failed")
    assert record.summary["longer/control/verdict"] == control["sentence"]
    rows = record.table("samples_likelihood_vs_longer")
    value = {"win": 1.0, "tie": 0.5, "loss": 0.0}
    assert fmean(value[row["outcome"]] for row in rows) == pytest.approx(verdict["win_rate"])
    for short in ("win_rate", "win_rate_lc"):
        assert record.summary[f"likelihood_vs_longer/eval/{short}"] == verdict[short]
    # This judge tells any two texts apart, so only equal responses tie.
    assert all(row["outcome"] == "tie" for row in rows if row["policy"] == row["baseline"])
    assert any(row["outcome"] != "tie" for row in rows if row["policy"] != row["baseline"])
    assert "Head to head" in capsys.readouterr().out
    assert unknown(name.split("/", 1)[1] for name in record.summary) == []


def test_a_second_call_reuses_all_and_clean_keeps_it(run, warm_root, pipeline) -> None:
    run("experiments=label_vs_length")
    again = run("experiments=label_vs_length")
    assert all(row.reused for row in again.lineage)
    assert {row.kind for row in again.lineage} >= {"headtohead", "eval", "rl"}
    run("stage=clean")
    for row in again.lineage:
        assert (warm_root / "artifacts" / row.name).is_dir()


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


def test_a_diagnosis_holds_four_rewards_side_by_side(run, records, pipeline, warm_root, capsys) -> None:
    record = records["diagnose"] if "diagnose" in records else run("experiments=diagnose")
    rows = record.table("diagnosis")
    assert [row["part"] for row in rows] == ["SFT"] * 2 + ["RL"] * 2 + ["reward"] * 4
    assert {row["state"] for row in rows} <= {"yes", "no", "failed", "open"}
    arms = {row["arm"]: row for row in record.table("arms")}
    assert arms["oracle"]["eval/rouge_l_policy"] - arms["oracle"]["eval/rouge_l_baseline"] == pytest.approx(
        next(row["value"] for row in rows if row["measured"].startswith("oracle arm"))
    )
    assert len(_digests(record, "sft")) == len(_digests(record, "sample")) == 1
    assert len(_digests(record, "rl")) == len(_digests(record, "eval")) == 4
    said = record.summary["real/diagnosis/verdict"]
    page = unescape(
        (warm_root / "reports" / f"compare-{record.id}").with_suffix(".html").read_text(encoding="utf-8")
    )
    assert said in page[: page.index("<h2>")]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["+diagnose.other=real"], "name an arm for each of real, oracle, random, length"),
        (["diagnose.real=rm"], "diagnose: rm is not an arm: write one of real, oracle, random, length"),
        (["until=rl"], "write until: eval"),
        (["+controls.rm=length"], "controls: rm is not an arm: write one of real, oracle, random, length"),
        (["+controls.random=noise"], "controls: random=noise is not known: write one of length, random"),
    ],
)
def test_a_diagnosis_that_cannot_be_made_says_so_at_once(words, sentence, run) -> None:
    with pytest.raises(UserError) as told:
        run("experiments=diagnose", *words)
    assert sentence in str(told.value)
