"""The data report in terminal, summary and page; limits on responses; fractions that leave nothing."""

from __future__ import annotations

import json
import logging

import pytest

from rlaif.errors import UserError

PREFIX = "This is a long way to begin an answer, and both have it. "


def _lines(folder, rows):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["task=custom", f"task.path={folder / 'rows.jsonl'}", "labeler=scripted", "sft.enabled=false"]


def _preferences(count, better="good {}", worse="bad"):
    return [
        {"prompt": f"Question {i}?", "chosen": better.format(i), "rejected": worse, "Label": 1}
        for i in range(count)
    ]


def test_the_report_stands_in_terminal_summary_and_page(run, tmp_path, caplog) -> None:
    rows = [*_preferences(30), {"prompt": "Same?", "chosen": "a", "rejected": "a"}]
    with caplog.at_level(logging.INFO):
        record = run(*_lines(tmp_path, rows), "stage=label", root=tmp_path / "root")
    found = record.summary
    assert (found["data/rows_read"], found["data/rows_kept"], found["data/identical_pairs_dropped"]) == (
        31,
        30,
        1,
    )
    assert (
        found["data/pairs"] + found["data/gold_pairs"] == 30
        and found["data/columns_near"] == "Label (label?)"
    )
    assert found["label/n"] == min(24, found["data/pairs"])
    assert "31 rows read as chosen and rejected (TRL, Anthropic)" in caplog.text
    assert "1 of 31 rows dropped: rows with two equal responses (such as " in caplog.text
    assert "line 31)" in caplog.text and "Label (label?)" in caplog.text
    (page,) = (tmp_path / "root" / "reports").glob("label-*.html")
    text = page.read_text()
    assert "<h2>Data</h2>" in text and "two equal responses" in text and "Label (label?)" in text


def test_pairs_that_are_equal_once_cut_are_labelled_but_never_trained_on(run, tmp_path, caplog) -> None:
    same = _preferences(20, PREFIX + "good {}", PREFIX + "bad")
    own = [{**row, "prompt": f"Other {i}?"} for i, row in enumerate(_preferences(20))]
    words = [*_lines(tmp_path, same + own), "task.max_response_tokens=32", "sample.num_prompts=40"]
    summary = run(*words, "stage=rm", "rm.labels=gold", root=tmp_path / "root").summary
    equal = summary["sample/equal_cut"]
    assert 10 <= equal <= 20 and summary["rm/equal_dropped"] == equal
    assert summary["sample/n"] == summary["data/pairs"]
    parts = ("rm/train_pairs", "rm/validation_pairs", "rm/test_pairs")
    assert sum(summary[part] for part in parts if part in summary) <= summary["data/pairs"] - equal
    assert f"{equal} have responses that are equal once cut to task.max_response_tokens=32" in caplog.text
    assert f"rm: {equal} of" in caplog.text and "are not trained on" in caplog.text
    alone = (*_lines(tmp_path, same), "task.max_response_tokens=32")
    labels = run(*alone, "stage=label", root=tmp_path / "root").summary
    assert labels["label/n"] == labels["data/pairs"], "a labeler reads them whole"
    with pytest.raises(UserError, match="all .* pairs have responses that are equal once cut"):
        run(*alone, "stage=rm", "rm.labels=gold", root=tmp_path / "root")


def test_references_that_are_cut_are_counted(run, tmp_path, caplog) -> None:
    rows = [{"prompt": f"Question {i}?", "completion": PREFIX if i % 2 else "ok"} for i in range(40)]
    words = [*_lines(tmp_path, rows), "sft.enabled=true", "stage=sft", "task.max_response_tokens=32"]
    record = run(*words, root=tmp_path / "root")
    cut = record.summary["sft/responses_cut"]
    assert 8 <= cut <= 24 and record.summary["sft/rows"] <= 32
    assert f"{cut} responses are cut to task.max_response_tokens=32 and lose their end (EOS)" in caplog.text
    record = run(*words, "task.too_long=drop", root=tmp_path / "root")
    assert record.summary["sft/responses_dropped"] > 0 and "sft/responses_cut" not in record.summary
    with pytest.raises(UserError, match=r"line \d+: reference of id .* task\.max_response_tokens=32"):
        run(*words, "task.too_long=error", root=tmp_path / "root")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        *[
            (
                ["task.gold_fraction=1.0", *more],
                ["task.gold_fraction=1.0 holds out all 30 labelled pairs", "smaller"],
            )
            for more in (
                ["stage=rm"],
                ["stage=rm", "rm.labels=gold"],
                ["sample.source=policy"],
                ["stage=sft"],
            )
        ],
        (["stage=eval", "task.test_fraction=0"], ["task.test_fraction=0.0 leaves task custom no prompt"]),
        (["task.test_fraction=-0.1"], ["task.test_fraction=-0.1 is out of range"]),
        (["task.gold_fraction=1.5"], ["task.gold_fraction=1.5 is out of range"]),
        (["task.test_fraction=0.5", "task.validation_fraction=0.5"], ["leaves nothing to train on"]),
    ],
)
def test_fractions_that_leave_nothing(words, parts, run, tmp_path) -> None:
    own = [*_lines(tmp_path, _preferences(30)), "stage=label", "sft.enabled=true"]
    with pytest.raises(UserError) as caught:
        run(*own, *words, root=tmp_path / "root")
    assert all(part in str(caught.value) for part in parts), caught.value


def test_references_outside_of_train_and_validation_are_told_apart_from_none(run, tmp_path) -> None:
    rows = [{"prompt": f"Question {i}?", "completion": "ok"} for i in range(30)]
    words = [*_lines(tmp_path, rows), "sft.enabled=true", "stage=sft"]
    with pytest.raises(UserError, match=r"0 in validation.*task\.validation_fraction=0"):
        run(*words, "task.validation_fraction=0", root=tmp_path / "root")


def test_prompts_that_are_too_long_are_counted_wherever_policies_answer(run, tmp_path, caplog) -> None:
    rows = [
        {"prompt": f"Question {i}? " + "word " * (300 if i % 2 else 1), "completion": "ok"} for i in range(40)
    ]
    words = [
        *_lines(tmp_path, rows),
        "task.too_long_prompts=drop",
        "task.test_fraction=0.4",
        "stage=pipeline",
    ]
    found = run(
        *words, "judge=scripted", "rm.test_fraction=0.3", "rm.validation_fraction=0.3", root=tmp_path / "root"
    ).summary
    for stage in ("sample", "rl", "eval"):
        assert found[f"{stage}/prompts_dropped"] > 0, stage
        assert f"{stage}: of " in caplog.text
    assert found["eval/n"] == min(8, found["data/n_test"] - found["eval/prompts_dropped"])
