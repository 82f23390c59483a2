"""The custom task: every format, every error, pairs, gold and the HH schema."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from rlaif.data.files.custom import load_custom
from rlaif.data.files.readers import HubPart
from rlaif.data.files.rows import Splitting
from rlaif.errors import UserError

FIXTURES = Path(__file__).parents[1] / "fixtures"


HUB = HubPart("train", None)
SPLITTING = {
    "test_fraction": 0.25,
    "validation_fraction": 0.25,
    "gold_fraction": 0.25,
    "max_rows": None,
    "seed": 0,
}


def load(path, columns=None, **changes):
    splitting = Splitting(**{**SPLITTING, **changes})
    return load_custom(path=str(path), hub=HUB, columns=columns or {}, splitting=splitting)


def _all(task):
    return [*task.train, *task.validation, *task.test]


def _pairs(task):
    return [*task.pairs, *task.gold_pairs]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def many(prompts: int, per_prompt: int = 2) -> list[dict]:
    return [
        {
            "prompt": f"Question {i}?",
            "response_a": f"good {i} {j}",
            "response_b": f"bad {i} {j}",
            "label": 0.75,
        }
        for i in range(prompts)
        for j in range(per_prompt)
    ]


ROWS = [
    {"id": "x1", "prompt": "One, or two?", "response_a": "One.", "response_b": "Two.", "label": 0.8},
    {"id": "x2", "prompt": 'Say "hi"\nthen stop.', "response_a": "Hi.", "response_b": "No.", "label": 0.0},
]


def _as_jsonl(folder):
    return write_jsonl(folder / "rows.jsonl", ROWS)


def _as_gz(folder):
    path = folder / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(_as_jsonl(folder).read_bytes()))
    return path


def _as_json(folder):
    (folder / "rows.json").write_text(json.dumps(ROWS))
    return folder / "rows.json"


def _as_csv(folder):
    with (folder / "rows.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)
    return folder / "rows.csv"


def _as_parquet(folder):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "rows.parquet")
    return folder / "rows.parquet"


@pytest.mark.parametrize("write", [_as_jsonl, _as_gz, _as_json, _as_csv, _as_parquet])
def test_every_format_reads_the_same(write, tmp_path):
    task = load(write(tmp_path))
    assert {(row.id, row.prompt) for row in _all(task)} == {(row["id"], row["prompt"]) for row in ROWS}
    found = {pair.id: (pair.prompt_id, pair.response_a, pair.response_b, pair.gold) for pair in _pairs(task)}
    assert found == {"x1": ("x1", "One.", "Two.", 0.8), "x2": ("x2", "Hi.", "No.", 0.0)}
    assert {(pair.origin, pair.gold_source) for pair in _pairs(task)} == {("dataset", "human")}
    assert task.fingerprint == load(_as_jsonl(tmp_path)).fingerprint


def test_shipped_fixtures():
    task = load(FIXTURES / "custom.jsonl")
    assert len(_all(task)) == len(_pairs(task)) == 12
    assert all(row.reference for row in _all(task))
    table = load(FIXTURES / "custom.csv", columns={"prompt": "question", "reference": "answer"})
    assert {(row.prompt, row.reference) for row in _all(table)} == {
        (row.prompt, row.reference) for row in _all(task)
    }
    assert not _pairs(table)


def test_prompts_alone_are_enough(tmp_path):
    task = load(write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"Q{i}"} for i in range(40)]))
    assert len(_all(task)) == 40 and not _pairs(task)
    assert all(row.reference is None for row in _all(task))
    assert min(len(task.train), len(task.validation), len(task.test)) >= 3


def test_pairs_of_a_prompt_share_its_id_and_side(tmp_path):
    task = load(write_jsonl(tmp_path / "m.jsonl", many(80)))
    prompts = {row.id: row for row in _all(task)}
    assert len(prompts) == 80 and len(task.pairs) + len(task.gold_pairs) == 160
    assert all(prompts[pair.prompt_id].prompt == pair.prompt for pair in _pairs(task))
    gold = {pair.prompt_id for pair in task.gold_pairs}
    assert gold.isdisjoint(pair.prompt_id for pair in task.pairs)
    assert len(task.gold_pairs) == 2 * len(gold)
    # With equal fractions the gold prompts are exactly the test prompts: no training pair touches those.
    assert gold == {row.id for row in task.test}
    assert all(pair.gold == 0.75 for pair in _pairs(task))


def test_gold_fraction_zero_and_one(tmp_path):
    path = write_jsonl(tmp_path / "m.jsonl", many(30))
    assert len(load(path, gold_fraction=0.0).pairs) == 60
    assert len(load(path, gold_fraction=1.0).gold_pairs) == 60


def test_unlabelled_pairs_train_and_never_count_as_gold(tmp_path):
    rows = many(20)
    for row in rows[1::2]:
        del row["label"]
    task = load(write_jsonl(tmp_path / "u.jsonl", rows), gold_fraction=1.0)
    assert len(task.gold_pairs) == 20 and not task.pairs
    assert task.notes["untrusted_gold_pairs_dropped"] == 20
    for row in rows:
        row.pop("label", None)
    task = load(write_jsonl(tmp_path / "n.jsonl", rows), gold_fraction=1.0)
    assert len(task.pairs) == 40 and not task.gold_pairs
    assert {(pair.gold, pair.gold_source) for pair in task.pairs} == {(None, None)}


def test_equal_responses_are_dropped_and_counted(tmp_path):
    row = {"prompt": "Q", "response_a": "same", "response_b": "same", "label": 0.5}
    task = load(write_jsonl(tmp_path / "s.jsonl", [row, *many(2, 1)]))
    assert len(_pairs(task)) == 2 and task.notes["identical_pairs_dropped"] == 1


def test_same_rows_without_ids_stay_apart(tmp_path):
    task = load(write_jsonl(tmp_path / "d.jsonl", many(1, 1) * 3))
    assert len({pair.id for pair in _pairs(task)}) == 3
    assert len(_all(task)) == 1


def test_references_of_one_prompt(tmp_path):
    rows = [{"prompt": "Q", "reference": r} for r in (None, "one", "two", "one")]
    found = _all(load(write_jsonl(tmp_path / "r.jsonl", rows)))
    assert [row.reference for row in found] == ["one", "two"]
    assert len({row.id for row in found}) == 2


def test_smaller_set_is_a_subset_with_the_same_splits(tmp_path):
    path = write_jsonl(tmp_path / "m.jsonl", many(80))
    whole = load(path)
    for max_rows in (1, 31, 100):
        part = load(path, max_rows=max_rows)
        assert len(_pairs(part)) == max_rows
        for name in ("train", "validation", "test", "pairs", "gold_pairs"):
            assert set(getattr(part, name)) <= set(getattr(whole, name))
    assert load(path) == whole
    assert set(load(path, seed=1).test) != set(whole.test)


def test_order_of_the_file_changes_no_split(tmp_path):
    rows = many(50, 1)
    forward = load(write_jsonl(tmp_path / "f.jsonl", rows))
    backward = load(write_jsonl(tmp_path / "b.jsonl", rows[::-1]))
    for name in ("train", "validation", "test", "pairs", "gold_pairs"):
        assert set(getattr(forward, name)) == set(getattr(backward, name))


def test_column_mapping(tmp_path):
    rows = [{"q": "Why?", "good": "a", "poor": "b", "p": "0.25", "key": 7}]
    columns = {"prompt": "q", "response_a": "good", "response_b": "poor", "label": "p", "id": "key"}
    (pair,) = _pairs(load(write_jsonl(tmp_path / "c.jsonl", rows), columns=columns))
    assert (pair.id, pair.prompt, pair.response_a, pair.response_b, pair.gold) == (
        "7",
        "Why?",
        "a",
        "b",
        0.25,
    )


PAIR = {"prompt": "Q", "response_a": "a", "response_b": "b"}


@pytest.mark.parametrize(
    ("name", "text", "columns", "parts"),
    [
        ("e.jsonl", "", {}, ["e.jsonl has no rows"]),
        ("e.csv", "prompt,label\n", {}, ["e.csv has no rows"]),
        ("e.json", " ", {}, ["e.json has no rows"]),
        ("t.txt", "x", {}, ["t.txt has an unknown extension (.txt)", ".jsonl.gz"]),
        ("b.jsonl", '{"prompt": "Q"}\n\n{"prompt": \n', {}, ["b.jsonl, line 3: not valid JSON"]),
        ("l.jsonl", "[1]\n", {}, ["l.jsonl, line 1: must be a JSON object"]),
        ("o.json", '{"prompt": "Q"}', {}, ["o.json must hold one JSON array"]),
        ("b.json", '[{"prompt": "Q"},\n{]', {}, ["b.json: not valid JSON", "line 2"]),
        ("c.csv", "prompt,label\nQ\n", {}, ["c.csv, row 1: the cell count is 1, but the header's is 2"]),
        ("d.csv", "prompt\nQ,extra\n", {}, ["d.csv, row 1: the cell count is 2, but the header's is 1"]),
        ("g.jsonl.gz", "not gzip", {}, ["g.jsonl.gz cannot be read"]),
        ("p.parquet", "not parquet", {}, ["p.parquet is not a Parquet file"]),
        (
            "m.jsonl",
            '{"text": "Q", "n": 1}',
            {},
            ["no column 'prompt'", "text, n", "task.columns.prompt=NAME"],
        ),
        (
            "m.jsonl",
            '{"prompt": "Q"}',
            {"reference": "answer"},
            ["no column 'answer' for reference", "task.columns.reference=NAME"],
        ),
        ("m.jsonl", '{"prompt": "Q"}', {"promt": "x"}, ["task.columns.promt is unknown"]),
        (
            "a.csv",
            "prompt,response_a\nQ,x\n",
            {},
            ["'response_a' for response_a but none for response_b", "task.columns.response_b=NAME"],
        ),
        (
            "w.jsonl",
            json.dumps(PAIR) + '\n{"prompt": "Q", "response_b": "b"}',
            {},
            ["line 2", "without a response_a"],
        ),
        ("w.csv", "prompt,response_a,response_b\nQ,a,\n", {}, ["row 1", "without a response_b"]),
        ("q.jsonl", '{"prompt": "Q"}\n{"prompt": " "}', {}, ["q.jsonl, line 2: column 'prompt' is empty"]),
        ("n.jsonl", '{"prompt": 3}', {}, ["line 1: column 'prompt' must hold text, not a number"]),
        (
            "i.jsonl",
            '{"prompt": "Q", "id": "k"}\n{"prompt": "R", "id": "k"}',
            {},
            ["line 2: id 'k'", "line 1"],
        ),
        ("j.jsonl", '{"prompt": "Q", "id": "k"}\n{"prompt": "R"}', {}, ["line 2: column 'id' is empty"]),
        *[
            (
                "v.jsonl",
                json.dumps({**PAIR, "label": 1}) + "\n" + json.dumps({**PAIR, "label": bad}),
                {},
                parts,
            )
            for bad, parts in [
                (1.01, ["v.jsonl, line 2: column 'label' is 1.01", "from 0 to 1"]),
                (-0.5, ["line 2: column 'label' is -0.5"]),
                ("a", ["line 2: column 'label' is 'a'"]),
                (float("nan"), ["line 2: column 'label' is nan"]),
                ([1], ["line 2: column 'label' is [1]"]),
            ]
        ],
        (
            "h.jsonl",
            '{"chosen": "no turn", "rejected": "none"}',
            {},
            ["in no row", "share a dialogue", "task.columns.prompt=NAME"],
        ),
        ("h.jsonl", '{"chosen": [1], "rejected": "x"}', {}, ["line 1", "must both hold a dialogue as text"]),
    ],
)
def test_every_mistake_is_one_sentence(name, text, columns, parts, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        load(tmp_path / name, columns=columns)
    message = str(caught.value)
    assert name.split(".")[0] in message or "task.columns" in message
    assert "\n" not in message and message.endswith(".")
    for part in parts:
        assert part in message


def test_not_utf8(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "caf\u00e9"}'.encode("latin-1"))
    with pytest.raises(UserError, match="latin.jsonl is not UTF-8 text"):
        load(tmp_path / "latin.jsonl")


@pytest.mark.parametrize("path", ["missing.jsonl", "data/missing.jsonl", "/no/such/file.csv", "plainname"])
def test_missing_file(path):
    with pytest.raises(UserError, match=rf"task.path={path} does not exist"):
        load(path)


def test_folder(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        load(tmp_path)


def test_unreachable_hub_names_the_way_out():
    """The hub client itself fails here, since tests run offline."""
    with pytest.raises(UserError) as caught:
        load("nobody-at-all/no-such-data")
    message = str(caught.value)
    assert "task.path=nobody-at-all/no-such-data is not a file" in message and "task.path=FILE" in message
    assert "\n" not in message


def test_hh_schema_is_recognised():
    source = [json.loads(line) for line in (FIXTURES / "hh.jsonl").read_text().splitlines()]
    task = load(FIXTURES / "hh.jsonl")
    found = {}
    for pair in _pairs(task):
        better, worse = (
            (pair.response_a, pair.response_b) if pair.gold == 1.0 else (pair.response_b, pair.response_a)
        )
        turn = f"\n\n{pair.prompt}\n\nAssistant:"
        found[f"{turn} {better}"] = f"{turn} {worse}"
        assert pair.gold_source == "human"
    assert found == {row["chosen"]: row["rejected"] for row in source}
    assert load(FIXTURES / "hh.jsonl", columns={name: name for name in ("prompt", "label", "id")}) == task
