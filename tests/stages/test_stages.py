"""Every stage under profile=smoke: it runs, it writes its record, and a second call builds nothing."""

from __future__ import annotations

import itertools
import json
import re
import time
from pathlib import Path
from statistics import fmean

import pytest
import yaml
from jobs import logged, start_job
from wandb_files import wandb_records

from rlaif.io import read_jsonl
from rlaif.report.lineage import lineage_graph
from rlaif.tracking.glossary import describe, unknown
from rlaif.tracking.runs import find_runs

SMALLER = {
    "cot_fewshot": ["labeler.order=first", "labeler.max_rationale_tokens=2"],
    "self_consistency": ["labeler.order=first", "labeler.samples=2"],
}
CODE = Path(__file__).resolve().parents[2]
MEASURED = """
sft/val_loss sample/n label/alignment label/alignment_ci_low label/unparsed_rate label/pairs_per_s label/ece
rm/accuracy rm/accuracy_ci_low rm/ece rm/pairs_per_s rl/reward rl/kl rl/entropy rl/clip_fraction rl/ratio_first
rl/response_length rl/eos_rate rl/samples_per_s eval/win_rate eval/win_rate_ci_low eval/p_value eval/n eval/kl
eval/judge eval/rouge_l_policy eval/copy_rate_policy eval/length_policy
"""
KINDS = ("sft", "sample", "label", "rm", "rl", "eval")


def _artifact_times(root: Path) -> dict[str, int]:
    """Every file of every artifact with the time of its last change."""
    folder = root / "artifacts"
    files = [f for f in folder.glob("[!.]*/**/*") if f.is_file()]
    return {str(f.relative_to(folder)): f.stat().st_mtime_ns for f in files}


def test_the_pipeline_leaves_a_whole_record(pipeline, warm_root) -> None:
    assert pipeline.state == "finished" and pipeline.problems == ()
    assert pipeline.lineage[0].kind == "eval" and sorted(row.kind for row in pipeline.lineage) == sorted(
        KINDS
    )
    assert not any(row.reused for row in pipeline.lineage)
    summary = pipeline.summary
    for name in MEASURED.split():
        assert summary.get(name) is not None, name
    assert summary["label/n"] == summary["sample/n"] > 0 and summary["eval/n"] == 8
    assert abs(summary["rl/ratio_first"] - 1) <= 1e-5
    assert (warm_root / "reports" / f"pipeline-{pipeline.id}.html").stat().st_size > 20_000


def test_the_report_draws_what_the_pipelines_artifacts_were_built_from(pipeline, warm_root) -> None:
    graph = lineage_graph([pipeline], [pipeline])
    kinds = {node.digest: node.kind for node in graph.nodes}
    built_from = {node.kind: sorted(kinds[parent] for parent in node.parents) for node in graph.nodes}
    assert built_from == {
        "sft": [],
        "sample": ["sft"],
        "label": ["sample"],
        "rm": ["label", "sample", "sft"],
        "rl": ["rm", "sft"],
        "eval": ["rl", "rm", "sft"],
    }
    assert len(graph.edges) == 10
    depth = {node.kind: node.depth for node in graph.nodes}
    assert depth == {kind: place for place, kind in enumerate(KINDS)}
    page = (warm_root / "reports" / f"pipeline-{pipeline.id}.html").read_text()
    assert page.count('class="edge"') == 10


def test_every_metric_is_in_the_glossary(pipeline, run) -> None:
    """As every job of the tests asserts (`jobs.start_job`); here, that this sees what is logged."""
    both = run("stage=rm", "labeler=cot", "rl.value=separate")
    names = logged(pipeline) | logged(both)
    assert {"sft/loss", "rm/loss", "rl/loss", "label/same_position_rate", "label/choice_mass"} <= names
    assert {"eval/rouge_l_elsewhere", "label/alignment_worst"} <= names, "columns of tables"
    assert unknown([*names, "rl/invented"]) == ["rl/invented"]


def test_the_interval_of_a_metric_is_logged_with_it(pipeline) -> None:
    """Where the registry says that there is one; what only tables and comparisons have is left out."""
    measured = {name: describe(name) for name in pipeline.summary}
    with_interval = {name for name, metric in measured.items() if metric.interval is not None}
    assert {"rm/accuracy", "eval/win_rate", "label/alignment"} < with_interval
    lacking = {name for name in with_interval if f"{name}_ci_low" not in pipeline.summary}
    assert lacking <= {"eval/length_policy", "eval/length_baseline", "label/alignment_worst"}


def test_learning_rates_are_those_of_the_schedule(pipeline, run) -> None:
    sft = run("stage=sft", "sft.num_rows=48")  # six steps, of which the fifth is logged
    rates = {
        stage: [row[f"{stage}/lr"] for row in record.history if f"{stage}/lr" in row]
        for stage, record in (("sft", sft), ("rm", pipeline), ("rl", pipeline))
    }
    # Cosine from 2e-4: half of 1 + cos(4 pi / 6); half of 1 + cos(pi / 4) and of 1 + cos(3 pi / 4).
    assert rates["sft"] == pytest.approx([5e-5])
    assert rates["rm"] == pytest.approx([1e-4 * (1 + 0.5**0.5), 1e-4 * (1 - 0.5**0.5)])
    assert rates["rl"] == pytest.approx([1e-4, 5e-5])  # each iteration's first update, on a line to zero


