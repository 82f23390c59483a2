"""Which split an item belongs to: a hash of its key, so that size and order change nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from rlaif.errors import UserError
from rlaif.io import digest, stable_uniform
from rlaif.records import Pair, Prompt, TaskData, to_dict

Split = Literal["train", "validation", "test"]


def split_position(key: str, *, seed: int) -> float:
    """Where `key` falls in [0, 1): the test split lies at the low end, the validation split follows."""
    return stable_uniform("split", seed, key)


def split_of(key: str, *, test_fraction: float, validation_fraction: float, seed: int) -> Split:
    """The split of `key`, decided by its hash alone.

    Items that must stay together (copies, pairs of one prompt) share a key. A larger
    `validation_fraction` takes keys from train only: the test split never changes with it.
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
    """The task of (split key, prompt) rows, in the order given; `fingerprint` hashes all the content."""
    splits: dict[Split, list[Prompt]] = {"train": [], "validation": [], "test": []}
    for key, prompt in prompts:
        split = split_of(key, test_fraction=test_fraction, validation_fraction=validation_fraction, seed=seed)
        splits[split].append(prompt)
    parts: list[Sequence[Any]] = [*splits.values(), pairs, gold_pairs]
    return TaskData(
        name=name,
        train=tuple(splits["train"]),
        validation=tuple(splits["validation"]),
        test=tuple(splits["test"]),
        pairs=tuple(pairs),
        gold_pairs=tuple(gold_pairs),
        fingerprint=digest([[to_dict(record) for record in part] for part in parts]),
        notes=notes,
    )


def check_fractions(**fractions: float) -> None:
    """Raise UserError unless each fraction is in [0, 1] and test plus validation leave room to train."""
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
