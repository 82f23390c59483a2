"""The task `custom`: a user's own prompts, references and preference pairs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlaif.data.files.cells import text_of
from rlaif.data.files.conversations import is_conversation, opening, prompt_text, response_text
from rlaif.data.files.readers import HubPart, Row, columns_of, read_rows
from rlaif.data.files.rows import Drops, Splitting, TaskRow, content_id, group_of, task_from_rows
from rlaif.data.files.schemas import Schema, Source, recognise
from rlaif.data.report import columns_notes
from rlaif.errors import UserError
from rlaif.records import TaskData

LOGICAL_COLUMNS = ("prompt", "reference", "response_a", "response_b", "label", "id")

Columns = Mapping[str, str | None]
"""The file's column for each logical one."""


def load_custom(*, path: str, hub: HubPart, columns: Columns, splitting: Splitting) -> TaskData:
    """Read a user's file (or hub data set) as a task; published schemas are recognised by their columns.

    Args:
        path: `.jsonl .jsonl.gz .json .csv .parquet`, or a hub id if no such file exists.
        hub: which part of a hub data set is read.
        columns: the file's column for each of `LOGICAL_COLUMNS`; one that is left out has its logical name, one
            that is None is not read.

    Unlabelled pairs are used for training and never serve as gold. Raises UserError, naming file, row and column,
    for anything that cannot be read as intended.
    """
    for name in columns:
        if name not in LOGICAL_COLUMNS:
            raise UserError(f"task.columns.{name} is unknown; the columns are {', '.join(LOGICAL_COLUMNS)}.")
    raw, drops = read_rows(path, hub), Drops()
    present = columns_of(raw)
    schema = _schema(columns, present)
    if schema is None:
        _refuse_mixed(raw, columns, present, path)
        resolved = _resolve_columns(columns, present, path)
        read, name = [column for column in resolved.values() if column], "the task's own columns"
    else:
        raw, read = _converted(schema, raw, columns, present, Source(path, None, splitting.seed), drops)
        converted = columns_of(raw)
        resolved = {name: name if name in converted else None for name in LOGICAL_COLUMNS}
        name = schema.name
    rows = _checked_rows(raw, resolved, path)
    notes = columns_notes(name, present, read, [key for key, column in columns.items() if column is None])
    return task_from_rows("custom", rows, splitting, drops=drops, notes=notes)


def _schema(columns: Columns, present: Sequence[str]) -> Schema | None:
    """The published schema of the file; None if it has the task's own columns, or `columns` say so."""
    pair = ("response_a", "response_b")
    if any(columns.get(name, name) not in (name, None) for name in pair) or set(pair) <= set(present):
        return None
    prompt, reference = _prompt_column(columns, present), columns.get("reference", "reference")
    if prompt and reference in present and not {"chosen", "rejected"} <= set(present):
        return None
    left_out = {name for name in LOGICAL_COLUMNS if columns.get(name, name) is None}
    return recognise([name for name in present if name not in left_out], prompt)


def _refuse_mixed(raw: Sequence[Row], columns: Columns, present: Sequence[str], path: str) -> None:
    """Raise UserError for a row whose pair is in a published schema's columns and not in the task's own."""
    own = [columns.get(name, name) for name in ("response_a", "response_b")]
    other = recognise(present, _prompt_column(columns, present))
    if other is None or len(other.columns) < 2 or not set(own) & set(present):
        return
    unread = [name for name in other.columns if name not in ("prompt", "label", *own)]
    for row in raw if unread else ():
        bare = all(row.values.get(str(name)) is None for name in own)
        if bare and all(row.values.get(name) is not None for name in unread):
            raise UserError(
                f"{path}, {row.place}: has nothing in {' and '.join(map(str, own))}, but {', '.join(unread)}; a "
                "file is read in one schema: split it, or bring its rows into the same columns."
            )


def _prompt_column(columns: Columns, present: Sequence[str]) -> str | None:
    wanted = columns.get("prompt", "prompt")
    return wanted if wanted in present else None