@pytest.mark.parametrize("stage", KINDS)
def test_each_stage_reuses_what_the_pipeline_made(stage, pipeline, run, warm_root) -> None:
    """The summary carries the ancestors' metrics, reused or not."""
    before, started = _artifact_times(warm_root), time.perf_counter()
    again = run(f"stage={stage}")
    seconds = time.perf_counter() - started
    assert _artifact_times(warm_root) == before and before
    assert again.lineage[0].kind == stage and all(row.reused for row in again.lineage)
    own = {name for name in again.summary if not name.endswith("seconds")}
    assert own and all(again.summary[name] == pipeline.summary[name] for name in own)
    assert {row.kind + "/seconds" for row in again.lineage} <= set(again.summary)
    assert seconds < 10


def test_a_reused_policy_keeps_its_curves_and_tables(pipeline, run) -> None:
    again = run("stage=rl")
    curves = [row["rl/reward"] for row in again.history if "rl/reward" in row]
    assert curves == [row["rl/reward"] for row in pipeline.history if "rl/reward" in row] != []
    assert {row["id"] for row in again.table("items")} < {row["id"] for row in pipeline.table("items")}


def test_wandb_has_the_summary_of_a_reused_policy(pipeline, warm_root) -> None:
    """Its history is logged again, whose best value must not take the place of the summary's."""
    words = ["profile=smoke", "stage=rl", f"paths.root={warm_root}", "tracking.mode=offline"]
    again = start_job(words)
    updates = [
        (item.key or item.nested_key[0], item.value_json)
        for record in wandb_records(again.path)
        if record.HasField("summary")
        for item in record.summary.update
    ]
    assert json.loads(dict(updates)["rl/reward"]) == pytest.approx(pipeline.summary["rl/reward"])


@pytest.mark.parametrize("metric", ["label/alignment", "rm/accuracy", "eval/win_rate"])
def test_the_item_scores_average_to_the_metric(metric, pipeline, run) -> None:
    """What pairs the arms of an ablation item by item is what the summary reports, reused runs included."""
    for record in (pipeline, run("stage=eval")):
        scores = [row[metric] for row in record.table("items") if row.get(metric) is not None]
        assert len(scores) >= 4 and {*scores} <= {0, 0.5, 1}
        assert fmean(scores) == pytest.approx(record.summary[metric], abs=1e-12)
        assert all(row["id"] and row["prompt_id"] for row in record.table("items"))


def test_reliability_bins_give_the_calibration_error(pipeline) -> None:
    bins = pipeline.table("reliability")
    total = sum(row["n"] for row in bins)
    ece = sum(row["n"] * abs(row["mean_predicted"] - row["mean_observed"]) for row in bins) / total
    assert total == pipeline.summary["label/alignment_n"]
    assert ece == pytest.approx(pipeline.summary["label/ece"], abs=1e-12)


def test_labels_are_soft_and_rationales_are_kept(run, warm_root) -> None:
    record = run("stage=label", "labeler=cot")
    folder = warm_root / "artifacts" / f"label-{record.lineage[0].digest}"
    judgements = list(read_jsonl(folder / "judgements.jsonl"))
    assert len(judgements) == 2 * record.summary["label/n"]
    assert {row["order"] for row in judgements} == {"ab", "ba"} and any(row["text"] for row in judgements)
    rows = read_jsonl(folder / "preferences.jsonl")
    soft = [row["p_a"] for row in rows if row["provenance"] != "rule"]
    assert all(0 < p < 1 for p in soft) and len(set(soft)) > len(soft) / 2


@pytest.mark.parametrize("preset", ["detailed", "cot_fewshot", "self_consistency", "score", "scripted"])
def test_every_other_preset_labels_the_same_pairs(preset, pipeline, run) -> None:
    record = run("stage=label", f"labeler={preset}", *SMALLER.get(preset, []))
    parents = {row.kind: row.digest for row in record.lineage if row.kind != "label"}
    assert parents == {row.kind: row.digest for row in pipeline.lineage if row.kind in ("sft", "sample")}
    assert (
        record.summary["label/unparsed_rate"] == 0 and record.summary["label/alignment_constructed_n"] == 16
    )


