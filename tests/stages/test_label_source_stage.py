"""Label sources in stage=rm: what is trained on, what is held out, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import get_args

import pytest
import torch
from jobs import job_context

from rlaif.errors import UserError
from rlaif.io import read_jsonl, stable_uniform
from rlaif.options.training import Labels
from rlaif.stages.common.preferences.data import label_source
from rlaif.stages.common.preferences.labels import for_loss
from rlaif.stages.common.rows import encode_pairs
from rlaif.stages.graph import Graph
from rlaif.stages.registry import STAGES
from rlaif.stages.rm.data import reward_data
from rlaif.tracking.glossary import unknown

ROOT = Path(__file__).resolve().parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "hh_harmless.jsonl"
# A rule that is seldom right on this fixture and never sure: its labels cannot be taken for gold ones.
LABELER = ["labeler=scripted", "labeler.scripted.rule=shorter"]
WORDS = ["stage=rm", "task=harmless", f"task.path={FIXTURE}", "rm.batch_size=4", *LABELER]


@pytest.fixture(scope="module")
def prepared(warm_root):
    """`prepared(*overrides)`: the context, pairs and AI labels (p_a by id) of a job, and its reward data."""

    def prepare(*overrides: str):
        place = ["profile=smoke", "tracking=none", f"paths.root={warm_root}"]
        words = [*place, *WORDS, "rm.bootstrap=false", *overrides]
        ctx = job_context(words)
        graph = Graph(ctx, STAGES)
        graph.check("rm")
        parents = {kind: graph.get(kind) for kind in STAGES["rm"].parents(ctx)}
        sample = graph.get("sample").path / "pairs.jsonl"
        asked = graph.get("label").path / "preferences.jsonl"
        ai = {row["pair_id"]: row["p_a"] for row in read_jsonl(asked)}
        return ctx, list(read_jsonl(sample)), ai, reward_data(ctx, parents)

    return prepare


def part_of(pair: dict) -> str:
    place = stable_uniform("rm-split", pair["prompt_id"])
    return "test" if place < 0.2 else "validation" if place < 0.3 else "train"


def own(name: str, pair: dict, ai: dict[str, float], seed: int = 0) -> float:
    gold = stable_uniform("rm-mix", seed, pair["id"]) < 0.5 if name in ("mixed", "ai_then_gold") else False
    return pair["gold"] if gold or name == "gold" else ai[pair["id"]]


@pytest.mark.parametrize("name", get_args(Labels))
def test_rows_carry_the_labels_of_their_source(name, prepared) -> None:
    """Every row against the files: the right label on the right texts, in the right phase and part."""
    ctx, pairs, ai, data = prepared(f"rm.labels={name}")
    parts = {part: [p for p in pairs if part_of(p) == part] for part in ("train", "validation", "test")}
    expected = [own(name, p, ai) for p in parts["train"]]
    rows = [row for phase in data.phases for row in phase]
    order = range(len(rows))
    if name == "ai_then_gold":
        order = sorted(order, key=lambda i: expected[i] in (0, 1))
        assert [len(phase) for phase in data.phases] == [
            sum(p not in (0, 1) for p in expected),
            sum(p in (0, 1) for p in expected),
        ]
    labels = [expected[i] for i in order]
    if name == "shuffled":
        assert sorted(row.p_a for row in rows) == sorted(labels)
        assert [row.p_a for row in rows] != labels
    else:
        assert [row.p_a for row in rows] == labels
    assert len(data.phases) == (2 if name == "ai_then_gold" else 1) and {row.weight for row in rows} == {1.0}
    texts = encode_pairs(ctx, [p for p in ctx.task.pairs if p.id in ai], "pairs")
    found = {p.id: text for p, text in zip((p for p in ctx.task.pairs if p.id in ai), texts, strict=True)}
    for i, row in zip(order, rows, strict=True):
        same = found[parts["train"][i]["id"]]
        assert (
            torch.equal(row.a, same.a) and torch.equal(row.b, same.b) and torch.equal(row.prompt, same.prompt)
        )
    for part, held in (("validation", data.validation), ("test", data.test)):
        clean = "ai" if name == "shuffled" else name
        assert [one.p_a for one in held] == [own(clean, p, ai) for p in parts[part]] != []
        assert [one.pair.id for one in held] == [p["id"] for p in parts[part]]


def test_what_is_held_out_moves_with_nothing(prepared) -> None:
    """Noise, n, the filter and shuffling touch the training rows alone; rounding and weights are the loss's."""
    *_, ai, plain = prepared()
    *_, spoilt = prepared("rm.labels=shuffled", "rm.label_noise=0.5", "rm.n=9", "rm.min_confidence=0.01")
    for before, after in ((plain.validation, spoilt.validation), (plain.test, spoilt.test)):
        assert [(x.pair.id, x.p_a) for x in before] == [(x.pair.id, x.p_a) for x in after]
    assert spoilt.counts["rm/train_pairs"] + spoilt.counts["rm/dropped_pairs"] == 9
    ctx, *_, hard = prepared("rm.hard_labels=true", "rm.confidence_weight=1")
    for x in (*hard.validation, *hard.test):
        seen = for_loss(x, label_source(ctx))
        assert x.p_a == ai[x.pair.id] and seen.p_a == float(x.p_a > 0.5)
        assert seen.weight == pytest.approx(2 * abs(x.p_a - 0.5))
    assert {row.p_a for row in hard.phases[0]} == {0.0, 1.0}


