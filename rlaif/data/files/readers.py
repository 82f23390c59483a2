"""Rows of a user's file or of a hub data set, each with its place for messages."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rlaif.data.files.cells import (
    ArrowColumns,
    ArrowRow,
    Cells,
    JsonObject,
    fault,
    json_integer,
    json_object,
    kind_of,
    reason_of,
)
from rlaif.errors import UserError

EXTENSIONS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")
PARQUET_BRANCH = "refs/convert/parquet"
"""Where the hub keeps its Parquet copy of a data set that is published as a loading script."""

_HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(:(?P<config>[\w.-]+))?")


@dataclass(frozen=True)
class Row:
    """A row's values by column, and its place (`line 3` or `row 3`, counted from 1).

    Values are checked (and, from a Parquet file, decoded) when they are read: nothing in an unread column ends a run.
    """

    place: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class HubPart:
    """Which part of a hub data set is read: a split (`train`, `train+test` ...), possibly of one folder."""

    split: str
    data_dir: str | None


def read_rows(path: str, hub: HubPart) -> list[Row]:
    """The rows of `path`: a file with one of `EXTENSIONS`, or else the `hub` part of a hub data set.

    A hub data set is named ORG/NAME, or ORG/NAME:CONFIG if it has several configurations.
    Raises UserError if the source is missing, unreadable, malformed (with the line) or empty.
    """
    file = _expanded(path)
    if file.is_dir():
        raise UserError(f"task.path={path} is a folder; write the path of one {_either(EXTENSIONS)} file.")
    if file.exists():
        rows = _read_file(file)
    elif (found := _HUB_ID.fullmatch(path)) and not path.endswith(EXTENSIONS):
        rows = _read_hub(path, found["name"], found["config"], hub)
    else:
        raise UserError(f"task.path={path} does not exist; write the path of a {_either(EXTENSIONS)} file.")
    if not rows:
        raise UserError(f"{path} has no rows; task.path needs a file with at least one row.")
    return rows


def _expanded(path: str) -> Path:
    """The path with a leading `~` as the user's home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"task.path={path}: there is no such home folder; write the whole path.") from error


def _either(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}"


def _read_file(file: Path) -> list[Row]:
    parsers = {".jsonl": _json_lines, ".json": _json_array, ".csv": _csv}
    try:
        if file.name.endswith(".jsonl.gz"):
            return list(_json_lines(gzip.decompress(file.read_bytes()).decode("utf-8-sig"), file))
        if file.suffix in parsers:
            return list(parsers[file.suffix](file.read_text(encoding="utf-8-sig"), file))
        if file.suffix == ".parquet":
            return _parquet(file)
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file} cannot be read: {error}.") from error
    kind = "".join(file.suffixes[-2:]) or "no extension"
    raise UserError(f"{file} has an unknown extension ({kind}); task.path takes {_either(EXTENSIONS)}.")


def _json_lines(text: str, file: Path) -> Iterator[Row]:
    # Not splitlines(): JSON strings may hold U+2028, which does not end a line in this format.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _object_row(_parse_json(line, f"{file}, line {number}"), f"line {number}", file)


def _json_array(text: str, file: Path) -> Iterator[Row]:
    if not text.strip():
        return
    values = _parse_json(text, str(file))
    if not isinstance(values, list):
        raise UserError(f"{file} must hold one JSON array of objects, not {kind_of(values)}.")
    for number, value in enumerate(values, start=1):
        yield _object_row(value, f"row {number}", file)


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=json_object, parse_int=json_integer)
    except json.JSONDecodeError as error:
        spot = f" at line {error.lineno}" if error.lineno > 1 else ""
        hint = "; a file with one object per line is named .jsonl" if error.msg == "Extra data" else ""
        raise UserError(f"{where}: not valid JSON ({error.msg}{spot}){hint}.") from error
    except RecursionError as error:
        raise UserError(f"{where}: its JSON is nested too deeply to be read.") from error


