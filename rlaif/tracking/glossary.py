"""What each metric means: formula, unit and range, for reports and for the test that knows every name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

FILE = Path(__file__).with_name("glossary.yaml")


@dataclass(frozen=True)
class Entry:
    """One metric. `name` may hold `*`, which stands for one or more characters other than `/`."""

    name: str
    formula: str
    unit: str
    range: str


def describe(name: str) -> Entry | None:
    """The entry of a metric: the one of exactly this name, else that of the longest pattern that fits."""
    table = entries()
    if name in table:
        return table[name]
    fitting = [
        entry for entry in table.values() if "*" in entry.name and _pattern(entry.name).fullmatch(name)
    ]
    return max(fitting, key=lambda entry: len(entry.name), default=None)


def unknown(names: Iterable[str]) -> list[str]:
    """Those of `names` that the glossary does not describe, sorted, each once."""
    return sorted({name for name in names if describe(name) is None})


@cache
def entries() -> dict[str, Entry]:
    """All entries by name or pattern, in the file's order."""
    loaded = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {name: Entry(name=name, **fields) for name, fields in loaded.items()}


@cache
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile("[^/]+".join(re.escape(part) for part in name.split("*")))