# ledger: test_claims.py; searches, whose values are no list: test_search.py
SWEEPS = sorted(
    file
    for file in (CODE / "sweeps").glob("*.yaml")
    if file.stem != "ledger" and not file.stem.startswith("search_")
)


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_every_sweep_runs(file, run, pipeline, warm_root, capsys) -> None:
    """Its jobs one by one, as Hydra's sweeper would start them (the command itself: test_cli.py)."""
    params = yaml.safe_load(file.read_text())["hydra"]["sweeper"]["params"]
    choices = [[f"{key}={value}" for value in str(values).split(",")] for key, values in params.items()]
    jobs = list(itertools.product(*choices))
    records = [run(f"sweeps={file.stem}", *job, group=f"sweep-{file.stem}") for job in jobs]
    assert len(records) == len(jobs) >= 3 and {record.state for record in records} == {"finished"}
    for kind in ("sft", "sample"):
        assert len({row.digest for record in records for row in record.lineage if row.kind == kind}) == 1
    page = warm_root / "reports" / f"sweep-sweep-{file.stem}.html"
    assert f"sweep report: {page}" in capsys.readouterr().out and page.stat().st_size > 10_000


def test_seeds_belong_to_their_stage(run) -> None:
    """Two reward-model seeds share the labels; two label seeds share the pairs."""
    one, two = (run("stage=rm", f"seed={seed}") for seed in (1, 2))
    digests = [{row.kind: row.digest for row in record.lineage} for record in (one, two)]
    assert digests[0]["rm"] != digests[1]["rm"]
    assert all(digests[0][kind] == digests[1][kind] for kind in ("sft", "sample", "label"))
    labels = [
        {
            row.kind: row.digest
            for row in run("stage=label", "labeler=base", "labeler.order=random", f"seed={seed}").lineage
        }
        for seed in (1, 2)
    ]
    assert labels[0]["label"] != labels[1]["label"] and labels[0]["sample"] == labels[1]["sample"]


def test_force_builds_again_and_the_same(run, warm_root) -> None:
    first = run("stage=rm", "seed=1")
    folder = warm_root / "artifacts" / f"rm-{first.lineage[0].digest}"
    before = json.loads((folder / "manifest.json").read_text())
    again = run("stage=rm", "seed=1", "force=true")
    after = json.loads((folder / "manifest.json").read_text())
    assert [row.reused for row in again.lineage] == [False, True, True, True]
    assert after["created"] > before["created"]
    assert {n: f["sha256"] for n, f in after["files"].items()} == {
        n: f["sha256"] for n, f in before["files"].items()
    }


def test_plan_prints_and_builds_nothing(run, warm_root, capsys, pipeline) -> None:
    before, runs = _artifact_times(warm_root), len(find_runs(warm_root, state=None))
    assert run("plan=true") is None
    text = capsys.readouterr().out
    assert "reuse" in text and "build" not in text
    assert run("plan=true", "stage=rm", "rm.lr=0.5") is None
    lines = capsys.readouterr().out.splitlines()
    assert [word for line in lines for word in ("reuse", "build") if word in line] == ["reuse"] * 3 + [
        "build"
    ]
    assert _artifact_times(warm_root) == before and len(find_runs(warm_root, state=None)) == runs


def test_doctor_tells_what_there_is(run, capsys) -> None:
    assert run("stage=doctor") is None
    text = capsys.readouterr().out
    for word in ("machine", "device", "model", "task", "wandb", "choices", "gold pairs"):
        assert word in text
    assert "no login" in text or "login is present" in text


def test_report_compares_finished_runs(run, pipeline, warm_root, capsys) -> None:
    for labeler in ("likelihood", "scripted"):
        run("stage=label", f"labeler={labeler}", group="for-report")
    record = run("stage=report", "report.group=for-report")
    page = Path(record.summary["report/path"])
    text = page.read_text(encoding="utf-8")
    assert f"report: {page}" in capsys.readouterr().out
    assert "labeler=scripted" in text and "<svg" in text and "Tested on labeler alignment" in text
    outside = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)  # a library's licence names its home
    assert "http://" not in outside.replace("http://www.w3.org", "") and "<script src" not in text


def test_clean_keeps_what_runs_need(run, pipeline, warm_root, capsys) -> None:
    before = _artifact_times(warm_root)
    orphan = warm_root / "artifacts" / ".partial-rm-0000000000000000"
    orphan.mkdir()
    (orphan / "left.bin").write_bytes(b"x" * 100)
    run("stage=clean", "plan=true")
    assert orphan.exists() and "would free" in capsys.readouterr().out
    record = run("stage=clean")
    assert not orphan.exists() and record.summary["clean/folders"] >= 1
    assert _artifact_times(warm_root) == before


def test_export_loads_and_scores_the_same_elsewhere(run, warm_root, tmp_path) -> None:
    """The whole model in transformers' own classes, from the stage's command."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    run("stage=rm", f"export={tmp_path / 'rm'}")
    run("stage=rl", f"export={tmp_path / 'policy'}")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rm")
    reward = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    ids = torch.tensor([tokenizer.encode("Read a file. Answer")])
    with torch.no_grad():
        assert reward(ids).logits.shape == (1, 1) and reward.config.num_labels == 1
        logits = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")(ids).logits
    assert logits.shape[:2] == ids.shape and torch.isfinite(logits).all()