def _object_row(value: Any, place: str, file: Path) -> Row:
    if not isinstance(value, dict):
        raise UserError(f'{file}, {place}: must be a JSON object such as {{"prompt": "..."}}.')
    odd = next(filter(None, map(fault, value)), None)
    if odd:
        raise UserError(f"{file}, {place}: the name of a column {odd}.")
    repeated = value.repeated if isinstance(value, JsonObject) else ()
    if repeated:
        raise UserError(f"{file}, {place}: has the column '{repeated[0]}' twice; keep one of them.")
    return Row(place, Cells(value, f"{file}, {place}"))


def _csv(text: str, file: Path) -> Iterator[Row]:
    """CSV with a header line. An empty cell is a missing value, since CSV cannot tell the two apart.

    The delimiter is what Excel's `sep=` line says, else a comma, or a semicolon or tab if the header has no comma.
    """
    # A cell may be a whole document; the reader's own limit is 128 KiB.
    csv.field_size_limit(2**31 - 1)
    said = re.match(r"sep=(.)\r?\n", text)
    body = text[said.end() :] if said else text
    mark = said[1] if said else _delimiter(body)
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=mark, strict=True)
    try:
        header = _csv_header(next(reader, []), file)
        for number, cells in enumerate(filter(None, reader), start=1):
            if len(cells) != len(header):
                raise UserError(
                    f"{file}, row {number}: the cell count is {len(cells)}, but the header's is {len(header)}; "
                    "quote cells that hold commas."
                )
            values = {name: cell or None for name, cell in zip(header, cells, strict=True)}
            yield Row(f"row {number}", Cells(values, f"{file}, row {number}"))
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: not valid CSV ({error}).") from error


def _delimiter(text: str) -> str:
    header = text.split("\n", 1)[0]
    return "," if "," in header else next((mark for mark in ";\t" if mark in header), ",")


def _csv_header(names: list[str], file: Path) -> list[str]:
    """The columns' names without surrounding spaces; a column without a name is named by its number."""
    header = [name.strip() for name in names]
    _refuse_repeated(filter(None, header), file)
    return [name or f"(column {number})" for number, name in enumerate(header, start=1)]


def _refuse_repeated(names: Iterable[str], file: Path) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{file} has the column '{repeated[0]}' twice; keep one of them.")


def _parquet(file: Path) -> list[Row]:
    """The rows of a Parquet file; a column is decoded when its first value is read."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file).read()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file} is not a Parquet file ({str(error).splitlines()[0]}).") from error
    _refuse_repeated(table.column_names, file)
    columns = ArrowColumns(table)
    return _numbered((ArrowRow(columns, i) for i in range(table.num_rows)), str(file))


def _numbered(rows: Iterable[Mapping[str, Any]], source: str) -> list[Row]:
    return [Row(f"row {i}", Cells(values, f"{source}, row {i}")) for i, values in enumerate(rows, start=1)]


def _read_hub(path: str, name: str, config: str | None, hub: HubPart) -> list[Row]:
    try:
        rows = list(_load_hub(name, config, hub))
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise UserError(
            f"task.path={path} is not a file, and cannot be loaded as a hub data set ({reason_of(error)}); download "
            f"it and write task.path=FILE with a {_either(EXTENSIONS)} file."
        ) from error
    return _numbered(rows, path)


def _load_hub(name: str, config: str | None, hub: HubPart) -> Iterable[Mapping[str, Any]]:
    """The data set itself or, if it is published as a script, the hub's Parquet copy: none of its code runs."""
    import datasets

    load = partial(datasets.load_dataset, name, config, split=hub.split, data_dir=hub.data_dir)
    try:
        return load()
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        return load(revision=PARQUET_BRANCH)


def columns_of(rows: Iterable[Row]) -> list[str]:
    """The columns that any row has, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.values))
