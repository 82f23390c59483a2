"""The page's section on the data: what was read of the task's files, kept, dropped and cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlaif.figures.rows import Fact, ResultRow, fact_rows
from rlaif.tracking.runs import Scalar

FACTS: tuple[Fact, ...] = (
    ("Rows", "data/rows_read", "read"),
    ("Rows", "data/rows_kept", "kept"),
    ("Dropped", "data/diverging_rows_dropped", "dialogues part before the last turn"),
    ("Dropped", "data/without_shared_prompt_dropped", "no prompt, own or shared"),
    ("Dropped", "data/without_partner_dropped", "no completion of the other label"),
    ("Dropped", "data/news_rows_dropped", "about something else than a post"),
    ("Dropped", "data/beyond_max_rows_dropped", "beyond task.max_rows"),
    ("Dropped", "data/repeated_rows_dropped", "repeat a prompt and reference"),
    ("Dropped", "data/identical_pairs_dropped", "two equal responses"),
    ("Dropped", "data/untrusted_gold_pairs_dropped", "held out without a sure label"),
    *(
        (f"Beyond the limits ({what})", f"{stage}/{name}", label)
        for stage, what in (
            ("sft", "training rows"),
            ("sample", "pairs"),
            ("label", "gold pairs"),
            ("rl", "RL"),
            ("eval", "evaluation"),
        )
        for name, label in (
            ("prompts_cut", "prompts cut"),
            ("prompts_dropped", "dropped, prompt too long"),
            ("responses_cut", "responses cut, without EOS"),
            ("responses_dropped", "dropped, response too long"),
            ("equal_cut", "with responses equal once cut"),
            ("equal_dropped", "not trained on, responses equal once cut"),
        )
    ),
)
TEXTS = {
    "data/schema": "Read as",
    "data/columns_read": "Columns read",
    "data/columns_not_read": "Columns not read",
    "data/columns_near": "Not read, but perhaps meant",
}


@dataclass(frozen=True)
class DataSection:
    """Counts, grouped, and what was read as text: (what, text)."""

    facts: tuple[ResultRow, ...]
    texts: tuple[tuple[str, str], ...]


def data_section(summary: Mapping[str, Scalar]) -> DataSection | None:
    """The section of a merged summary; None where no file was read and nothing cut."""
    facts = tuple(row for row in fact_rows(FACTS, summary, {}) if row.stage == "Rows" or summary[row.metric])
    texts = tuple((label, str(summary[name])) for name, label in TEXTS.items() if summary.get(name))
    return DataSection(facts, texts) if facts or texts else None
