"""The task `custom`: a user's own prompts, references and preference pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlaif.data.files.cells import text_of
from rlaif.data.files.conversations import is_conversation, opening, prompt_text, response_text
from rlaif.data.files.labels import probability, subset_of
from rlaif.data.files.readers import HubPart, Row, columns_of, read_rows
from rlaif.data.files.rows import Drops, Splitting, TaskRow, content_id, group_of, task_from_rows
from rlaif.data.files.schemas import Schema, Source, recognise
from rlaif.data.report import columns_notes
from rlaif.errors import UserError
from rlaif.records import TaskData

LOGICAL_COLUMNS = ("prompt", "reference", "response_a", "response_b", "label", "id", "subset")

Columns = Mapping[str, str | None]
"""The file's column for each logical one."""


@dataclass(frozen=True)
class _Found:
    """A file's rows by logical column. `titles` are the file's names for these columns, for messages.

    `schema` and `read` say in which schema the file is, and which of its columns were read.
    """

    rows: Sequence[Row]
    titles: Columns
    schema: str
    read: Sequence[str]


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
        found = _own(raw, columns, present, path)
    else:
        found = _converted(schema, raw, columns, present, Source(path, None, splitting.seed), drops)
    left_out = [name for name, column in columns.items() if column is None]
    notes = columns_notes(found.schema, present, found.read, left_out)
    return task_from_rows("custom", _checked_rows(found, path), splitting, drops=drops, notes=notes)


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


def _own(raw: Sequence[Row], columns: Columns, present: Sequence[str], path: str) -> _Found:
    """Rows in the task's own columns."""
    titles = _resolve_columns(columns, present, path)
    read = {name: column for name, column in titles.items() if column is not None}
    rows = [Row(row.place, {name: row.values.get(column) for name, column in read.items()}) for row in raw]
    return _Found(rows, titles, "the task's own columns", [*read.values()])


def _converted(
    schema: Schema, raw: Sequence[Row], columns: Columns, present: Sequence[str], source: Source, drops: Drops
) -> _Found:
    """Rows of a published schema, with the file's id, reference and subset, if any."""
    prompt, known = _prompt_column(columns, present), (*schema.columns, *schema.also)
    label = _label_column(schema, columns, present, source.path)
    users = {"prompt": prompt, **({"label": label} if "label" in schema.also else {})}
    read = [name for name in known if name in present and name not in users]
    read += [column for name, column in users.items() if name in known and column in present and column]
    kept = _kept(schema, columns, present, read, source.path)
    values_at = {row.place: row.values for row in raw}
    rows = []
    for row in schema.read(raw, replace(source, prompt=prompt, label=label), drops):
        own = {name: values_at[row.place].get(column) for name, column in kept.items()}
        rows.append(Row(row.place, {**own, **row.values}))
    named = {"prompt": prompt or "prompt"} if "prompt" in known else {}
    titles = {**dict.fromkeys(("id", "subset")), **named, **schema.named, **kept}
    return _Found(rows, titles, schema.name, [*read, *kept.values()])


def _label_column(schema: Schema, columns: Columns, present: Sequence[str], path: str) -> str | None:
    """The column of a schema's verdicts, if it reads one; the user may name another or none."""
    wanted = columns.get("label", "label")
    if "label" in schema.also and wanted not in ("label", None) and wanted not in present:
        raise UserError(_no_column("label", str(wanted), present, path))
    return wanted


def _kept(
    schema: Schema, columns: Columns, present: Sequence[str], read: Sequence[str], path: str
) -> dict[str, str]:
    """The file's columns for what a published schema leaves to the file."""
    kept: dict[str, str] = {}
    for name in ("id", "reference", "subset"):
        wanted = columns.get(name, name)
        if wanted == name and name not in present:
            wanted = schema.published.get(name)
        elif wanted not in present and wanted not in (name, None):
            raise UserError(_no_column(name, wanted, present, path))
        if wanted is not None and wanted in present and wanted not in read:
            kept[name] = wanted
    return kept


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
            raise UserError(_no_column(name, wanted or name, present, path))
        resolved[name] = wanted if found else None
    for name, other in (("response_a", "response_b"), ("response_b", "response_a")):
        if resolved[name] and not resolved[other]:
            raise UserError(
                f"{path} has a column '{resolved[name]}' for {name} but none for {other} (it has: "
                f"{', '.join(present)}); write task.columns.{other}=NAME with one of these."
            )
    return resolved


def _no_column(name: str, wanted: str, present: Sequence[str], path: str) -> str:
    return (
        f"{path} has no column '{wanted}' for {name} (it has: {', '.join(present)}); write "
        f"task.columns.{name}=NAME with one of these."
    )


def _checked_rows(found: _Found, path: str) -> list[TaskRow]:
    checked: list[TaskRow] = []
    first_with_id: dict[str, str] = {}
    repeats: Counter[str] = Counter()
    pairs_of = Counter(row.place for row in found.rows)  # a row of a published schema may hold several pairs
    numbers: Counter[str] = Counter()
    titles = {name: found.titles.get(name, name) for name in LOGICAL_COLUMNS}
    for row in found.rows:
        values = {name: row.values.get(name) for name in LOGICAL_COLUMNS}
        where = f"{path}, {row.place}"
        prompt, reference, responses = _texts(values, titles, where)
        label = subset = None
        if responses:
            label = probability(values["label"], f"{where}: column '{titles['label']}'")
            subset = subset_of(values["subset"], f"{where}: column '{titles['subset']}'")
        row_id = _explicit_id(values["id"], titles, where)
        if row_id is None:
            row_id = content_id([prompt, reference, responses], repeats)
        elif pairs_of[row.place] > 1:
            numbers[row.place] += 1
            row_id = f"{row_id}#{numbers[row.place]}"
        if row_id in first_with_id:
            raise UserError(
                f"{where}: id '{row_id}' in column '{titles['id']}' is that of {first_with_id[row_id]}; ids must "
                "differ: write others, or task.columns.id=null."
            )
        first_with_id[row_id] = row.place
        group, trusted = group_of(opening(prompt)), label is not None
        checked.append(TaskRow(row_id, group, prompt, reference, responses, label, trusted, where, subset))
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


def _explicit_id(value: Any, columns: Columns, where: str) -> str | None:
    if columns["id"] is None:
        return None
    if value is None or not str(value).strip():
        raise UserError(f"{where}: column '{columns['id']}' is empty; give every row an id or none.")
    return str(value)
