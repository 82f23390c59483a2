"""The task `custom`: a user's own prompts, references and preference pairs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rlaif.data.hh import hh_rows
from rlaif.data.readers import HubPart, Row, columns_of, read_rows
from rlaif.data.rows import Splitting, TaskRow, content_id, task_from_rows
from rlaif.errors import UserError
from rlaif.io import digest
from rlaif.records import TaskData

LOGICAL_COLUMNS = ("prompt", "reference", "response_a", "response_b", "label", "id")


def load_custom(*, path: str, hub: HubPart, columns: dict[str, str], splitting: Splitting) -> TaskData:
    """Read a user's file (or hub data set) as a task; the published HH schema is recognised.

    Args:
        path: `.jsonl .jsonl.gz .json .csv .parquet`, or a hub id when no such file exists.
        hub: which part of a hub data set is read.
        columns: the file's column for each logical one (`prompt reference response_a response_b label
            id`); one that is left out goes by its logical name.

    Unlabelled pairs are trained on and never serve as gold. Raises UserError, naming file, row and
    column, for anything that cannot be read as meant.
    """
    raw, notes = read_rows(path, hub), {}
    present = columns_of(raw)
    if {"chosen", "rejected"} <= set(present) and columns.get("prompt", "prompt") not in present:
        raw, diverging = hh_rows(raw, path=path, seed=splitting.seed)
        columns, present = {"id": columns.get("id", "id")}, columns_of(raw)
        notes = {"diverging_rows_dropped": diverging}
    rows = _checked_rows(raw, _resolve_columns(columns, present, path), path)
    return task_from_rows("custom", rows, splitting, notes=notes)


def _resolve_columns(columns: dict[str, str], present: Sequence[str], path: str) -> dict[str, str | None]:
    """The file's column for each logical one; None for an optional one that the file does not have."""
    for name in columns:
        if name not in LOGICAL_COLUMNS:
            raise UserError(f"task.columns.{name} is unknown; the columns are {', '.join(LOGICAL_COLUMNS)}.")
    resolved: dict[str, str | None] = {}
    for name in LOGICAL_COLUMNS:
        wanted = columns.get(name, name)
        found = wanted in present
        if not found and (name == "prompt" or wanted != name):
            raise UserError(
                f"{path} has no column '{wanted}' for {name} (it has: {', '.join(present)}); "
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


def _checked_rows(raw: Iterable[Row], columns: dict[str, str | None], path: str) -> list[TaskRow]:
    checked: list[TaskRow] = []
    first_with_id: dict[str, str] = {}
    repeats: Counter[str] = Counter()
    for row in raw:
        values = {name: row.values.get(column) if column else None for name, column in columns.items()}
        prompt, reference, responses = _texts(values, row, columns, path)
        label = _label(values["label"], row, columns, path) if responses else None
        row_id = _explicit_id(values["id"], row, columns, path)
        if row_id is None:
            row_id = content_id([prompt, reference, responses], repeats)
        elif row_id in first_with_id:
            raise UserError(
                f"{path}, {row.place}: id '{row_id}' in column '{columns['id']}' is that of "
                f"{first_with_id[row_id]}; ids must differ."
            )
        first_with_id[row_id] = row.place
        trusted = label is not None
        checked.append(TaskRow(row_id, digest(prompt, 16), prompt, reference, responses, label, trusted))
    return checked


def _texts(
    values: dict[str, Any], row: Row, columns: dict[str, str | None], path: str
) -> tuple[str, str | None, tuple[str, str] | None]:
    for name in ("prompt", "reference", "response_a", "response_b"):
        if values[name] is not None and not isinstance(values[name], str):
            raise UserError(
                f"{path}, {row.place}: column '{columns[name]}' must hold text, "
                f"not a {type(values[name]).__name__}."
            )
    prompt, response_a, response_b = values["prompt"], values["response_a"], values["response_b"]
    if not (prompt or "").strip():
        raise UserError(
            f"{path}, {row.place}: column '{columns['prompt']}' is empty; every row needs a prompt."
        )
    if (response_a is None) != (response_b is None):
        there, missing = ("response_a", "response_b") if response_b is None else ("response_b", "response_a")
        raise UserError(
            f"{path}, {row.place}: has a {there} (column '{columns[there]}') without a {missing} "
            f"(column '{columns[missing]}'); give both or neither."
        )
    reference = values["reference"] if (values["reference"] or "").strip() else None
    return prompt, reference, None if response_a is None else (response_a, response_b)


def _label(value: Any, row: Row, columns: dict[str, str | None], path: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        label = float(value)
    except (TypeError, ValueError):
        label = math.nan
    if not 0.0 <= label <= 1.0:  # false for NaN too
        raise UserError(
            f"{path}, {row.place}: column '{columns['label']}' is {value!r}, but a label is a number from 0 to 1, "
            "the probability that response_a is better."
        )
    return label


def _explicit_id(value: Any, row: Row, columns: dict[str, str | None], path: str) -> str | None:
    if columns["id"] is None:
        return None
    if value is None or not str(value).strip():
        raise UserError(
            f"{path}, {row.place}: column '{columns['id']}' is empty; give every row an id or none."
        )
    return str(value)
