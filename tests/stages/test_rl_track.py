"""`rl.track` through its stage: measured on fixed prompts, told in history, summary and page, exact after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rlaif.errors import UserError
from rlaif.tracking.glossary import unknown

TRACKED = ["stage=ppo", "rl.lr=0.03", "rl.num_epochs=2", "rl.track.every=2", "rl.track.num_prompts=4"]


def _measured(record) -> list[tuple[int, float, float, float]]:
    names = ("ppo/track_proxy", "ppo/track_gold", "ppo/track_kl")
    return [(row["step"], *(row[name] for name in names)) for row in record.history if names[0] in row]


def _policy(root: Path, record) -> dict:
    row = record.lineage[0]
    return load_file(root / "artifacts" / f"{row['kind']}-{row['digest']}" / "top.safetensors")


@pytest.mark.parametrize("judge", ["rouge", "judge"])
def test_start_every_so_often_and_end_are_measured(judge, pipeline, run, warm_root) -> None:
    options = [*TRACKED, f"rl.track.judge={judge}", "judge=scripted"]
    record = run(*options)
    rows, summary = _measured(record), record.summary
    assert [step for step, *_ in rows] == [0, 2, 4] and summary["ppo/iterations"] == 4
    assert rows[0][3] == 0.0 != rows[-1][3], "the first policy is the reference itself"
    assert all(0 <= gold <= 1 for _, _, gold, _ in rows)
    if judge == "judge":
        assert rows[0][2] == 0.5, "the SFT policy against itself, with the same noise"
    assert summary["ppo/track_iteration"] == 4
    assert (summary["ppo/track_proxy"], summary["ppo/track_gold"], summary["ppo/track_kl"]) == rows[-1][1:]
    assert (summary["ppo/track_proxy_start"], summary["ppo/track_gold_start"]) == rows[0][1:3]
    assert unknown(summary) == []
    judged = run("stage=eval", *options[1:])
    assert {row["kind"]: row["reused"] for row in judged.lineage}["ppo"] and _measured(judged) == rows
    page = (warm_root / "reports" / f"eval-{judged.id}.html").read_text(encoding="utf-8")
    assert "<h2>Over-optimisation</h2>" in page


def test_measuring_does_not_move_the_policy(pipeline, run, warm_root) -> None:
    off, on = run(*TRACKED[:3]), run(*TRACKED)
    assert off.lineage[0]["digest"] != on.lineage[0]["digest"]
    one, two = _policy(warm_root, off), _policy(warm_root, on)
    assert all((one[name] == two[name]).all() for name in one)
    same = run(*TRACKED[:3], "rl.track.num_prompts=7")
    assert same.lineage[0]["digest"] == off.lineage[0]["digest"], (
        "no setting of what is off makes another policy"
    )


def test_the_best_policy_is_the_one_that_is_kept(pipeline, run, warm_root) -> None:
    """With reward=length and the SFT policy as the best so far, keeping the best keeps where it was best."""
    words = [*TRACKED, "reward=random", "rl.track.every=1", "rl.track.keep=best"]
    record = run(*words)
    rows = _measured(record)
    best = max(rows, key=lambda row: row[2])
    first = next(row for row in rows if row[2] == best[2])
    assert record.summary["ppo/track_iteration"] == first[0]
    assert record.summary["ppo/track_gold"] == best[2]
    last = run(*words[:-1])
    assert _measured(last) == rows
    kept, end = _policy(warm_root, record), _policy(warm_root, last)
    assert all((kept[name] == end[name]).all() for name in kept) == (first[0] == rows[-1][0])


def test_the_plan_counts_the_measurements(pipeline, run, capsys) -> None:
    def tokens(*words: str) -> int:
        assert run("stage=ppo", "rl.num_epochs=5", "plan=true", *words) is None
        lines = [line.split("│") for line in capsys.readouterr().out.splitlines() if "build" in line]
        (generated,) = [cells[5] for cells in lines if cells[1].strip() == "ppo"]
        return int(generated.replace(",", ""))

    few = tokens()
    assert tokens("rl.track.every=5", "rl.track.num_prompts=4") > few
    assert tokens("rl.track.every=1", "rl.track.num_prompts=4") > tokens(
        "rl.track.every=5", "rl.track.num_prompts=4"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["rl.track.every=2", "rl.track.judge=bleu"],
            "rl.track.judge=bleu is not known: write rouge or judge",
        ),
        (["rl.track.every=2", "rl.track.keep=first"], "rl.track.keep=first is not known: write last or best"),
        (["rl.track.patience=2"], "write rl.track.every=2, say"),
        (["rl.track.keep=best"], "write rl.track.every=2, say"),
        (["rl.track.every=-1"], "rl.track.every=-1 is out of range: write a whole number from 1, or null"),
        (
            ["rl.track.every=2", "rl.track.num_prompts=0"],
            "rl.track.num_prompts=0 is out of range",
        ),
        (
            ["rl.track.every=2", "rl.track.patience=0"],
            "rl.track.patience=0 is out of range",
        ),
    ],
)
def test_options_that_cannot_be_had_are_refused(words, sentence, run, tmp_path) -> None:
    with pytest.raises(UserError) as told:
        run("stage=ppo", *words, root=tmp_path / "root")
    assert sentence in str(told.value)
    assert not list((tmp_path / "root").glob("artifacts/*-*"))


def test_rouge_needs_references_and_says_so(run, tmp_path) -> None:
    rows = [{"prompt": f"Say {i} again.", "response_a": "a", "response_b": "b"} for i in range(60)]
    file = tmp_path / "plain.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["stage=ppo", "task=custom", f"task.path={file}", "sft.enabled=false", "rl.track.every=1"]
    with pytest.raises(UserError, match="validation prompts with references"):
        run(*words, root=tmp_path / "root")
