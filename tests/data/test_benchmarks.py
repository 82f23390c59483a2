"""Published benchmarks of labelled pairs, recognised by their columns, and the subset of a pair."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from rlaif.data.files.custom import load_custom
from rlaif.data.files.readers import HubPart
from rlaif.data.files.rows import Splitting
from rlaif.errors import UserError

FIXTURES = Path(__file__).parents[1] / "fixtures"
DEFAULTS = {
    name: name for name in ("prompt", "reference", "response_a", "response_b", "label", "id", "subset")
}


def load(path, columns=None, gold_fraction=1.0):
    splitting = Splitting(0.15, 0.05, gold_fraction, None, 0)
    return load_custom(
        path=str(path), hub=HubPart("train", None), columns=DEFAULTS | (columns or {}), splitting=splitting
    )


def rows_of(name):
    text = (FIXTURES / name).read_text()
    return json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]


def written(folder, *rows, name="rows.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def read(task):
    """(id, prompt, better, worse, subset) of every pair, all of which are gold."""
    assert not task.pairs and {pair.gold for pair in task.gold_pairs} <= {0.0, 1.0}
    return {
        (
            p.id,
            p.prompt,
            *((p.response_a, p.response_b) if p.gold else (p.response_b, p.response_a)),
            p.subset,
        )
        for p in task.gold_pairs
    }


def subsets(task):
    return {pair.prompt: pair.subset for pair in (*task.pairs, *task.gold_pairs)}


def test_reward_bench():
    rows = rows_of("reward_bench.jsonl")
    task = load(FIXTURES / "reward_bench.jsonl")
    assert read(task) == {
        (str(row["id"]), row["prompt"], row["chosen"], row["rejected"], row["subset"]) for row in rows
    }
    assert {pair.gold for pair in task.gold_pairs} == {0.0, 1.0}, "the better one is not always on one side"
    assert (
        task.notes["columns_not_read"] == ["chosen_model", "rejected_model"]
        and not task.notes["columns_near"]
    )


def test_reward_bench_2_sets_each_chosen_response_against_each_rejected_one():
    rows = rows_of("reward_bench_2.jsonl")
    expected, sizes = set(), {}
    for row in rows:
        number = 0
        for better in row["chosen"]:
            for worse in row["rejected"]:
                number += 1
                expected.add((f"{row['id']}#{number}", row["prompt"], better, worse, row["subset"]))
        sizes[row["prompt"]] = number
    task = load(FIXTURES / "reward_bench_2.jsonl")
    assert read(task) == expected and sorted(sizes.values()) == [3, 3, 6]
    clusters = Counter(pair.cluster for pair in task.gold_pairs)
    assert sorted(clusters.values()) == [3, 3, 6], "the pairs of a row are resampled together"


def test_one_chosen_and_one_rejected_text_in_lists_are_a_pair_with_the_rows_own_id(tmp_path):
    path = written(tmp_path, {"id": 7, "prompt": "Q", "chosen": ["a"], "rejected": ["b"], "subset": "s"})
    assert read(load(path)) == {("7", "Q", "a", "b", "s")}


@pytest.mark.parametrize(
    ("changes", "held"),
    [
        ({"rejected": "b"}, "chosen: a list, rejected: text"),
        ({"rejected": []}, "chosen: a list, rejected: a list"),
        ({"rejected": ["b", 3]}, "chosen: a list, rejected: a list"),
        ({"prompt": None}, "chosen: a list, rejected: a list"),
    ],
)
def test_lists_that_are_no_texts_beside_a_prompt_are_refused(changes, held, tmp_path):
    path = written(tmp_path, {"prompt": "Q", "chosen": ["a"], "rejected": ["b"], **changes})
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert "rows.jsonl, line 1: columns 'chosen' and 'rejected'" in message and f"({held})" in message
    assert "beside a prompt, both a list of texts" in message


def test_llmbar():
    rows, task = rows_of("llmbar.json"), load(FIXTURES / "llmbar.json")
    outputs = {1: ("output_1", "output_2"), 2: ("output_2", "output_1")}
    found = {pair[1:] for pair in read(task)}
    assert found == {(row["input"], *(row[name] for name in outputs[row["label"]]), None) for row in rows}
    assert all(pair.response_a in {row["output_1"] for row in rows} for pair in task.gold_pairs)
    unlabelled = load(FIXTURES / "llmbar.json", {"label": None})
    assert {pair.gold for pair in unlabelled.pairs} == {None} and not unlabelled.gold_pairs


def test_judgebench():
    rows, task = rows_of("judgebench.jsonl"), load(FIXTURES / "judgebench.jsonl")
    found = {(p.id, p.prompt, p.response_a, p.response_b, p.subset): p.gold for p in task.gold_pairs}
    assert found == {
        (row["pair_id"], row["question"], row["response_A"], row["response_B"], row["source"]): float(
            row["label"] == "A>B"
        )
        for row in rows
    }
    assert set(found.values()) == {0.0, 1.0}
    assert task.notes["schema"] == "JudgeBench's pairs"
    assert task.notes["columns_not_read"] == ["original_id", "response_model"]


JUDGED = {
    "question": "Q",
    "response_A": "a",
    "response_B": "b",
    "source": "s",
    "pair_id": "k",
    "label": "A>B",
}
NUMBERED = {"input": "Q", "output_1": "a", "output_2": "b", "label": 1}


@pytest.mark.parametrize(
    ("row", "gold"),
    [
        *[
            (JUDGED | {"label": label}, gold)
            for label, gold in {"A>B": 1.0, " b > a ": 0.0, "tie": 0.5, "TIE": 0.5, "A=B": 0.5}.items()
        ],
        *[
            (NUMBERED | {"label": label}, gold)
            for label, gold in [("1", 1.0), (2.0, 0.0), ("tie", 0.5), (1.5, 0.5)]
        ],
    ],
)
def test_verdicts(row, gold, tmp_path):
    task = load(written(tmp_path, row))
    assert [pair.gold for pair in task.gold_pairs] == [gold]


@pytest.mark.parametrize("row", [JUDGED, NUMBERED])
@pytest.mark.parametrize("label", [None, "", "no column"])
def test_a_pair_without_a_verdict_is_unlabelled(row, label, tmp_path):
    row = {**row, "label": label} if label != "no column" else {k: v for k, v in row.items() if k != "label"}
    task = load(written(tmp_path, row))
    assert [pair.gold for pair in task.pairs] == [None] and not task.gold_pairs


@pytest.mark.parametrize(("row", "better"), [(JUDGED, "B>A"), (NUMBERED, 2)])
def test_the_column_of_the_verdicts_can_be_another_or_none(row, better, tmp_path):
    path = written(tmp_path, row | {"verdict": better})
    assert [pair.gold for pair in load(path).gold_pairs] == [1.0]
    named = load(path, {"label": "verdict"})
    assert [pair.gold for pair in named.gold_pairs] == [0.0] and "label" in named.notes["columns_not_read"]
    none = load(path, {"label": None})
    assert [pair.gold for pair in none.pairs] == [None] and "label" in none.notes["columns_not_read"]
    with pytest.raises(UserError, match=r"no column 'topic' for label .*task\.columns\.label=NAME"):
        load(path, {"label": "topic"})
    with pytest.raises(UserError, match="line 1: column 'verdict' is 'x'"):
        load(written(tmp_path, row | {"verdict": "x"}), {"label": "verdict"})


def test_judgebench_without_its_id_or_source(tmp_path):
    row = {name: JUDGED[name] for name in ("question", "response_A", "response_B", "label")}
    (pair,) = load(written(tmp_path, row)).gold_pairs
    assert pair.subset is None and pair.id and pair.gold == 1.0


def test_the_files_and_the_users_own_columns_win_over_the_schemas(tmp_path):
    row = JUDGED | {"subset": "own", "topic": "asked"}
    path = written(tmp_path, row)
    assert subsets(load(path)) == {"Q": "own"}
    assert subsets(load(path, {"subset": "topic"})) == {"Q": "asked"}
    assert subsets(load(path, {"subset": None})) == {"Q": None}
    (pair,) = load(path, {"id": "topic"}).gold_pairs
    assert pair.id == "asked"


@pytest.mark.parametrize(
    ("row", "columns", "parts"),
    [
        (JUDGED | {"label": "A"}, {}, ["column 'label' is 'A'", "'A>B' or 'B>A'", "'A=B' for neither"]),
        (JUDGED | {"label": 0.8}, {}, ["column 'label' is 0.8", "task.columns.response_a=response_A"]),
        (JUDGED | {"label": True}, {}, ["column 'label' is True"]),
        (JUDGED | {"response_B": None}, {}, ["column 'response_B' must hold text, not nothing"]),
        (JUDGED | {"question": " "}, {}, ["column 'question' is empty"]),
        (JUDGED | {"pair_id": None}, {}, ["column 'pair_id' is empty"]),
        (JUDGED | {"source": ["s"]}, {}, ["column 'source' must hold a short name", "not a list"]),
        (NUMBERED | {"label": 3}, {}, ["column 'label' is 3", "1 or 2, the better output, or 1.5"]),
        (NUMBERED | {"label": "both"}, {}, ["column 'label' is 'both'"]),
        (NUMBERED | {"input": ""}, {}, ["column 'input' is empty"]),
        (NUMBERED | {"output_2": 4}, {}, ["column 'output_2' must hold text, not a number"]),
    ],
)
def test_what_a_benchmarks_row_gets_wrong_is_named(row, columns, parts, tmp_path):
    good = JUDGED | {"question": "R", "pair_id": "k0"} if "question" in row else NUMBERED | {"input": "R"}
    path = written(tmp_path, good, row)
    with pytest.raises(UserError) as caught:
        load(path, columns)
    message = str(caught.value)
    assert "rows.jsonl, line 2: " in message and message.endswith(".") and "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("name", ["subset", "id", "reference"])
@pytest.mark.parametrize("row", [JUDGED, {"prompt": "Q", "chosen": "a", "rejected": "b"}])
def test_a_column_that_the_user_names_must_be_there_in_a_published_schema_too(name, row, tmp_path):
    with pytest.raises(UserError, match=rf"no column 'topic' for {name} .*task\.columns\.{name}=NAME"):
        load(written(tmp_path, row), {name: "topic"})


def test_the_same_id_twice_says_how_to_do_without_ids(tmp_path):
    with pytest.raises(UserError, match=r"line 2: id 'k' in column 'pair_id' .*task\.columns\.id=null"):
        load(written(tmp_path, JUDGED, JUDGED | {"question": "R"}))
    assert len(load(written(tmp_path, JUDGED, JUDGED | {"question": "R"}), {"id": None}).gold_pairs) == 2


PAIR = {"prompt": "Q", "response_a": "a", "response_b": "b", "label": 1}


@pytest.mark.parametrize(
    ("value", "subset"),
    [
        ("math", "math"),
        ("  hard \n math ", "hard math"),
        ("", None),
        (" ", None),
        (None, None),
        (3, "3"),
        (3.0, "3"),
        (0, "0"),
        (0.5, "0.5"),
        (float("nan"), None),
        (True, "true"),
    ],
)
def test_a_subset_is_a_short_text_or_nothing(value, subset, tmp_path):
    path = written(tmp_path, PAIR | {"subset": value})
    assert subsets(load(path)) == {"Q": subset}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("x" * 81, "holds 81 characters, but .* 80 at most"),
        (["math"], "must hold a short name of a part of the data set, not a list"),
        ({"name": "math"}, "must hold .*, not an object"),
        (10**400, "holds 401 characters"),
    ],
)
def test_what_is_no_subset_is_refused_where_it_stands(value, words, tmp_path):
    path = written(tmp_path, PAIR, PAIR | {"prompt": "R", "topic": value})
    with pytest.raises(UserError, match=rf"line 2: column 'topic' {words}.*task\.columns\.subset=null"):
        load(path, {"subset": "topic"})
    assert load(path, {"subset": None}) and load(path)
    alone = written(tmp_path, {"prompt": "R", "subset": value})
    assert load(alone), "only pairs have a subset"


def test_rows_without_the_subset_column_have_none(tmp_path):
    path = written(
        tmp_path, PAIR | {"subset": "math"}, PAIR | {"prompt": "R"}, PAIR | {"prompt": "S", "subset": ""}
    )
    assert subsets(load(path)) == {"Q": "math", "R": None, "S": None}
    assert subsets(load(written(tmp_path, PAIR))) == {"Q": None}
    with pytest.raises(UserError, match=r"no column 'topic' for subset .*task\.columns\.subset=NAME"):
        load(path, {"subset": "topic"})


def test_every_format_gives_the_same_subsets(tmp_path):
    rows = [PAIR | {"prompt": f"Q{i}", "subset": subset} for i, subset in enumerate([1, None, 2])]
    with (tmp_path / "rows.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    table = pyarrow.Table.from_pylist(
        [{**row, "subset": row["subset"] and float(row["subset"])} for row in rows]
    )
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    for path in (written(tmp_path, *rows), tmp_path / "rows.csv", tmp_path / "rows.parquet"):
        assert subsets(load(path)) == {"Q0": "1", "Q1": None, "Q2": "2"}, path


def test_the_subset_changes_neither_ids_nor_splits(tmp_path):
    rows = [PAIR | {"prompt": f"Q{i}"} for i in range(40)]
    bare = load(written(tmp_path, *rows), gold_fraction=0.3)
    told = load(written(tmp_path, *(row | {"subset": "s"} for row in rows)), gold_fraction=0.3)
    for part in ("pairs", "gold_pairs"):
        assert [p.id for p in getattr(bare, part)] == [p.id for p in getattr(told, part)]
    assert bare.fingerprint != told.fingerprint


def test_a_pair_has_its_rows_reference_or_else_its_prompts(tmp_path):
    rows = [
        PAIR | {"reference": "first"},
        PAIR | {"response_a": "c", "reference": "second"},
        PAIR | {"response_a": "d"},
        PAIR | {"prompt": "R", "response_a": "e"},
        {"prompt": "R", "reference": "later"},
        PAIR | {"prompt": "S", "response_a": "f"},
    ]
    task = load(written(tmp_path, *rows))
    found = {pair.response_a: pair.reference for pair in task.gold_pairs}
    assert found == {"a": "first", "c": "second", "d": "first", "e": "later", "f": None}
