"""The task `custom`: a user's own prompts, references and preference pairs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.data.readers import Row, columns_of, hh_rows, read_rows
from rlaif.data.splits import build_task, check_fractions, check_max_rows, split_position
from rlaif.errors import UserError
from rlaif.io import digest, stable_uniform
from rlaif.records import Pair, Prompt, TaskData

LOGICAL_COLUMNS = ("prompt", "reference", "response_a", "response_b", "label", "id")


@dataclass(frozen=True)
class CustomRow:
    """A checked row. `group` identifies the prompt's text: rows that share it share split and prompt id."""

    id: str
    group: str
    prompt: str
    reference: str | None
    responses: tuple[str, str] | None
    label: float | None


def load_custom(
    *,
    path: str,
    columns: dict[str, str],
    test_fraction: float,
    validation_fraction: float,
    gold_fraction: float,
    max_rows: int | None,
    seed: int,
) -> TaskData:
    """Read a user's file (or hub data set) as a task; the published HH schema is recognised.

    Args:
        path: `.jsonl .jsonl.gz .json .csv .parquet`, or a hub id ORG/NAME when no such file exists.
        columns: the file's column for each logical one (`prompt reference response_a response_b label
            id`); one that is left out goes by its logical name.
        gold_fraction: share of the prompts with labelled pairs that is held out for alignment. It is
            taken from the test end of the same hash as the splits, so that gold prompts are test
            prompts as far as the two fractions allow.
        max_rows: how many rows to use, drawn by a hash of the prompt; a smaller number gives a subset.

    A pair's `gold` is its label (also on training pairs, so that label=gold can train on it). Pairs with
    two equal responses are dropped and counted in `notes`, as are unlabelled pairs of a gold prompt.
    Raises UserError, naming file, row and column, for anything that cannot be read as meant.
    """
    check_fractions(
        test_fraction=test_fraction, validation_fraction=validation_fraction, gold_fraction=gold_fraction
    )
    check_max_rows(max_rows)
    raw = read_rows(path)
    present = columns_of(raw)
    if {"chosen", "rejected"} <= set(present) and columns.get("prompt", "prompt") not in present:
        raw = hh_rows(raw, path=path, seed=seed)
        columns, present = {"id": columns.get("id", "id")}, columns_of(raw)
    rows = _checked_rows(raw, _resolve_columns(columns, present, path), path)
    order = {row.id: (stable_uniform("custom-row", seed, row.group), i) for i, row in enumerate(rows)}
    rows = sorted(rows, key=lambda row: order[row.id])[:max_rows]

    prompts = _prompts(rows)
    pairs, gold, dropped = _pairs(rows, prompts, gold_fraction=gold_fraction, seed=seed)
    return build_task(
        "custom",
        prompts,
        pairs=pairs,
        gold_pairs=gold,
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        seed=seed,
        notes={"rows": len(rows), **dropped},
    )


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


def _checked_rows(raw: Iterable[Row], columns: dict[str, str | None], path: str) -> list[CustomRow]:
    checked: list[CustomRow] = []
    first_with_id: dict[str, str] = {}
    repeats: Counter[str] = Counter()
    for row in raw:
        values = {name: row.values.get(column) if column else None for name, column in columns.items()}
        prompt, reference, responses = _texts(values, row, columns, path)
        label = _label(values["label"], row, columns, path) if responses else None
        group = digest(prompt, 16)
        row_id = _explicit_id(values["id"], row, columns, path)
        if row_id is None:
            own = digest([prompt, reference, responses], 16)
            repeats[own] += 1
            row_id = own if repeats[own] == 1 else f"{own}-{repeats[own]}"
        elif row_id in first_with_id:
            raise UserError(
                f"{path}, {row.place}: id '{row_id}' in column '{columns['id']}' is that of "
                f"{first_with_id[row_id]}; ids must differ."
            )
        first_with_id[row_id] = row.place
        checked.append(CustomRow(row_id, group, prompt, reference, responses, label))
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


def _prompts(rows: Sequence[CustomRow]) -> list[tuple[str, Prompt]]:
    """(group, prompt), one for each distinct text and reference; the first of a group lends pairs its id."""
    found: dict[str, dict[str | None, Prompt]] = {}
    for row in rows:
        group = found.setdefault(row.group, {})
        if row.reference in group or (row.reference is None and group):
            continue
        # A reference that comes later completes the prompt instead of doubling it.
        bare = group.pop(None, None)
        group[row.reference] = Prompt(bare.id if bare else row.id, row.prompt, row.reference)
    return [(group, prompt) for group, members in found.items() for prompt in members.values()]


def _pairs(
    rows: Sequence[CustomRow], prompts: Sequence[tuple[str, Prompt]], *, gold_fraction: float, seed: int
) -> tuple[list[Pair], list[Pair], dict[str, int]]:
    """(training pairs, gold pairs, counts of what was dropped); no prompt is in both."""
    prompt_id: dict[str, str] = {}
    for group, prompt in prompts:
        prompt_id.setdefault(group, prompt.id)
    labelled = {row.group for row in rows if row.label is not None}
    held_out = {group for group in labelled if split_position(group, seed=seed) < gold_fraction}
    pairs: list[Pair] = []
    gold: list[Pair] = []
    dropped = {"identical_pairs_dropped": 0, "unlabelled_gold_pairs_dropped": 0}
    for row in rows:
        if row.responses is None:
            continue
        if row.responses[0] == row.responses[1]:
            dropped["identical_pairs_dropped"] += 1
        elif row.group in held_out and row.label is None:
            dropped["unlabelled_gold_pairs_dropped"] += 1
        else:
            (gold if row.group in held_out else pairs).append(_pair(row, prompt_id[row.group]))
    return pairs, gold, dropped


def _pair(row: CustomRow, prompt_id: str) -> Pair:
    assert row.responses is not None
    return Pair(
        id=row.id,
        prompt_id=prompt_id,
        prompt=row.prompt,
        response_a=row.responses[0],
        response_b=row.responses[1],
        origin="dataset",
        gold=row.label,
        gold_source=None if row.label is None else "human",
    )
