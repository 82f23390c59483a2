"""The tasks `helpful` and `harmless`: dialogues with human preferences, in the schema of Anthropic/hh-rlhf."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix

from rlaif.data.files.readers import HubPart, Row, columns_of, read_rows
from rlaif.data.files.rows import Drops, Splitting, TaskRow, content_id, group_of, task_from_rows
from rlaif.data.report import columns_notes
from rlaif.errors import UserError
from rlaif.io import stable_uniform
from rlaif.records import TaskData

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


@dataclass(frozen=True)
class SplitDialogue:
    """Two dialogues that differ only in their last turn.

    `prefix` ends in that turn's "Assistant:"; `prefix + chosen` and `prefix + rejected` are exactly the dialogues.
    """

    prefix: str
    chosen: str
    rejected: str

    @property
    def prompt(self) -> str:
        """What was said before the last turn."""
        return self.prefix.removesuffix(ASSISTANT).strip()


def split_dialogue(chosen: str, rejected: str) -> SplitDialogue | None:
    """Two dialogues split where they diverge; None unless they share everything before one last assistant turn."""
    # Both answers may start alike, so that the shared text does not end at the turn.
    turn = commonprefix([chosen, rejected]).rfind(ASSISTANT)
    if turn < 0:
        return None
    end = turn + len(ASSISTANT)
    split = SplitDialogue(chosen[:end], chosen[end:], rejected[end:])
    continues = any(mark in last for mark in (HUMAN, ASSISTANT) for last in (split.chosen, split.rejected))
    return None if continues or not split.prompt else split


def sided(row: Row, is_a: bool, prompt: str, better: str, worse: str) -> Row:
    """The pair as `response_a`, `response_b` and `label`; `is_a`: the better response is a."""
    a, b = (better, worse) if is_a else (worse, better)
    return Row(row.place, {"prompt": prompt, "response_a": a, "response_b": b, "label": float(is_a)})


def hh_rows(rows: Sequence[Row], *, path: str, seed: int, drops: Drops) -> list[Row]:
    """Rows of `chosen` and `rejected` dialogues as pairs; what is dropped is counted in `drops`.

    A pair has `prompt`, `response_a`, `response_b` and `label`, which is 1.0 if a is the chosen one; a hash of the
    row and `seed` decides which side that is. Rows whose dialogues diverge before their last turn are dropped.
    Raises UserError for a row without two texts, and if every row would be dropped.
    """
    pairs: list[Row] = []
    drops.counts.setdefault("diverging_rows_dropped", 0)
    for row in rows:
        pair = _hh_row(row, path, seed)
        if pair is None:
            drops.add("diverging_rows_dropped", f"{path}, {row.place}")
        else:
            pairs.append(pair)
    if not pairs:
        own = " (the file has a column 'prompt')" if any("prompt" in row.values for row in rows) else ""
        raise UserError(
            f"{path}: in no row do 'chosen' and 'rejected' share a dialogue up to its last {ASSISTANT!r}; "
            f"task=custom task.path={path} reads prompt, chosen and rejected{own}, and other schemas."
        )
    return pairs


def _hh_row(row: Row, path: str, seed: int) -> Row | None:
    chosen, rejected = row.values.get("chosen"), row.values.get("rejected")
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise UserError(
            f"{path}, {row.place}: columns 'chosen' and 'rejected' must both hold a dialogue as text; "
            f"task=custom task.path={path} reads messages and other schemas."
        )
    split = split_dialogue(chosen, rejected)
    if split is None:
        return None
    chosen_is_a = stable_uniform("hh-side", seed, chosen, rejected) < 0.5
    return sided(row, chosen_is_a, split.prompt, split.chosen.strip(), split.rejected.strip())


def load_hh(*, name: str, paths: Sequence[str], hub: HubPart, splitting: Splitting) -> TaskData:
    """The dialogue task `name`: prompt = the dialogue up to the human's last turn; pairs with human labels.

    Args:
        paths: files in the published schema, or hub ids.
        hub: which part of a hub data set is read (`data_dir` is `helpful-base` or `harmless-base`).

    Every pair may serve as gold (Lee et al. 2023 do not filter HH). Dialogues that open with the same turn share a
    split, since the data set compares several turns of one conversation. There are no references: the chosen
    responses are human labels, and a policy tuned on them would not be one of AI feedback.
    Raises UserError, naming file and row, for anything that cannot be read as intended.
    """
    rows: list[TaskRow] = []
    repeats: Counter[str] = Counter()
    drops = Drops()
    columns: dict[str, None] = {}
    for path in paths:
        raw = read_rows(path, hub)
        columns |= dict.fromkeys(columns_of(raw))
        pairs = hh_rows(raw, path=path, seed=splitting.seed, drops=drops)
        rows += [_task_row(pair, repeats, path) for pair in pairs]
    notes = columns_notes("chosen and rejected dialogues", columns, ("chosen", "rejected"))
    return task_from_rows(name, rows, splitting, drops=drops, notes=notes)


def _task_row(pair: Row, repeats: Counter[str], path: str) -> TaskRow:
    prompt, label = pair.values["prompt"], pair.values["label"]
    responses = pair.values["response_a"], pair.values["response_b"]
    group, place = group_of(prompt.split(ASSISTANT)[0]), f"{path}, {pair.place}"
    own = content_id([prompt, *responses], repeats)
    return TaskRow(own, group, prompt, None, responses, label, trusted=True, place=place)