@pytest.mark.parametrize("name", get_args(Labels))
def test_each_source_trains_a_reward_model(name, run) -> None:
    record = run(*WORDS, f"rm.labels={name}")
    kinds = {row.kind for row in record.lineage}
    assert kinds == ({"rm", "sample"} if name == "gold" else {"rm", "sample", "label"})
    summary, rows = record.summary, [r for r in record.table("items") if r.get("rm/accuracy") is not None]
    assert record.state == "finished" and unknown(summary) == []
    assert summary["rm/train_pairs"] > 9 and summary["rm/dropped_pairs"] == summary["rm/flipped_pairs"] == 0
    assert fmean(row["rm/accuracy"] for row in rows) == pytest.approx(summary["rm/accuracy"])
    assert fmean(row["rm/gold_accuracy"] for row in rows) == pytest.approx(summary["rm/gold_accuracy"])
    assert all((row["p_a"] == row["gold"]) == (row["p_a"] in (0, 1)) for row in rows)
    assert all(row["p_a"] == row["gold"] for row in rows) == (name == "gold")


def test_gold_labels_ask_no_labeler(run, tmp_path) -> None:
    """Neither a call, nor another reward model for another labeler, nor a bound on what is not used."""
    words = [*WORDS, "rm.labels=gold"]
    first = run(*words, root=tmp_path)
    again = run(*words, "labeler=base", "labeler.min_alignment=0.999", root=tmp_path)
    assert not list(tmp_path.glob("labels.sqlite*")) and not list((tmp_path / "artifacts").glob("label-*"))
    assert [row.digest for row in first.lineage] == [row.digest for row in again.lineage]
    assert all(row.reused for row in again.lineage)
    assert not any(name.startswith("label/") for name in again.summary)


def test_the_whole_path_and_a_comparison_stand_on_gold_labels(run) -> None:
    record = run(*WORDS, "stage=eval", "rm.labels=gold", "judge=scripted", "judge.scripted.rule=shorter")
    assert "label" not in {row.kind for row in record.lineage} and record.summary["eval/n"] >= 1
    arms = [f"+arms.{name}=['rm.labels={name}']" for name in ("gold", "ai")]
    both = run("experiments=labelers", *WORDS[1:], "~arms.likelihood", "~arms.base", *arms)
    assert both.summary["gold/rm/gold_accuracy"] == both.summary["gold/rm/accuracy"]
    assert "ai/label/alignment" in both.summary and "gold/label/alignment" not in both.summary


def test_counts_and_a_warning_of_too_few_are_recorded(run) -> None:
    record = run(*WORDS, "rm.n=500", "rm.label_noise=0.4", "rm.min_confidence=0.01")
    plain = run(*WORDS)
    rows = plain.summary["rm/train_pairs"]
    summary = record.summary
    assert summary["rm/train_pairs"] + summary["rm/dropped_pairs"] == rows
    assert 0 < summary["rm/flipped_pairs"] < summary["rm/train_pairs"]
    (said,) = [alert["text"] for alert in record.alerts if alert["title"].startswith("fewer labels")]
    assert f"rm.n=500, but there are {rows} labelled training pairs" in said
    assert not [alert for alert in plain.alerts if alert["title"].startswith("fewer labels")]


@pytest.mark.parametrize("name", ["gold", "mixed", "ai_then_gold"])
def test_gold_labels_that_are_not_there(name, run, warm_root, tmp_path) -> None:
    """Pairs of the policy's own responses, and a file without labels."""
    before = {folder.name for folder in (warm_root / "artifacts").glob("*-*")}
    with pytest.raises(UserError) as caught:
        run("stage=rm", f"rm.labels={name}", "people.simulated=never")
    said = str(caught.value)
    assert f"rm.labels={name} trains on gold labels, but pairs sampled from the policy have none" in said
    assert "write rm.labels=ai, people.simulated=always" in said and "harmless" in said and "custom" in said
    rows = [{"prompt": f"Say {i}.", "response_a": f"{i}!", "response_b": f"{i}?"} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["task=custom", f"task.path={tmp_path / 'rows.jsonl'}", "sft.enabled=false"]
    with pytest.raises(UserError, match="but the pairs of task custom have none"):
        run("stage=rm", f"rm.labels={name}", *words)
    assert {folder.name for folder in (warm_root / "artifacts").glob("*-*")} == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["rm.labels=human"],
            "rm.labels=human is not known: write ai, gold, mixed, ai_then_gold or shuffled",
        ),
        (["rm.n=0"], "rm.n=0 is out of range: write a whole number from 1, or null"),
        (["rm.n=many"], "rm.n=many is not a whole number"),
        (["rm.label_noise=2"], "rm.label_noise=2 is out of range: write a number from 0 to 1"),
        (["rm.min_confidence=0.7"], "rm.min_confidence=0.7 is out of range: write a number from 0 to 0.5"),
        (["rm.confidence_weight=-1"], "rm.confidence_weight=-1 is out of range: write a number from 0"),
        (["rm.label_temperature=0"], "rm.label_temperature=0 is out of range: write a number above 0"),
        (
            ["rm.label_smoothing=0.5"],
            "rm.label_smoothing=0.5 is out of range: write a number from 0 and below 0.5",
        ),
        (["rm.margin=-1"], "rm.margin=-1 is out of range: write a number from 0"),
        (["rm.centering=-0.1"], "rm.centering=-0.1 is out of range: write a number from 0"),
    ],
)
def test_options_are_refused_before_anything_is_built(words, said, run, tmp_path) -> None:
    with pytest.raises(UserError, match=said) as caught:
        run(*WORDS, *words, root=tmp_path)
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("artifacts/*-*"))


def test_a_filter_that_leaves_nothing(run) -> None:
    with pytest.raises(UserError, match="write a lower one"):
        run(*WORDS, "rm.min_confidence=0.5")
