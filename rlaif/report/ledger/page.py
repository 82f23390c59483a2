"""The ledger as a self-contained HTML page and as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import jinja2

from rlaif.report.ledger.entries import Entry
from rlaif.report.markdown import markdown_table
from rlaif.report.web.assets import page_environment

HEADS = ("claim", "Lee et al. 2023", "here", "effect", "could have found", "data", "verdict")
STATES = ("supported", "contradicted", "undecided")


@cache
def _template() -> jinja2.Template:
    environment = page_environment(Path(__file__).parent)
    return environment.get_template("ledger.html.j2")


def headline(entries: Sequence[Entry]) -> str:
    """How many claims are supported, contradicted and undecided, and how many verdicts hold over the whole page."""
    counts = Counter(entry.verdict for entry in entries)
    told = ", ".join(f"{counts[state]} {state}" for state in STATES)
    decided, firm = counts["supported"] + counts["contradicted"], sum(entry.firm for entry in entries)
    plural = "" if len(entries) == 1 else "s"
    holds = f"hold{'s' if firm == 1 else ''} after Holm's correction over this page"
    more = f" {firm} of {decided} verdicts {holds}." if decided else ""
    return f"{len(entries)} claim{plural}: {told}.{more}"


def ledger_page(entries: Sequence[Entry]) -> str:
    """The page as HTML."""
    return _template().render(entries=entries, headline=headline(entries))


def ledger_markdown(entries: Sequence[Entry]) -> str:
    """The page as Markdown, for notes."""
    table = markdown_table(HEADS, map(_line, entries))
    dates = [
        f"- {entry.id}: `{entry.command}`, {entry.date}, digest {entry.digest}; {entry.size}; {entry.models}"
        for entry in entries
    ]
    return "\n\n".join(["# Claims ledger", headline(entries), table, "\n".join(dates)]) + "\n"


def _line(entry: Entry) -> tuple[str, ...]:
    verdict = f"**{entry.verdict}**" if entry.firm else entry.verdict
    effect = f"{entry.effect} ({entry.interval})" if entry.interval else entry.sentence
    return (
        f"{entry.id} {entry.title}",
        entry.paper,
        entry.measured,
        effect,
        f"{entry.reach} (of interest: {entry.smallest})",
        entry.data,
        verdict,
    )
