"""Two runs against each other: everything that the page and the terminal show, and what it comes to in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlaif.report.diff.ancestry import Ancestry, ancestry
from rlaif.report.diff.measured import MetricRow, PairedMetric, PairedMetrics, alone, metric_rows, paired
from rlaif.report.diff.settings import Changed, changed_settings, changed_versions, own_overrides
from rlaif.study.verdict import Tone, Verdict
from rlaif.tracking.runs import Row, RunRecord
from rlaif.tracking.text import p_text

_NAMED = 3  # tests in the headline
_MAX_SAMPLES = 40


@dataclass(frozen=True)
class SamplePair:
    """One prompt with what both runs' policies answered: the rows of their tables of samples."""

    prompt: str
    reference: str
    a: Row
    b: Row


@dataclass(frozen=True)
class Difference:
    """Runs A and B, where they differ and where not."""

    runs: tuple[RunRecord, RunRecord]
    verdict: Verdict
    settings: tuple[Changed, ...]
    overrides: tuple[list[str], list[str]]
    versions: tuple[Changed, ...]
    lineage: Ancestry
    metrics: Sequence[MetricRow]
    alone: tuple[list[str], list[str]]
    tests: PairedMetrics
    samples: Sequence[SamplePair]


def difference(a: RunRecord, b: RunRecord) -> Difference:
    """Compare two runs, read from their directories alone."""
    lineage = ancestry(a.lineage, b.lineage)
    tests = paired(a, b, lineage)
    settings, versions = changed_settings(a, b), changed_versions(a, b)
    cautions = [
        *_unfinished(a, b),
        *_confounded(a, b, settings, versions),
        *_seeds(tests, settings),
        *_warned(a, b),
    ]
    sentence, tone = _headline(a, b, tests)
    return Difference(
        runs=(a, b),
        verdict=Verdict(sentence, tone, tuple(cautions)),
        settings=settings,
        overrides=own_overrides(a, b),
        versions=versions,
        lineage=lineage,
        metrics=metric_rows(a.summary, b.summary),
        alone=(alone(a.summary, b.summary), alone(b.summary, a.summary)),
        tests=tests,
        samples=sample_pairs(a.table("samples"), b.table("samples")),
    )


def sample_pairs(a: Sequence[Row], b: Sequence[Row]) -> list[SamplePair]:
    """The prompts that both tables have, those with different outcomes first, then as they come in the first table.

    An arm's samples are beside those of the arm of the same name.
    """
    rows = {_place(row): row for row in b}
    both = [(row, rows[_place(row)]) for row in a if _place(row) in rows]
    both.sort(key=lambda pair: pair[0].get("outcome") == pair[1].get("outcome"))
    return [
        SamplePair(str(row.get("prompt", "")), str(row.get("reference") or ""), row, other)
        for row, other in both[:_MAX_SAMPLES]
    ]


def _place(row: Row) -> tuple[object, ...]:
    return row.get("arm"), row.get("id"), row.get("prompt")


def _headline(a: RunRecord, b: RunRecord, tests: PairedMetrics) -> tuple[str, Tone]:
    if not tests.rows:
        return f"No metric of the two runs was tested: {_why_untested(a, b, tests)}.", "none"
    count = len(tests.rows)
    family = f"Holm over {count} tested metrics" if count > 1 else "the only metric tested"
    decided = [test for test in tests.rows if test.better]
    if decided:
        told = "; ".join(map(_told, decided[:_NAMED]))
        more = f"; and {len(decided) - _NAMED} more below" if len(decided) > _NAMED else ""
        return f"{told}{more} ({family}).", "win"
    differing = [test.label for test in tests.rows if test.significant]
    if differing:
        return (
            f"A and B differ in {'; '.join(differing)}, which they do not measure in the same way: neither is called "
            f"better ({family}).",
            "open",
        )
    return f"A and B are not told apart at 5% ({family}), which does not make them equal.", "open"


def _told(test: PairedMetric) -> str:
    value, bounds = test.written
    return f"{test.better} has the better {test.label}: B less A is {value} ({bounds}, {p_text(test.p_holm)})"


def _why_untested(a: RunRecord, b: RunRecord, tests: PairedMetrics) -> str:
    lacking = [name for name, run in (("A", a), ("B", b)) if not run.table("items")]
    if lacking:
        return f"{' and '.join(lacking)} recorded no single test items"
    return "; ".join(tests.untested) or "they have no tested metric in common"


def _unfinished(a: RunRecord, b: RunRecord) -> list[str]:
    found = []
    for who, run in (("A", a), ("B", b)):
        if run.state != "finished":
            error = f" ({run.error})" if run.error else ""
            found.append(
                f"{who} has not finished: its state is {run.state}{error}, and it is shown as far as it got."
            )
    return found


def _confounded(
    a: RunRecord, b: RunRecord, settings: Sequence[Changed], versions: Sequence[Changed]
) -> list[str]:
    """Differences besides the settings that could explain the numbers."""
    found = []
    if a.stage != b.stage:
        found.append(f"A is a run of {a.stage} and B one of {b.stage}: only what both measured is compared.")
    if versions:
        found.append(f"Not the same code or libraries: {', '.join(one.key for one in versions)}.")
    dirty = [who for who, run in (("A", a), ("B", b)) if (run.git or "").endswith("-dirty")]
    if dirty:
        found.append(
            f"{' and '.join(dirty)} ran with uncommitted changes: equal commits need not be equal code."
        )
    data = sorted({one.key.split(".")[1] for one in settings if one.key.startswith("task.")})
    if data:
        found.append(f"The runs differ in their data (task: {', '.join(data)}).")
    return found


def _seeds(tests: PairedMetrics, settings: Sequence[Changed]) -> list[str]:
    """That one run of each cannot tell its setting from its seed."""
    keys = {one.key for one in settings}
    if keys and all(key.startswith("seeds.") or key in ("seed", "stage") for key in keys):
        return ["The runs differ in seeds alone: what differs between them is what seeds do."]
    if tests.rows:
        return [
            "One run of each, so the tests cover the test items alone, not what another seed would have given: "
            "repeat both with several seeds before you call a setting better."
        ]
    return []


def _warned(a: RunRecord, b: RunRecord) -> list[str]:
    """The warnings in the summaries, each once."""
    told: dict[str, list[str]] = {}
    for who, run in (("A", a), ("B", b)):
        for name, value in run.summary.items():
            if name.endswith("/warning") and value:
                told.setdefault(str(value), []).append(who)
    return [f"{' and '.join(dict.fromkeys(who))}: {sentence}" for sentence, who in told.items()]
