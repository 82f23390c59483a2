"""What a file may hold: one guard names file, row and column; what nobody reads ends no run."""

from __future__ import annotations

import gzip

import pyarrow
import pyarrow.parquet
import pytest

from rlaif.data.files.custom import load_custom
from rlaif.data.files.readers import HubPart
from rlaif.data.files.rows import Splitting
from rlaif.errors import UserError

PAIR = '"prompt": "Q", "response_a": "x", "response_b": "y"'


def load(path):
    splitting = Splitting(0.25, 0.25, 0.25, None, 0)
    return load_custom(path=str(path), hub=HubPart("train", None), columns={}, splitting=splitting)


def written(folder, name, text):
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder / name


def golds(task):
    return {p.prompt: (p.response_a, p.response_b, p.gold) for p in (*task.pairs, *task.gold_pairs)}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "d.csv",
            "prompt,response_a,response_b,label,label\nQ,x,y,0,1\n",
            ["d.csv has the column 'label' twice"],
        ),
        ("s.csv", "prompt,response_a,response_b,label, label\nQ,x,y,0,1\n", ["the column 'label' twice"]),
        ("j.jsonl", f'{{{PAIR}, "label": 0, "label": 1}}', ["j.jsonl, line 1", "the column 'label' twice"]),
        ("j.jsonl.gz", f'{{{PAIR}, "label": 0, "label": 1}}', ["line 1", "'label' twice"]),
        ("j.json", f'[{{{PAIR}, "label": 0, "label": 1}}]', ["j.json, row 1", "'label' twice"]),
        (
            "n.jsonl",
            '{"chosen": [{"role": "user", "content": "Q", "content": "R"}], "rejected": []}',
            ["n.jsonl, line 1: column 'chosen' holds the key 'content' twice"],
        ),
        (
            "h.jsonl",
            '{"prompt": "Q"}\n{"prompt": "half \\ud83d"}',
            ["h.jsonl, line 2: column 'prompt' holds half a character (\\ud83d)"],
        ),
        ("big.jsonl", f'{{{PAIR}, "label": {"9" * 5000}}}', ["line 1: column 'label' is", "from 0 to 1"]),
        ("deep.jsonl", '{"prompt": ' + "[" * 100_000, ["deep.jsonl, line 1", "nested too deeply"]),
        ("lines.json", '{"prompt": "Q"}\n{"prompt": "R"}', ["lines.json: not valid JSON", "named .jsonl"]),
        ("u.csv", "prompt\nQ\n".encode("utf-16"), ["u.csv is not UTF-8 text", "save it as UTF-8"]),
        ("r.csv", "prompt,label\nQ,1,2\n", ["r.csv, row 1: the cell count is 3, but the header's is 2"]),
        ("i.jsonl", f'{{{PAIR}, "label": Infinity}}', ["line 1: column 'label' is inf"]),
        ("b.csv", "prompt,response_a,response_b,label\nQ,x,y,2\n", ["row 1: column 'label' is '2'"]),
        (
            "k.jsonl",
            '{"prompt": "Q", "me\\ud83dta": 1}',
            ["k.jsonl, line 1: the name of a column holds half"],
        ),
        ("p.csv", b"PAR1\x00\xff\xfe", ["p.csv is not UTF-8 text"]),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(name, text, words, tmp_path):
    with pytest.raises(UserError) as caught:
        load(written(tmp_path, name, text))
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value), caught.value


def test_a_truncated_gz_is_one_sentence(tmp_path):
    path = written(tmp_path, "t.jsonl.gz", f"{{{PAIR}}}\n" * 50)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(UserError, match=r"t\.jsonl\.gz cannot be read"):
        load(path)


@pytest.mark.parametrize(
    "meta", ["9" * 5000, '"\\ud83d"', '{"a": 1, "a": 2}', "NaN", "[[[[1]]]]"], ids=lambda text: text[:8]
)
def test_a_column_that_nobody_reads_ends_no_run(meta, tmp_path):
    path = written(tmp_path, "m.jsonl", f'{{{PAIR}, "label": 0.25, "meta": {meta}}}')
    assert golds(load(path)) == {"Q": ("x", "y", 0.25)}


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffprompt,response_a,response_b,label\r\nQ,x,y,0.25\r\n",
        "sep=;\nprompt;response_a;response_b;label\nQ;x;y;0.25\n",
        "prompt;response_a;response_b;label\nQ;x;y;0.25\n",
        "prompt\tresponse_a\tresponse_b\tlabel\nQ\tx\ty\t0.25\n",
        " prompt , response_a,response_b ,label\nQ,x,y,0.25\n",
        "prompt,response_a,response_b,label,,\nQ,x,y,0.25,,\n",
        "\nprompt,response_a,response_b,label\n\nQ,x,y,0.25\n\n".lstrip("\n"),
    ],
    ids=["bom-crlf", "sep", "semicolons", "tabs", "spaces", "unnamed", "blank-lines"],
)
def test_every_way_to_write_a_csv_reads_the_same(text, tmp_path):
    assert golds(load(written(tmp_path, "w.csv", text))) == {"Q": ("x", "y", 0.25)}


def test_a_column_without_a_name_is_told_by_its_place(tmp_path):
    task = load(written(tmp_path, "u.csv", "prompt,response_a,response_b,label,\nQ,x,y,1,a note\n"))
    assert golds(task) == {"Q": ("x", "y", 1.0)} and task.notes["columns_not_read"] == ["(column 5)"]


def test_quoted_cells_keep_newlines_and_marks(tmp_path):
    text = 'prompt,response_a,response_b,label\n"Q;1\nsecond","x, ""y""",z,1\n'
    assert golds(load(written(tmp_path, "q.csv", text))) == {"Q;1\nsecond": ('x, "y"', "z", 1.0)}


def test_a_parquet_column_is_decoded_only_where_it_is_read(tmp_path):
    """A timestamp in the year 300000 has no Python value."""
    far = pyarrow.array([0, 2**53], type=pyarrow.int64()).cast(pyarrow.timestamp("ms"))
    columns = {"prompt": ["Q", "R"], "response_a": ["x", "v"], "response_b": ["y", "w"], "created": far}
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    assert golds(load(path)) == {"Q": ("x", "y", None), "R": ("v", "w", None)}
    pyarrow.parquet.write_table(pyarrow.table({**columns, "id": far}), path)
    with pytest.raises(UserError, match=r"t\.parquet, row 2: column 'id' cannot be read"):
        load(path)


def test_a_parquet_file_with_a_column_twice(tmp_path):
    columns = [pyarrow.array(["Q"]), pyarrow.array([0.0]), pyarrow.array([1.0])]
    table = pyarrow.Table.from_arrays(columns, names=["prompt", "label", "label"])
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(UserError, match=r"d\.parquet has the column 'label' twice"):
        load(tmp_path / "d.parquet")


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path, "h.jsonl", f'{{{PAIR}, "label": 1}}')
    assert golds(load("~/h.jsonl")) == {"Q": ("x", "y", 1.0)}
    with pytest.raises(UserError, match="there is no such home folder"):
        load("~nobody-of-this-name/h.jsonl")
