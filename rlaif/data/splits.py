"""Which split an item belongs to: a hash of its key, so that size and order change nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from rlaif.errors import UserError
from rlaif.io import digest, stable_uniform
from rlaif.records import Pair, Prompt, TaskData, to_dict

Split = Literal["train", "validation", "test"]


def split_position(key: str, *, seed: int) -> float:
    """The position of `key` in [0, 1): the test split is at the low end, then comes the validation split."""
    return stable_uniform("split", seed, key)


def split_of(key: str, *, test_fraction: float, validation_fraction: float, seed: int) -> Split:
    """The split of `key`, which depends only on its hash.

    Items that must stay together (copies, pairs of one prompt) share a key. A larger `validation_fraction` takes
    keys only from train, never from the test split.
    """
    position = split_position(key, seed=seed)
    if position < test_fraction:
        return "test"
    return "validation" if position < test_fraction + validation_fraction else "train"


def build_task(
    name: str,
    prompts: Iterable[tuple[str, Prompt]],
    *,
    pairs: Sequence[Pair],
    gold_pairs: Sequence[Pair],
    test_fraction: float,
    validation_fraction: float,
    seed: int,
    notes: dict[str, Any],
) -> TaskData:
    """The task with the given (split key, prompt) rows, in that order; `fingerprint` hashes all the content."""
    splits: dict[Split, list[Prompt]] = {"train": [], "validation": [], "test": []}
    for key, prompt in prompts:
        split = split_of(key, test_fraction=test_fraction, validation_fraction=validation_fraction, seed=seed)
        splits[split].append(prompt)
    train, validation, test = (tuple(split) for split in splits.values())
    parts = (train, validation, test, tuple(pairs), tuple(gold_pairs))
    return TaskData(name, *parts, digest([[to_dict(record) for record in part] for part in parts]), notes)


def check_fractions(**fractions: float) -> None:
    """Raise UserError unless each fraction is in [0, 1] and test plus validation leave something to train on."""
    for name, value in fractions.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
            raise UserError(f"task.{name}={value} must be a fraction between 0 and 1.")
    held_out = fractions["test_fraction"] + fractions["validation_fraction"]
    if held_out >= 1.0:
        raise UserError(
            f"task.test_fraction + task.validation_fraction = {held_out:g} leaves nothing to train on; "
            "write fractions that sum to less than 1."
        )


def check_max_rows(max_rows: int | None) -> None:
    """Raise UserError for a row limit that keeps nothing (None means no limit)."""
    if max_rows is not None and max_rows < 1:
        raise UserError(f"task.max_rows={max_rows} must be at least 1, or null for all rows.")
