"""Published schemas of preferences and targets, as the task `custom` reads them."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest

from rlaif.data.files.custom import load_custom
from rlaif.data.files.hh import load_hh
from rlaif.data.files.readers import HubPart
from rlaif.data.files.rows import Splitting
from rlaif.data.report import report_lines, report_metrics
from rlaif.errors import UserError

HUB = HubPart("train", None)
SPLITTING = Splitting(0.25, 0.25, 0.25, None, 0)


def load(folder, rows, columns=None, name="rows.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_custom(path=str(path), hub=HUB, columns=columns or {}, splitting=SPLITTING)


def preferred(task):
    """(prompt, better, worse) of every labelled pair."""
    return {
        (p.prompt, p.response_a, p.response_b) if p.gold == 1.0 else (p.prompt, p.response_b, p.response_a)
        for p in (*task.pairs, *task.gold_pairs)
        if p.gold in (0.0, 1.0)
    }


def references(task):
    return {(p.prompt, p.reference) for p in (*task.train, *task.validation, *task.test)}


def said(*turns):
    return [{"role": role, "content": text} for role, text in turns]


USER, GOOD, BAD = said(("user", "Tea?")), said(("assistant", "Yes.")), said(("assistant", "No."))
LONG = said(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Tea?"))
DIALOGUE = "System: Be brief.\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Tea?"

PREFERENCES = {
    "explicit": ({"prompt": "Tea?", "chosen": "Yes.", "rejected": "No."}, "Tea?"),
    "implicit": ({"chosen": "The tea is Yes.", "rejected": "The tea is No."}, "The tea is"),
    "hh": (
        {"chosen": "\n\nHuman: Tea?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Tea?\n\nAssistant: No."},
        "Human: Tea?",
    ),
    "messages": ({"prompt": USER, "chosen": GOOD, "rejected": BAD}, "Tea?"),
    "whole conversations": ({"chosen": USER + GOOD, "rejected": USER + BAD}, "Tea?"),
    "prompt beside whole conversations": (
        {"prompt": "Tea?", "chosen": USER + GOOD, "rejected": USER + BAD},
        "Tea?",
    ),
    "prompt's messages repeated": ({"prompt": USER, "chosen": USER + GOOD, "rejected": USER + BAD}, "Tea?"),
    "several turns": ({"prompt": LONG, "chosen": GOOD, "rejected": BAD}, DIALOGUE),
    "openai": (
        {"input": {"messages": USER, "tools": []}, "preferred_output": GOOD, "non_preferred_output": BAD},
        "Tea?",
    ),
    "alpacaeval": (
        {"instruction": "Tea?", "input": "", "output_1": "No.", "output_2": "Yes.", "preference": 2},
        "Tea?",
    ),
    "alpacaeval, first": (
        {"instruction": "Tea", "input": "or?", "output_1": "Yes.", "output_2": "No.", "preference": 1.0},
        "Tea\n\nor?",
    ),
    "llmbar": ({"input": "Tea?", "output_1": "No.", "output_2": "Yes.", "label": "2"}, "Tea?"),
}


@pytest.mark.parametrize("name", PREFERENCES)
def test_the_better_response_is_the_one_the_schema_says(name, tmp_path):
    row, prompt = PREFERENCES[name]
    task = load(tmp_path, [row])
    assert preferred(task) == {(prompt, "Yes.", "No.")}
    assert report_metrics(task)["data/rows_kept"] == 1


def test_comparisons_of_summaries_keep_the_authors_own_as_reference(tmp_path):
    info = {"subreddit": "tea", "title": "Tea", "post": "Is it good?"}
    row = {"info": info, "summaries": [{"text": "No.", "policy": "ref"}, {"text": "Yes."}], "choice": 1}
    task = load(tmp_path, [row, {**row, "info": {"article": "News"}}])
    prompt = "SUBREDDIT: r/tea\n\nTITLE: Tea\n\nPOST: Is it good?"
    assert preferred(task) == {(prompt, "Yes.", "No.")} and references(task) == {(prompt, "No.")}
    assert report_metrics(task)["data/news_rows_dropped"] == 1


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Tea?", "completion": "Yes."},
        {"prompt": USER, "completion": GOOD},
        {"messages": USER + GOOD},
        {"messages": said(("user", [{"type": "text", "text": "Te"}, {"type": "text", "text": "a?"}])) + GOOD},
        {"instruction": "Tea?", "input": "", "output": "Yes."},
        {"prompt": "Tea?", "reference": "Yes.", "completion": "not read beside a reference"},
    ],
)
def test_targets_are_references(row, tmp_path):
    task = load(tmp_path, [row])
    assert references(task) == {("Tea?", "Yes.")} and not preferred(task)


def test_unpaired_preferences_are_paired_by_prompt_and_the_rest_counted(tmp_path):
    rows = [("A", "a1", True), ("A", "a2", False), ("A", "a3", True), ("B", "b1", False)]
    task = load(tmp_path, [{"prompt": p, "completion": c, "label": ok} for p, c, ok in rows])
    assert preferred(task) == {("A", "a1", "a2")}
    assert report_metrics(task)["data/without_partner_dropped"] == 2
    assert "line 3" in task.examples["without_partner_dropped"]
    with pytest.raises(UserError, match=r"line 1: column 'label' is 0\.5"):
        load(tmp_path, [{"prompt": "A", "completion": "a", "label": 0.5}])
    with pytest.raises(UserError, match=r"task\.columns\.label=null"):
        load(tmp_path, [{"prompt": "A", "completion": "a", "label": True}])
    left = load(tmp_path, [{"prompt": "A", "completion": "a", "label": True}], {"label": None})
    assert references(left) == {("A", "a")}


def test_ties_and_missing_judgements_are_no_verdict(tmp_path):
    rows = [
        {"instruction": f"Q{i}", "output_1": "x", "output_2": "y", "preference": value}
        for i, value in enumerate([1.5, 0, None, 1.25])
    ]
    task = load(tmp_path, rows)
    assert {p.prompt: p.gold for p in (*task.pairs, *task.gold_pairs)} == {
        "Q0": 0.5,
        "Q1": 0.5,
        "Q2": None,
        "Q3": 0.75,
    }


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, ["line 1: column 'prompt' must hold text"]),
        ({"prompt": "Q", "chosen": "a", "rejected": None}, ["line 1: columns", "rejected: nothing)"]),
        ({"prompt": "Q", "chosen": "a", "rejected": GOOD}, ["line 1: columns 'chosen' and 'rejected'"]),
        ({"prompt": "Q", "chosen": USER + GOOD, "rejected": USER + BAD}, ["line 1: column 'prompt' is not"]),
        (
            {"input": "Q", "preferred_output": GOOD, "non_preferred_output": BAD},
            ["line 1: 'input' must hold"],
        ),
        (
            {"instruction": "Q", "output_1": "a", "output_2": "b", "preference": 3},
            ["line 1: column 'preference' is 3", "1 or 2, the better output, or 1.5"],
        ),
        (
            {"instruction": "Q", "output_1": "a", "output_2": "b", "preference": True},
            ["line 1: column 'preference' is True"],
        ),
        ({"messages": "hello"}, ["line 1: column 'messages' must hold a list of messages"]),
        (
            {"messages": [*said(("user", [{"type": "image_url"}])), *GOOD]},
            ["line 1: column 'messages'", "content is not text"],
        ),
        ({"messages": said(("wizard", "Q")) + GOOD}, ["line 1: column 'messages'", "role 'wizard'"]),
    ],
)
def test_what_does_not_fit_a_schema_is_named(row, words, tmp_path):
    with pytest.raises(UserError) as caught:
        load(tmp_path, [row])
    assert all(word in str(caught.value) for word in words), caught.value


def test_helpful_sends_an_explicit_prompt_to_custom(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "Q", "chosen": "a", "rejected": "b"}))
    with pytest.raises(UserError) as caught:
        load_hh(name="helpful", paths=[str(path)], hub=HUB, splitting=SPLITTING)
    assert f"task=custom task.path={path} reads prompt, chosen and rejected" in str(caught.value)


def test_a_file_of_two_schemas_is_refused_at_the_row_that_would_be_lost(tmp_path):
    own = {"prompt": "Q", "response_a": "x", "response_b": "y", "label": 1}
    with pytest.raises(UserError, match=r"line 2: has nothing in response_a and response_b, but chosen, rej"):
        load(tmp_path, [own, {"prompt": "R", "chosen": "c", "rejected": "d"}])
    bare = load(tmp_path, [own, {"prompt": "R", "worker": "c"}])
    assert preferred(bare) == {("Q", "x", "y")} and references(bare) == {("Q", None), ("R", None)}


def test_own_columns_win_and_an_own_mapping_too(tmp_path):
    both = {"prompt": "Q", "response_a": "x", "response_b": "y", "label": 1, "chosen": "c", "rejected": "d"}
    assert preferred(load(tmp_path, [both])) == {("Q", "x", "y")}
    row = {"prompt": "Q", "chosen": "c", "rejected": "d", "p": 0.0}
    columns = {"response_a": "chosen", "response_b": "rejected", "label": "p"}
    assert preferred(load(tmp_path, [row], columns)) == {("Q", "d", "c")}
    mapped = {"question": "Q", "chosen": "c", "rejected": "d", "id": "k", "reference": "r"}
    task = load(tmp_path, [mapped], {"prompt": "question"})
    assert preferred(task) == {("Q", "c", "d")} and references(task) == {("Q", "r")}
    assert {p.id for p in (*task.pairs, *task.gold_pairs)} == {"k"}


@pytest.mark.parametrize("name", ["id", "label", "reference"])
def test_a_column_can_be_left_out(name, tmp_path):
    row = {"prompt": "Q", "reference": "r", "response_a": "x", "response_b": "y", "label": 1, "id": "k"}
    task = load(tmp_path, [row, {**row, "prompt": "R", "id": "k2"}], {name: None})
    pairs = (*task.pairs, *task.gold_pairs)
    assert ({p.id for p in pairs} == {"k", "k2"}) == (name != "id")
    assert {p.gold for p in pairs} == ({None} if name == "label" else {1.0})
    assert {text for _, text in references(task)} == ({None} if name == "reference" else {"r"})
    assert task.notes["columns_not_read"] == [name] and not task.notes["columns_near"]


def test_the_report_counts_every_row_and_calls_out_near_misses(tmp_path):
    rows = [
        {"chosen": "\n\nHuman: A\n\nAssistant: b", "rejected": "\n\nHuman: A\n\nAssistant: c", "Label": 1},
        {"chosen": "\n\nHuman: A\n\nAssistant: b", "rejected": "\n\nHuman: B\n\nAssistant: c", "worker": 3},
        {"chosen": "\n\nHuman: A\n\nAssistant: b", "rejected": "\n\nHuman: A\n\nAssistant: b"},
    ]
    task = load(tmp_path, rows)
    metrics = report_metrics(task)
    assert (metrics["data/rows_read"], metrics["data/rows_kept"], metrics["data/dropped"]) == (3, 1, 2)
    assert metrics["data/diverging_rows_dropped"] == metrics["data/identical_pairs_dropped"] == 1
    assert metrics["data/columns_not_read"] == "Label, worker"
    assert metrics["data/columns_near"] == "Label (label?)"
    told, warned = report_lines(task)
    assert told[0].startswith("3 rows read") and "1 kept" in told[0]
    assert any("1 of 3 rows dropped: rows whose dialogues part" in w and "line 2" in w for w in warned)
    assert any("line 3" in w for w in warned) and any("Label (label?)" in w for w in warned)


@pytest.mark.parametrize(
    ("column", "known"),
    [("choosen", "chosen"), ("responce_a", "response_a"), ("response_1", "response_a"), ("Labels", "label")],
)
def test_near_misses(column, known, tmp_path):
    task = load(tmp_path, [{"prompt": "Q", column: "x", "source": "web"}])
    assert task.notes["columns_near"] == [f"{column} ({known}?)"]
    assert task.notes["columns_not_read"] == [column, "source"]


def test_prompts_that_differ_in_white_space_alone_share_split_and_cluster(tmp_path):
    texts = [f"Is {i} a number?" for i in range(40)]
    rows = [
        {"prompt": form.format(text), "chosen": f"yes {n}", "rejected": "no"}
        for text in texts
        for n, form in enumerate(("{}", " {}\n", "{}\t"))
    ] + [{"prompt": text.replace(" ", "  "), "chosen": "yes", "rejected": "no"} for text in texts]
    task = load(tmp_path, rows)
    splits = [{" ".join(p.prompt.split()) for p in part} for part in (task.train, task.validation, task.test)]
    assert all(splits) and sum(map(len, splits)) == 40
    ids = {(" ".join(p.prompt.split()), p.prompt_id) for p in (*task.pairs, *task.gold_pairs)}
    assert len(ids) == 40 and len(task.pairs) + len(task.gold_pairs) == 160


def test_parquet_lists_of_messages(tmp_path):
    rows = [{"prompt": USER, "chosen": GOOD, "rejected": BAD}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    task = load_custom(path=str(tmp_path / "rows.parquet"), hub=HUB, columns={}, splitting=SPLITTING)
    assert preferred(task) == {("Tea?", "Yes.", "No.")}
