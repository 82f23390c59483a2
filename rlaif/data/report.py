"""What was read from a task's files, kept and dropped, for terminal, summary and page."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from rlaif.records import TaskData

NAMES = (
    "prompt",
    "reference",
    "response_a",
    "response_b",
    "label",
    "id",
    "subset",
    "chosen",
    "rejected",
    "completion",
    "messages",
    "preference",
    "summary",
)
"""Columns that mean something to a task; a column with nearly such a name was perhaps meant as one."""

REASONS = {
    "diverging_rows_dropped": "whose dialogues part before the last turn",
    "without_shared_prompt_dropped": "without a prompt, own or shared",
    "without_partner_dropped": "whose prompt has no completion with the other label to compare with",
    "news_rows_dropped": "about something other than a post",
    "beyond_max_rows_dropped": "beyond task.max_rows",
    "repeated_rows_dropped": "that repeat another's prompt and reference",
    "identical_pairs_dropped": "with two equal responses",
    "untrusted_gold_pairs_dropped": "held out for gold without a (sure) label",
}
"""By the name of a note that counts dropped rows: which rows these are."""

SHOWN = 20
NEARNESS = 0.8  # "responce_a" and "response_1" are near response_a, "source" is near nothing


def columns_notes(
    schema: str, present: Iterable[str], read: Collection[str], left_out: Collection[str] = ()
) -> dict[str, Any]:
    """Notes of a task: the schema, the columns read and not read, and unread ones that were perhaps meant.

    `left_out` are names for which the user wants no column.
    """
    unread = [name for name in present if name not in read]
    return {
        "schema": schema,
        "columns_read": [name for name in dict.fromkeys(read) if name in set(present)],
        "columns_not_read": unread,
        "columns_near": [near for name in unread if (near := _near(name, {*read, *left_out}))],
    }


def _near(name: str, read: Collection[str]) -> str | None:
    """`name (label?)` for an unread column that resembles one with a meaning, or `name` if it is one."""
    plain = {known.replace("_", ""): known for known in NAMES}
    word = "".join(c for c in name.casefold() if c.isalnum())
    for number, letter in ("1", "a"), ("2", "b"):
        word = word.removesuffix(number) + letter if word.endswith(number) else word
    open_names = [known for known in plain if plain[known] not in read]
    found = [word] if word in plain else get_close_matches(word, open_names, n=1, cutoff=NEARNESS)
    if not found or found[0] not in open_names:
        return None
    known = plain[found[0]]
    return name if name == known else f"{name} ({known}?)"


def report_metrics(task: TaskData) -> dict[str, Any]:
    """The report as flat `data/...` entries of a summary; sizes only for a task that is not read from files."""
    notes = task.notes
    metrics: dict[str, Any] = {"data/n_train": len(task.train), "data/n_val": len(task.validation)}
    if "rows_read" not in notes:
        return metrics
    dropped = {name: notes[name] for name in REASONS if name in notes}
    metrics |= {
        "data/n_test": len(task.test),
        "data/pairs": len(task.pairs),
        "data/gold_pairs": len(task.gold_pairs),
        "data/rows_read": notes["rows_read"],
        "data/rows_kept": notes["rows_read"] - sum(dropped.values()),
        "data/dropped": sum(dropped.values()),
        **{f"data/{name}": count for name, count in dropped.items()},
        "data/schema": notes["schema"],
    }
    for name in ("columns_read", "columns_not_read", "columns_near"):
        if notes[name]:
            metrics[f"data/{name}"] = ", ".join(notes[name])
    return metrics


def report_lines(task: TaskData) -> tuple[list[str], list[str]]:
    """(information, warnings) as sentences; none for a task without files."""
    notes, metrics = task.notes, report_metrics(task)
    if "rows_read" not in notes:
        return [], []
    told = [
        f"{metrics['data/rows_read']} rows read as {notes['schema']} (columns "
        f"{_listed(notes['columns_read'])}), {metrics['data/rows_kept']} kept"
    ]
    if notes["columns_not_read"]:
        told.append(f"columns not read: {_listed(notes['columns_not_read'])}")
    warned = [
        f"{notes[name]} of {notes['rows_read']} rows dropped: rows {what} (such as {task.examples[name]})"
        for name, what in REASONS.items()
        if notes.get(name) and name != "beyond_max_rows_dropped"  # that was asked for
    ]
    if notes.get("beyond_max_rows_dropped"):
        told.append(f"{notes['beyond_max_rows_dropped']} rows not used: beyond task.max_rows")
    if notes["columns_near"]:
        warned.append(
            f"not read, but perhaps meant: {', '.join(notes['columns_near'])}; rename the column, or name it in "
            "task.columns"
        )
    return told, warned


def _listed(names: Sequence[str]) -> str:
    """The first `SHOWN` of the names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
