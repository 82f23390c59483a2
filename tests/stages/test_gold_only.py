"""`task.gold_fraction=1.0`: every labelled pair only measures how good the labeler is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlaif.errors import UserError
from rlaif.io import read_jsonl
from rlaif.stages.common.sources import all_held_out, source

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
ALONE = ["task=custom", "task.gold_fraction=1.0", "labeler=scripted", "labeler.scripted.rule=longer"]
PAIRS = [
    {"prompt": "Say hello.", "response_a": "Hello to you!", "response_b": "No.", "label": 1},
    {"prompt": "Name a colour.", "response_a": "Blue.", "response_b": "I would not know.", "label": 1},
    {"prompt": "Count to two.", "response_a": "Two.", "response_b": "One, two.", "label": 0},
]

MANY = [{**row, "prompt": f"{row['prompt']} {i}"} for i in range(10) for row in PAIRS]


def written(folder, rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"task.path={path}"


@pytest.mark.parametrize("references", [False, True])
def test_the_gold_pairs_alone_are_labelled(references, run, tmp_path) -> None:
    rows = [{**row, **({"reference": "Yes."} if references else {})} for row in PAIRS]
    record = run("stage=label", *ALONE, written(tmp_path, rows), root=tmp_path / "root")
    assert record.state == "finished" and record.problems == ()
    assert [row.kind for row in record.lineage] == ["label", "sample"]
    found = record.summary
    assert (found["sample/n"], found["label/n"], found["label/alignment_n"]) == (0, 0, 3)
    assert found["label/alignment"] == pytest.approx(2 / 3)
    assert found["label/alignment_ci_low"] <= 2 / 3 <= found["label/alignment_ci_high"]
    (folder,) = (tmp_path / "root" / "artifacts").glob("sample-*")
    assert (folder / "pairs.jsonl").read_text() == ""
    assert len(record.table("items")) == 3
    (page,) = (tmp_path / "root" / "reports").glob("label-*.html")
    assert "66.7%" in page.read_text()


@pytest.mark.parametrize("seed", range(3))
def test_a_tiny_file_is_labelled_whichever_of_its_pairs_are_gold(seed, run, tmp_path) -> None:
    words = ("stage=label", "task=custom", "labeler=scripted", written(tmp_path, PAIRS), f"seeds.data={seed}")
    found = run(*words, "task.gold_fraction=0.5", root=tmp_path / "root").summary
    assert found["label/n"] == found["data/pairs"] == 3 - found["data/gold_pairs"]
    assert found["label/alignment_n"] == 3, "those that are trained on are labelled too"


@pytest.mark.parametrize(
    ("file", "pairs"),
    [("reward_bench.jsonl", 8), ("reward_bench_2.jsonl", 12), ("llmbar.json", 4), ("judgebench.jsonl", 5)],
)
def test_a_benchmark_is_one_command(file, pairs, run) -> None:
    words = ("stage=label", *ALONE, f"task.path={FIXTURES / file}")
    longer, shorter = (run(*words, f"labeler.scripted.rule={rule}").summary for rule in ("longer", "shorter"))
    assert (longer["label/n"], longer["data/gold_pairs"], longer["label/alignment_n"]) == (0, pairs, pairs)
    assert longer["label/alignment"] + shorter["label/alignment"] == pytest.approx(1.0)


def test_gold_pairs_of_which_none_fits_are_nothing_to_label(run, tmp_path) -> None:
    limits = ("task.too_long_prompts=drop", "task.max_prompt_tokens=4")
    with pytest.raises(
        UserError, match=r"no pairs to label: all 3 pairs were dropped \(3 whose prompt is too"
    ):
        run("stage=label", *ALONE, written(tmp_path, PAIRS), *limits, root=tmp_path / "root")


def test_pairs_to_train_on_keep_subset_and_reference(run, tmp_path) -> None:
    rows = [{**row, "subset": row["prompt"][:3], "reference": "Yes."} for row in PAIRS]
    words = ("stage=sample", "task=custom", "task.gold_fraction=0", written(tmp_path, rows))
    run(*words, root=tmp_path / "root")
    (file,) = (tmp_path / "root").glob("artifacts/sample-*/pairs.jsonl")
    assert {(row["prompt"], row["subset"], row["reference"]) for row in read_jsonl(file)} == {
        (row["prompt"], row["subset"], row["reference"]) for row in rows
    }


@pytest.mark.parametrize("stage", ["rm", "pipeline"])
@pytest.mark.parametrize("labels", ["ai", "gold"])
def test_nothing_is_left_to_train_on(stage, labels, run, tmp_path) -> None:
    words = (f"stage={stage}", f"rm.labels={labels}", *ALONE, written(tmp_path, MANY))
    with pytest.raises(UserError) as caught:
        run(*words, root=tmp_path / "root")
    message = str(caught.value)
    assert "task.gold_fraction=1.0 holds out all 30 labelled pairs" in message and "\n" not in message
    assert "write a smaller task.gold_fraction, such as 0.2, or sample.source=policy" in message
    assert not list((tmp_path / "root").glob("artifacts/*-*"))


def test_a_policys_pairs_can_still_be_labelled_beside_the_gold(run, tmp_path) -> None:
    words = (*ALONE, written(tmp_path, MANY), "sample.source=policy", "sft.enabled=false")
    found = run("stage=label", *words, root=tmp_path / "root").summary
    assert found["label/n"] == found["sample/n"] > 0 and found["label/alignment_n"] == 30


def test_constructed_gold_is_no_reason_to_sample_nothing(context) -> None:
    ctx = context("stage=label", "task=docs")
    assert ctx.task.gold_pairs and not ctx.task.pairs
    assert all_held_out(ctx) == 0 and source(ctx) == "policy"
