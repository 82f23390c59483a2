"""From checked rows to a task: splits, prompts, training and gold pairs, the same for every preference data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rlaif.data.splits import build_task, check_fractions, check_max_rows, split_position
from rlaif.io import digest, stable_uniform
from rlaif.records import Pair, Prompt, TaskData


@dataclass(frozen=True)
class Splitting:
    """How rows become splits. Raises UserError for an impossible fraction or limit.

    `gold_fraction` is the share of the groups with labelled pairs that is held out for alignment. It is taken from
    the test end of the same hash as the splits, so that gold prompts are test prompts as far as the two fractions
    allow. `max_rows` (None = all) rows are used, drawn by a hash of the group; a smaller number gives a subset.
    """

    test_fraction: float
    validation_fraction: float
    gold_fraction: float
    max_rows: int | None
    seed: int

    def __post_init__(self) -> None:
        check_fractions(
            test_fraction=self.test_fraction,
            validation_fraction=self.validation_fraction,
            gold_fraction=self.gold_fraction,
        )
        check_max_rows(self.max_rows)


@dataclass
class Drops:
    """What is left out on the way from files to a task: counts by reason, and the place of the first of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, example: str) -> None:
        """Count one row."""
        self.counts[reason] += 1
        self.examples.setdefault(reason, example)


@dataclass(frozen=True)
class TaskRow:
    """A checked row: a prompt, possibly a reference, possibly two responses with a label.

    Rows that share `group` share a split. `label` is the probability that the first response is better;
    `trusted` says whether it is certain enough to measure alignment on; `place` (file and row) is for messages;
    `subset` names the part of the data set that the pair belongs to.
    """

    id: str
    group: str
    prompt: str
    reference: str | None
    responses: tuple[str, str] | None
    label: float | None
    trusted: bool
    place: str = ""
    subset: str | None = None


def group_of(text: str) -> str:
    """The key of all texts that differ from `text` only in white space."""
    return digest(" ".join(text.split()), 16)


def content_id(content: Any, repeats: Counter[str]) -> str:
    """An id made from a row's content; `repeats` (updated here) numbers equal rows."""
    own = digest(content, 16)
    repeats[own] += 1
    return own if repeats[own] == 1 else f"{own}-{repeats[own]}"


def task_from_rows(
    name: str, rows: Sequence[TaskRow], splitting: Splitting, *, drops: Drops, notes: dict[str, Any]
) -> TaskData:
    """The task `name` made of `rows`; what is dropped is counted in `drops` and reported in the notes.

    A pair's `gold` is its label, for training pairs too (so that a labeler that gives the gold labels can train on
    them). Dropped are pairs of two equal responses, rows that repeat another and, in a held-out group, pairs that
    are not trusted.
    """
    read = len(rows) + drops.counts.total()
    rows = sorted(rows, key=lambda row: stable_uniform(f"{name}-row", splitting.seed, row.group))
    for row in rows[splitting.max_rows :] if splitting.max_rows is not None else ():
        drops.add("beyond_max_rows_dropped", row.place)
    rows = rows[: splitting.max_rows]
    for reason in ("identical_pairs_dropped", "untrusted_gold_pairs_dropped"):
        drops.counts.setdefault(reason, 0)
    prompts = _prompts(rows, drops)
    pairs, gold = _pairs(rows, prompts, splitting, drops)
    task = build_task(
        name,
        prompts,
        pairs=pairs,
        gold_pairs=gold,
        test_fraction=splitting.test_fraction,
        validation_fraction=splitting.validation_fraction,
        seed=splitting.seed,
        notes={"rows_read": read, "rows": len(rows), **notes, **drops.counts},
    )
    places = {row.id: row.place for row in rows if row.place}
    return replace(task, examples=drops.examples, places=places)


def _prompts(rows: Sequence[TaskRow], drops: Drops) -> list[tuple[str, Prompt]]:
    """(group, prompt) for each distinct text and reference; pairs get the id of a text's first prompt."""
    found: dict[str, dict[str | None, Prompt]] = {}
    groups: dict[str, str] = {}
    for row in rows:
        groups[row.prompt] = row.group
        same = found.setdefault(row.prompt, {})
        if row.reference in same or (row.reference is None and same):
            if row.responses is None:
                drops.add("repeated_rows_dropped", row.place)
            continue
        # A reference that comes later completes the prompt instead of duplicating it.
        bare = same.pop(None, None)
        same[row.reference] = Prompt(bare.id if bare else row.id, row.prompt, row.reference)
    first: dict[str, str] = {}
    prompts = []
    for text, members in found.items():
        for prompt in members.values():
            leader = first.setdefault(groups[text], prompt.id)
            prompts.append((groups[text], replace(prompt, group=None if leader == prompt.id else leader)))
    return prompts


def _pairs(
    rows: Sequence[TaskRow], prompts: Sequence[tuple[str, Prompt]], splitting: Splitting, drops: Drops
) -> tuple[list[Pair], list[Pair]]:
    """(training pairs, gold pairs); no group is in both, and prompts that differ only in white space share an id."""
    leader: dict[str, Prompt] = {}
    for _, prompt in prompts:
        leader.setdefault(group_of(prompt.prompt), prompt)
    labelled = {row.group for row in rows if row.label is not None}
    seed, share = splitting.seed, splitting.gold_fraction
    held_out = {group for group in labelled if split_position(group, seed=seed) < share}
    pairs: list[Pair] = []
    gold: list[Pair] = []
    for row in rows:
        if row.responses is None:
            continue
        if row.responses[0] == row.responses[1]:
            drops.add("identical_pairs_dropped", row.place)
        elif row.group in held_out and not row.trusted:
            drops.add("untrusted_gold_pairs_dropped", row.place)
        else:
            pair = _pair(row, row.responses, leader[group_of(row.prompt)])
            (gold if row.group in held_out else pairs).append(pair)
    return pairs, gold


def _pair(row: TaskRow, responses: tuple[str, str], prompt: Prompt) -> Pair:
    return Pair(
        id=row.id,
        prompt_id=prompt.id,
        prompt=row.prompt,
        response_a=responses[0],
        response_b=responses[1],
        origin="dataset",
        gold=row.label,
        gold_source=None if row.label is None else "human",
        group=prompt.group,
        reference=prompt.reference if row.reference is None else row.reference,
        subset=row.subset,
    )
