"""The ledger's entries: of each claim its latest finished run, with Holm's correction over those that were decided."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlaif.io import digest
from rlaif.stats import ALPHA, holm
from rlaif.study.claims.measure import CLAIM
from rlaif.tracking.runs import Row, RunRecord, number
from rlaif.tracking.text import FORMATS, MISSING, p_text


@dataclass(frozen=True)
class Entry:
    """One claim, as text. `firm`: its verdict holds after Holm's correction over all decided claims of the page."""

    id: str
    title: str
    hypothesis: str
    paper: str
    measured: str
    effect: str
    interval: str
    smallest: str
    reach: str
    data: str
    verdict: str
    p: str
    p_holm: str
    firm: bool
    sentence: str
    size: str
    models: str
    date: str
    digest: str
    command: str


def ledger_entries(runs: Sequence[RunRecord]) -> list[Entry]:
    """The claims of finished comparisons by their number; of a claim that was run again the latest run counts.

    A run that measured something counts before one that lacked its models or data, and any before a trial run with
    random models: neither takes a result's place.
    """
    latest: dict[str, tuple[RunRecord, Row]] = {}
    for run in runs:
        for row in run.table(CLAIM):
            earlier = latest.get(str(row["id"]))
            if earlier is None or _weight(run, row) >= _weight(*earlier):
                latest[str(row["id"])] = (run, row)
    raw = {
        name: p
        for name, (_, row) in latest.items()
        if row["verdict"] != "undecided" and (p := number(row, "p_value")) is not None
    }
    adjusted = holm(raw) if raw else {}
    return [_entry(*latest[name], adjusted.get(name)) for name in sorted(latest, key=_place)]


def _weight(run: RunRecord, row: Row) -> tuple[bool, bool]:
    """What a run says about a claim: of real models before random ones, an effect before none."""
    return not _node(run.config, "models").get("tiny"), number(row, "effect") is not None


def _place(name: str) -> tuple[int, str]:
    found = re.search(r"\d+", name)
    return (int(found[0]) if found else 0, name)


def _entry(run: RunRecord, row: Row, adjusted: float | None) -> Entry:
    written = FORMATS[row["unit"]]
    effect, low, high, reach = (number(row, name) for name in ("effect", "ci_low", "ci_high", "detectable"))
    bare = {
        name: MISSING if value is None else written.value(value)
        for name, value in {"effect": effect, "reach": reach}.items()
    }
    words = {
        name: str(row[name])
        for name in ("id", "title", "hypothesis", "paper", "measured", "verdict", "sentence")
    }
    return Entry(
        **words,
        effect=bare["effect"],
        interval="" if low is None or high is None else written.range(low, high),
        smallest=written.value(float(row["smallest"])).removeprefix("+"),
        reach=bare["reach"].removeprefix("+"),
        data=_data(row),
        p=p_text(number(row, "p_value")),
        p_holm=p_text(adjusted),
        firm=adjusted is not None and adjusted < ALPHA,
        size=_size(run.config),
        models=_models(run.config),
        date=str(run.started or "")[:10],
        digest=digest(sorted(one.name for one in run.lineage), 10) if run.lineage else MISSING,
        command=_command(run.overrides),
    )


def _data(row: Row) -> str:
    n, seeds = number(row, "n"), number(row, "seeds")
    return (
        MISSING
        if n is None or seeds is None
        else f"{n:,.0f} items, {seeds:.0f} seed{'s' if seeds != 1 else ''}"
    )


def _size(config: Mapping[str, object]) -> str:
    """The task, and the demo's size, unless the models are random."""
    task, demo, models = (_node(config, name) for name in ("task", "demo", "models"))
    size = "random models" if models.get("tiny") else f"demo.size={demo.get('size', MISSING)}"
    return f"{task.get('name', MISSING)}, {size}"


def _models(config: Mapping[str, object]) -> str:
    """The models that the arms share; an arm may have a labeler of its own."""
    model, backend, judge = (_node(config, name).get("name") for name in ("model", "backend", "judge"))
    return f"policy {model}; labelers on {backend}; judge {judge}"


_ELSEWHERE = ("sweeps=", "paths.", "tracking", "trainer.threads=", "size=")
"""Words that start other claims too, or that say where and how a run is kept; the demo's size stands as demo.size."""


def _command(overrides: Sequence[str]) -> str:
    """The command that runs this claim alone."""
    words = [word for word in overrides if not word.startswith(_ELSEWHERE)]
    return shlex.join(["python", "train.py", *dict.fromkeys(words)])


def _node(config: Mapping[str, object], name: str) -> Mapping[str, object]:
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}
