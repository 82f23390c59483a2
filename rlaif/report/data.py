"""The page's section on the data: what was read from the task's files, kept, dropped and cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlaif.figures.rows import ResultRow, table_rows
from rlaif.tracking.glossary import table
from rlaif.tracking.runs import Scalar


@dataclass(frozen=True)
class DataSection:
    """Counts, grouped, and facts that are text, as (what, text)."""

    facts: tuple[ResultRow, ...]
    texts: tuple[tuple[str, str], ...]


def data_section(summary: Mapping[str, Scalar]) -> DataSection | None:
    """The section from a merged summary; None if no file was read and nothing was cut."""
    facts = tuple(table_rows(table("data"), summary, {}))
    texts = tuple((one.label, str(summary[one.name])) for one in table("data_texts") if summary.get(one.name))
    return DataSection(facts, texts) if facts or texts else None
