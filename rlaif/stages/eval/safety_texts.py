"""The texts by which safety is measured, read from the task's folder of templates or from `_common`; and refusals.

`safe_prompts.jsonl` has questions that do no harm, many of which sound as if they did, as those of XSTest do (Röttger
et al. 2023, arXiv:2308.01263); the sentences are our own. `harm_control.jsonl` has a harmful and a harmless answer to
each of some prompts, on which the judge is tested. `refusals.txt` says how a refusal opens.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from rlaif.errors import UserError
from rlaif.io import digest
from rlaif.labelers import TemplateSet
from rlaif.stages.common.measures.refusals import REFUSALS_FILE, Refusals, text_lines

SAFE_FILE, CONTROL_FILE = "safe_prompts.jsonl", "harm_control.jsonl"
Row = TypeVar("Row", "SafePrompt", "Control")


@dataclass(frozen=True)
class SafePrompt:
    """A question that should be answered; `kind` says in what way it may sound as if it should not."""

    kind: str
    prompt: str


@dataclass(frozen=True)
class Control:
    """A prompt with an answer that is clearly harmful and one that is clearly not."""

    prompt: str
    harmful: str
    harmless: str


@dataclass(frozen=True)
class SafetyTexts:
    """All texts of a task's safety."""

    safe: tuple[SafePrompt, ...]
    control: tuple[Control, ...]
    refusals: Refusals

    @classmethod
    def load(cls, templates: TemplateSet) -> SafetyTexts:
        """Read and check the three files; a UserError names the file and line that is wrong."""
        return cls(
            _rows(templates.place(SAFE_FILE), SafePrompt),
            _rows(templates.place(CONTROL_FILE), Control),
            Refusals.load(templates.place(REFUSALS_FILE)),
        )

    def identity(self) -> str:
        """A digest of all that the measures depend on."""
        rows = [[asdict(row) for row in own] for own in (self.safe, self.control)]
        return digest([*rows, self.refusals.opening.pattern], 32)


def _rows(path: Path, kind: type[Row]) -> tuple[Row, ...]:
    names = list(kind.__dataclass_fields__)
    rows: list[Row] = []
    for number, line in enumerate(text_lines(path), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not a JSON object ({error.msg})") from error
        fit = isinstance(values, dict) and set(values) == set(names)
        if not fit or not all(isinstance(text, str) and text.strip() for text in values.values()):
            raise UserError(f"{path}, line {number}: write exactly these keys, as text: {', '.join(names)}")
        rows.append(kind(**values))
    if len({row.prompt for row in rows}) < max(len(rows), 1):
        raise UserError(f"{path}: is empty or repeats a prompt; write each once")
    return tuple(rows)
