"""The other direction: nothing is in the registry that no stage can log.

A metric's name stands in the code as text, or as an f-string whose parts are texts of the code.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import rlaif
from rlaif.tracking.glossary import entries

CODE = Path(rlaif.__file__).parent
READERS = ("section.py", "alarm_rules.py")  # name metrics to read them
ROOMS = (
    "stages",
    "study/claims",
    "study/compare.py",
    "data/report.py",
    "data/files",
    "ops",
    "app/clean.py",
    "app/job.py",
    "app/dashboard/stage.py",
    "records.py",
)


def _files() -> list[Path]:
    found = [
        file
        for room in ROOMS
        for file in sorted({CODE / room, *(CODE / room).rglob("*.py")})
        if file.is_file()
    ]
    return [file for file in found if file.name not in READERS]


def _texts(tree: ast.AST) -> set[str]:
    """Every text of a module, also those within its f-strings, without their separators."""
    found = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return {text.strip("/_") for text in found if re.fullmatch(r"[\w/*-]+", text)} | found


@cache
def _written() -> tuple[frozenset[str], tuple[re.Pattern[str], ...]]:
    """The code's texts, and its f-strings as patterns."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in _files()]
    own = [{text for text in _texts(tree) if re.fullmatch(r"[\w/]+", text)} for tree in trees]
    every = set().union(*own)
    patterns = []
    for tree, words in zip(trees, own, strict=True):
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr) and _may_name(node):
                patterns.append(_pattern(node, every, words))
    return frozenset(every), tuple(patterns)


def _literals(node: ast.JoinedStr) -> str:
    return "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))


def _may_name(node: ast.JoinedStr) -> bool:
    return re.fullmatch(r"[\w/]*", _literals(node)) is not None


def _pattern(node: ast.JoinedStr, every: set[str], own: set[str]) -> re.Pattern[str]:
    """Parts that are filled in are texts of the code; after a bare slash, of the same module."""
    bare, made, after = _literals(node) == "/", "", False
    for part in node.values:
        if isinstance(part, ast.Constant):
            made += re.escape(str(part.value))
            after = after or "/" in str(part.value)
        else:
            words = own if bare and after else every
            made += "(?:" + "|".join(map(re.escape, sorted(words, key=len, reverse=True))) + r"|\*|)"
    return re.compile(made)


def _has_producer(name: str) -> bool:
    texts, patterns = _written()
    return name in texts or any(pattern.fullmatch(name) for pattern in patterns)


def test_every_metric_has_a_producer() -> None:
    assert [name for name in entries() if not _has_producer(name)] == []


@pytest.mark.parametrize(
    "name",
    [
        "rl/reward_val",
        "sft/rows_per_s",
        "sample/samples_per_s",
        "doctor/checks",
        "eval/tokens_in",
        "rm/kappa2",
    ],
)
def test_phantoms_have_none(name: str) -> None:
    assert not _has_producer(name) and name not in entries()
