"""Shared pieces of the labeler tests: pairs, options, a backend that records what it is asked."""

from __future__ import annotations

import dataclasses
import functools
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlaif.backends.base import ChoiceScores, Generation, Message, SequenceScore
from rlaif.backends.scripted import ScriptedBackend
from rlaif.labelers import LabelerOptions, ReadoutOptions, TemplateSet
from rlaif.records import Pair

CONF = Path(__file__).resolve().parents[2] / "conf"
DOCS = CONF / "templates" / "docs"


def copy_texts(folder: Path, task: Path = DOCS) -> Path:
    """All texts of a task in a folder of their own, those of `_common` among them."""
    shutil.copytree(task.parent / "_common", folder)
    return shutil.copytree(task, folder, dirs_exist_ok=True)


READOUT = ReadoutOptions(
    kind="choice", temperature=1.0, direction="forward", prior_weight=1.0, normalize="tokens", max_tokens=8
)
OPTIONS = LabelerOptions(
    preamble="base",
    exemplars=0,
    cot=False,
    readout=READOUT,
    order="both",
    averaging="prob",
    samples=1,
    temperature=0.0,
    top_k=40,
    max_rationale_tokens=48,
    min_mass=0.5,
    batch_size=4,
    seed=0,
)


def options(**changes: Any) -> LabelerOptions:
    """The base options with changes; keys of the readout come as `readout_kind=...`."""
    readout = {
        key.removeprefix("readout_"): changes.pop(key) for key in list(changes) if key.startswith("readout_")
    }
    return dataclasses.replace(OPTIONS, readout=dataclasses.replace(READOUT, **readout), **changes)


@functools.cache
def templates() -> TemplateSet:
    return TemplateSet.load(DOCS)


def pair(number: int, **changes: Any) -> Pair:
    words = ["sum", "total", "items", "values", "open", "file", "path", "index", "limit", "name"]
    first = " ".join(words[(number * 3 + k) % 10] for k in range(2 + number % 4))
    second = " ".join(words[(number * 7 + k * 2 + 1) % 10] for k in range(2 + (number + 1) % 3))
    values = {
        "id": f"pair-{number}",
        "prompt_id": f"prompt-{number}",
        "prompt": f"def f{number}(items, limit):\n    total = sum(items)\n    return min(total, limit)",
        "response_a": f"Return the {first} a{number}.",
        "response_b": f"Compute {second} b{number}.",
        "origin": "dataset",
    }
    return Pair(**(values | changes))


def pairs(count: int) -> list[Pair]:
    return [pair(number) for number in range(count)]


def scripted(**changes: Any) -> ScriptedBackend:
    values = {
        "rule": "overlap",
        "strength": 6.0,
        "noise": 0.0,
        "unparsed_rate": 0.0,
        "position_bias": 0.0,
        "seed": 0,
    }
    return ScriptedBackend(**(values | changes))


class Recorder:
    """A backend that keeps every call and answers through another one."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.generated: list[tuple[Message, int]] = []
        self.chosen: list[tuple[Message, tuple[str, ...]]] = []
        self.sequences: list[tuple[Message, str]] = []
        self.batches: list[int] = []

    @property
    def calls(self) -> int:
        return len(self.generated) + len(self.chosen) + len(self.sequences)

    def identity(self) -> dict[str, Any]:
        return self.inner.identity()

    def generate(self, prompts: Sequence[Message], **kwargs: Any) -> list[Generation]:
        self.generated += list(zip(prompts, kwargs["seeds"], strict=True))
        self.batches.append(len(prompts))
        return self.inner.generate(prompts, **kwargs)

    def choice_logprobs(self, prompts: Sequence[Message], choices: Sequence[str]) -> list[ChoiceScores]:
        self.chosen += [(prompt, tuple(choices)) for prompt in prompts]
        self.batches.append(len(prompts))
        return self.inner.choice_logprobs(prompts, choices)

    def sequence_logprobs(self, items: Sequence[tuple[Message, str]]) -> list[SequenceScore]:
        self.sequences += list(items)
        self.batches.append(len(items))
        return self.inner.sequence_logprobs(items)


def timeless(judgements: Sequence[Any]) -> list[Any]:
    """Judgements without their wall-clock seconds, for exact comparison of all the rest."""
    return [dataclasses.replace(judgement, seconds=0.0) for judgement in judgements]


def logs(*probabilities: float) -> tuple[float, ...]:
    return tuple(math.log(p) if p > 0 else -math.inf for p in probabilities)