def _converted(
    schema: Schema, raw: Sequence[Row], columns: Columns, present: Sequence[str], source: Source, drops: Drops
) -> tuple[list[Row], list[str]]:
    """Rows in the task's own columns (with the file's id and reference, if any), and the columns read."""
    prompt, known = _prompt_column(columns, present), (*schema.columns, *schema.also)
    converted = schema.read(raw, replace(source, prompt=prompt), drops)
    read = [name for name in known if name in present and name != "prompt"]
    if prompt and "prompt" in known:
        read.append(prompt)
    kept = {
        name: column
        for name in ("id", "reference")
        if (column := columns.get(name, name)) in present and column not in read and column is not None
    }
    values_at = {row.place: row.values for row in raw}
    rows = []
    for row in converted:
        own = {name: values_at[row.place].get(column) for name, column in kept.items()}
        rows.append(Row(row.place, {**own, **row.values}))
    return rows, [*read, *kept.values()]


def _resolve_columns(columns: Columns, present: Sequence[str], path: str) -> dict[str, str | None]:
    """The file's column for each logical one; None for an optional one that the file lacks."""
    resolved: dict[str, str | None] = {}
    for name in LOGICAL_COLUMNS:
        wanted = columns.get(name, name)
        found = wanted in present
        if name == "prompt" and wanted is None:
            raise UserError(
                f"task.columns.prompt=null leaves out the prompt, which every row needs; {path} has the columns "
                f"{', '.join(present)}."
            )
        if not found and (name == "prompt" or wanted not in (name, None)):
            raise UserError(
                f"{path} has no column '{wanted or name}' for {name} (it has: {', '.join(present)}); "
                f"write task.columns.{name}=NAME with one of these."
            )
        resolved[name] = wanted if found else None
    for name, other in (("response_a", "response_b"), ("response_b", "response_a")):
        if resolved[name] and not resolved[other]:
            raise UserError(
                f"{path} has a column '{resolved[name]}' for {name} but none for {other} (it has: "
                f"{', '.join(present)}); write task.columns.{other}=NAME with one of these."
            )
    return resolved


def _checked_rows(raw: Iterable[Row], columns: Columns, path: str) -> list[TaskRow]:
    checked: list[TaskRow] = []
    first_with_id: dict[str, str] = {}
    repeats: Counter[str] = Counter()
    for row in raw:
        values = {name: row.values.get(column) if column else None for name, column in columns.items()}
        where = f"{path}, {row.place}"
        prompt, reference, responses = _texts(values, columns, where)
        label = _label(values["label"], columns, where) if responses else None
        row_id = _explicit_id(values["id"], columns, where)
        if row_id is None:
            row_id = content_id([prompt, reference, responses], repeats)
        elif row_id in first_with_id:
            first = first_with_id[row_id]
            raise UserError(
                f"{where}: id '{row_id}' in column '{columns['id']}' is that of {first}; ids must differ."
            )
        first_with_id[row_id] = row.place
        group, trusted = group_of(opening(prompt)), label is not None
        checked.append(TaskRow(row_id, group, prompt, reference, responses, label, trusted, where))
    return checked


def _texts(
    values: dict[str, Any], columns: Columns, where: str
) -> tuple[str, str | None, tuple[str, str] | None]:
    for name in ("prompt", "reference", "response_a", "response_b"):
        value, at = values[name], f"{where}: column '{columns[name]}'"
        if is_conversation(value):
            values[name] = prompt_text(value, at) if name == "prompt" else response_text(value, at)
        elif value is not None:
            text_of(value, at)
    prompt, response_a, response_b = values["prompt"], values["response_a"], values["response_b"]
    if not (prompt or "").strip():
        raise UserError(f"{where}: column '{columns['prompt']}' is empty; every row needs a prompt.")
    if (response_a is None) != (response_b is None):
        there, missing = ("response_a", "response_b") if response_b is None else ("response_b", "response_a")
        raise UserError(
            f"{where}: has a {there} (column '{columns[there]}') without a {missing} (column "
            f"'{columns[missing]}'); give both or neither."
        )
    reference = values["reference"] if (values["reference"] or "").strip() else None
    return prompt, reference, None if response_a is None else (response_a, response_b)


def _label(value: Any, columns: Columns, where: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        label = float(value)
    except (TypeError, ValueError, OverflowError):
        label = math.nan
    if not 0.0 <= label <= 1.0:  # false for NaN too
        raise UserError(
            f"{where}: column '{columns['label']}' is {value!r}, but a label is a number from 0 to 1, the "
            "probability that response_a is better."
        )
    return label


def _explicit_id(value: Any, columns: Columns, where: str) -> str | None:
    if columns["id"] is None:
        return None
    if value is None or not str(value).strip():
        raise UserError(f"{where}: column '{columns['id']}' is empty; give every row an id or none.")
    return str(value)
