"""The public tasks under profile=smoke, each from its fixture in the published schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlaif.errors import UserError
from rlaif.io import read_jsonl
from rlaif.tracking.glossary import unknown

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
SOURCES = {
    "tldr": f"task.path=[{FIXTURES / 'tldr_comparisons.jsonl'},{FIXTURES / 'tldr_posts.jsonl'}]",
    "helpful": f"task.path={FIXTURES / 'hh.jsonl'}",
    "harmless": f"task.path={FIXTURES / 'hh_harmless.jsonl'}",
}


@pytest.mark.parametrize("task", SOURCES)
def test_a_labeler_is_held_against_peoples_preferences(task, run, warm_root) -> None:
    record = run("stage=label", f"task={task}", SOURCES[task], "labeler=detailed")
    # sample.source=auto takes the data set's pairs, so that no policy is asked for any.
    assert [row.kind for row in record.lineage] == ["label", "sample"]
    summary = record.summary
    assert summary["label/n"] == summary["sample/n"] == 24 and summary["label/unparsed_rate"] == 0
    assert summary["label/alignment_n"] >= 3 and 0 <= summary["label/alignment"] <= 1
    assert (
        summary["label/alignment_ci_low"] <= summary["label/alignment"] <= summary["label/alignment_ci_high"]
    )
    assert unknown(summary) == []
    rows = record.table("items")
    assert {row["gold"] for row in rows} == {0, 1}
    folder = warm_root / "artifacts" / f"sample-{record.lineage[1].digest}"
    trained = list(read_jsonl(folder / "pairs.jsonl"))
    assert {row["origin"] for row in trained} == {"dataset"}
    # People's preferences count whether a reward model learns from the pair or it is held out.
    labelled = {row["id"] for row in trained if row["gold"] not in (None, 0.5)}
    assert labelled and labelled < {row["id"] for row in rows} and summary["label/gold_source"] == "human"
    assert summary["label/alignment_n"] == len(rows)


def test_alignment_is_what_the_file_says(run) -> None:
    """Alignment from end to end: how often people chose the longer reply, counted in the file itself."""
    words = ("stage=label", "task=helpful", SOURCES["helpful"], "task.gold_fraction=0.9", "labeler=scripted")
    rows = [json.loads(line) for line in (FIXTURES / "hh.jsonl").read_text().splitlines()]
    shares = {}
    for rule in ("longer", "shorter"):
        record = run(*words, f"labeler.scripted.rule={rule}")
        shares[rule] = record.summary["label/alignment"]
    assert shares["longer"] + shares["shorter"] == pytest.approx(1.0)
    longer = sum(len(row["chosen"]) > len(row["rejected"]) for row in rows) / len(rows)
    assert longer > 0.8 and abs(shares["longer"] - longer) < 0.1


@pytest.mark.parametrize("task", ["tldr", "harmless"])
def test_the_whole_path_runs(task, run) -> None:
    """`tldr` fine-tunes on human summaries; the dialogue tasks start from the base model, as in the paper."""
    record = run("stage=pipeline", f"task={task}", SOURCES[task])
    kinds = {row.kind for row in record.lineage}
    assert kinds == {"sample", "label", "rm", "rl", "eval"} | ({"sft"} if task == "tldr" else set())
    assert record.state == "finished" and record.problems == ()
    for name in ("rm/accuracy", "rl/reward", "eval/win_rate", "eval/kl"):
        assert record.summary[name] is not None
    assert record.summary["eval/n"] >= 1


def test_a_task_without_references_says_so_when_it_is_to_be_fine_tuned(run) -> None:
    with pytest.raises(UserError, match="no references to fine-tune on: write sft.enabled=false"):
        run("stage=rm", "task=helpful", SOURCES["helpful"], "sft.enabled=true")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task=harmless", "task.path=nowhere.jsonl.gz"], "task.path=nowhere.jsonl.gz does not exist"),
        (
            ["task=harmless"],
            "task.path=Anthropic/hh-rlhf is not a file, and cannot be loaded as a hub data set",
        ),
        (["task=tldr"], "task.path=openai/summarize_from_feedback:comparisons is not a file"),
        (
            ["task=tldr", SOURCES["tldr"], "task.gold_confidence=[0]"],
            "task.gold_confidence=.0. must list slider",
        ),
        (["task=custom", "task.path=[a.csv,b.csv]"], "task.path lists 2 files, but task=custom reads one"),
        (
            ["task=docs", "task.source=web"],
            "task.source=web is not known: write one of docs, custom, tldr, hh",
        ),
        (
            ["task=helpful", SOURCES["helpful"], "task.gold_fraction=2"],
            "task.gold_fraction=2 is out of range",
        ),
    ],
)
def test_a_task_that_cannot_be_read_is_one_sentence(words, said, run, tmp_path) -> None:
    with pytest.raises(UserError, match=said) as caught:
        run("stage=label", *words, root=tmp_path / "root")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "root").glob("artifacts/*-*"))
