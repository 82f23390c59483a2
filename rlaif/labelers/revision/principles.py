"""Principles: a text file with one a line, and which of them a response is revised by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlaif.errors import UserError
from rlaif.io import stable_uniform

PRINCIPLES_FILE = "principles.txt"


def read_principles(path: Path, place: str = "sft") -> tuple[str, ...]:
    """The principles of a file: its lines, without blank ones and those that begin with #.

    `place` is the group of settings that names it.

    Raises UserError for a file that is missing, not UTF-8, without a principle or with one twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(
            f"{place}.principles: there is no file {path}; write one principle a line into it, or "
            f"{place}.principles=null for those of the task"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from error
    found: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        text = " ".join(line.split())
        if not text or text.startswith("#"):
            continue
        if text in found:
            raise UserError(
                f"{path}, line {number}: repeats the principle of line {found[text]}; leave one out"
            )
        found[text] = number
    if not found:
        raise UserError(f"{path}: no principle; write one a line")
    return tuple(found)


def drawn_principles(
    principles: Sequence[str], rounds: int, *, seed: int, prompt_id: str, place: str = "sft"
) -> tuple[str, ...]:
    """A principle for each round, all different: round r takes one of those left, by a hash of seed, prompt and r.

    Raises UserError if there are fewer principles than rounds.
    """
    if rounds > len(principles):
        raise UserError(
            f"{place}.revisions={rounds} rounds need a principle each, but there are {len(principles)}: write more "
            "principles, or a smaller number"
        )
    left, drawn = list(principles), []
    for number in range(rounds):
        turn = stable_uniform("principle", seed, prompt_id, number)
        drawn.append(left.pop(int(turn * len(left))))
    return tuple(drawn)
