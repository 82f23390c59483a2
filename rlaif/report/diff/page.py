"""The difference of two runs as a self-contained HTML page and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2
from rich.table import Table as RichTable
from rich.text import Text

from rlaif.io import write_text
from rlaif.report.diff.difference import Difference
from rlaif.report.diff.measured import MetricRow, PairedMetrics
from rlaif.report.page import glossary
from rlaif.report.web.assets import page_environment
from rlaif.tracking import text
from rlaif.tracking.glossary import names
from rlaif.tracking.runs import RunRecord

_OPEN_SAMPLES, _TERMINAL_KEYS, _TERMINAL_METRICS = 4, 12, 16


@dataclass(frozen=True)
class _Content:
    """What the template prints besides the difference itself."""

    title: str
    tested: str
    differing: Sequence[MetricRow]
    equal: Sequence[MetricRow]
    opened: int
    glossary: Mapping[str, str]


@cache
def _template() -> jinja2.Template:
    environment = page_environment(Path(__file__).parent)
    environment.globals.update(text=text)
    return environment.get_template("diff.html.j2")


def render_difference(found: Difference, output: Path, *, title: str) -> Path:
    """Write the page to `output`, which is returned."""
    page = _Content(
        title,
        tested_caption(found.tests),
        [row for row in found.metrics if row.differs],
        [row for row in found.metrics if not row.differs],
        _OPEN_SAMPLES,
        glossary({name for run in found.runs for name in run.summary}),
    )
    write_text(output, _template().render(page=page, found=found))
    return output


def tested_caption(tests: PairedMetrics) -> str:
    """How the tests were made; empty without any."""
    if not tests.rows:
        return ""
    many = f"Holm over {len(tests.rows)} metrics" if len(tests.rows) > 1 else "one metric, so no correction"
    return (
        f"On the test items that both runs have; {many}. p: exact McNemar, or Student's t over whole prompts if "
        "prompts repeat or scores are not 0 or 1. A pair that a labeler could not read counts as wrong. Undecided: not "
        "significant at 5%, which does not make them equal. Differs: significant, but not measured in the same way."
    )


def terminal_difference(found: Difference) -> list[RichTable | Text]:
    """The sentence, the runs, the keys that differ, the metrics and the tests, as far as a terminal has room."""
    parts: list[RichTable | Text] = [Text(found.verdict.sentence, style="bold")]
    parts += [Text(f"Caution: {warning}") for warning in found.verdict.warnings]
    return [*parts, _runs(found), *_settings(found), *_begins(found), *_metrics(found), *_tests(found)]


def _runs(found: Difference) -> RichTable:
    view = _view("Runs", "", "run", "stage", "state", "only here")
    for who, run, own in zip("AB", found.runs, found.overrides, strict=True):
        view.add_row(who, run.id, run.stage, run.state, Text(" ".join(own) or text.MISSING))
    return view


def _settings(found: Difference) -> list[RichTable]:
    rows = [*found.settings, *found.versions]
    if not rows:
        return []
    view = _view("Configuration and versions", "key", "A", "B")
    for row in rows[:_TERMINAL_KEYS]:
        view.add_row(*map(Text, (row.key, row.a, row.b)))
    _more(view, len(rows) - _TERMINAL_KEYS)
    return [view]


def _begins(found: Difference) -> list[Text]:
    """Where the lineages part."""
    told = [f"{one.kind} ({one.a[:8]} against {one.b[:8]})" for one in found.lineage.differing if one.first]
    shared = ", ".join(row.kind for row in found.lineage.shared)
    if not told:
        return [Text(f"Same artifacts: {shared}.")] if shared else []
    return [Text(f"Lineage: shared {shared or 'nothing'}; the difference begins at {', '.join(told)}.")]


def _metrics(found: Difference) -> list[RichTable]:
    """The metrics of the result table that differ."""
    chosen = [row for row in found.metrics if row.differs and row.difference != text.MISSING]
    first = set(names("result")) | {test.metric for test in found.tests.rows}
    rows = sorted(chosen, key=lambda row: row.metric not in first)
    if not rows:
        return []
    view = _view("Metrics that differ", "metric", ("A",), ("B",), ("B less A",))
    for row in rows[:_TERMINAL_METRICS]:
        a, b = (
            f"{value}\n({bounds})" if bounds else value
            for value, bounds in ((row.a, row.a_range), (row.b, row.b_range))
        )
        view.add_row(Text(row.label), a, b, row.difference)
    _more(view, len(rows) - _TERMINAL_METRICS)
    return [view]


def _tests(found: Difference) -> list[RichTable]:
    if not found.tests.rows:
        return []
    view = _view(
        "Paired tests", "metric", ("items",), ("B less A",), ("A : B ahead",), ("p",), ("Holm p",), ""
    )
    view.caption = tested_caption(found.tests)
    for row in found.tests.rows:
        value, bounds = row.written
        _, p, adjusted = row.p_texts
        label = f"{row.label} ({row.caution})" if row.caution else row.label
        counts = f"{row.a_ahead} : {row.b_ahead}"
        view.add_row(Text(label), str(row.n), f"{value}\n({bounds})", counts, p, adjusted, row.outcome)
    return [view]


def _view(title: str, *columns: str | tuple[str]) -> RichTable:
    """A table; columns given as tuples hold numbers."""
    view = RichTable(title=title, header_style="bold")
    for column in columns:
        if isinstance(column, tuple):
            view.add_column(column[0], justify="right", no_wrap=True)
        else:
            view.add_column(column, overflow="fold")
    return view


def _more(view: RichTable, rest: int) -> None:
    if rest > 0:
        view.caption = f"The page has {rest} more."


def difference_title(a: RunRecord, b: RunRecord) -> str:
    """The page's title."""
    return f"Difference: {a.stage} {a.id} (A) and {b.stage} {b.id} (B)"
