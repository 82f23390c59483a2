"""One start of a sweep: which of its jobs are new, retried or skipped, and whether it may go on at all."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from rlaif.app.sweep.code import code_state
from rlaif.app.sweep.drift import Compose, Drift, drift_of, listed, recorded, refusal
from rlaif.app.sweep.identity import Identity
from rlaif.tracking.redact import redact_assignments
from rlaif.tracking.sweep import Job, Ledger, State
from rlaif.tracking.sweep.ledger import now

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """A job of the grid as it is composed now; `config` is flat."""

    key: str
    words: tuple[str, ...]
    config: Mapping[str, Any] = field(repr=False)


Fate = Literal["new", "waiting", "retried", "resumed", "again", "skipped", "elsewhere"]
_SAID: Mapping[Fate, str] = {
    "skipped": "finished and skipped",
    "retried": "failed and retried",
    "resumed": "stopped and resumed",
    "again": "finished and run again",
    "waiting": "still to run",
    "elsewhere": "running in another process",
    "new": "new",
}


def opened(root: Path, identity: Identity, compose: Compose, on_drift: str) -> Ledger:
    """The sweep's ledger, made if there is none. Raises UserError after drift, unless `on_drift` says otherwise."""
    (root / "sweeps").mkdir(parents=True, exist_ok=True)
    with FileLock(root / "sweeps" / f".{identity.id}.lock"):
        *earlier, new = _generations(root, identity)
        if not earlier:
            return _made(new, identity, code_state())
        ledger = earlier[-1]
        jobs = [job for job in ledger.jobs() if job.attempts]
        drift = drift_of(ledger, jobs, compose)
        if drift.differences and on_drift == "refuse":
            raise refusal(ledger, drift.differences)
        if drift.differences and on_drift == "new":
            return _made(new, identity, drift.code)
        if drift.differences:
            _accept(ledger, jobs, compose, drift)
        elif drift.moved:
            logger.info("sweep %s: %s; no code differs that can change a result", ledger.id, drift.moved)
        return ledger


def _generations(root: Path, identity: Identity) -> list[Ledger]:
    """The sweep's ledgers, one more for each sweep.on_drift=new, and the one that would be next."""
    found = [Ledger(root / "sweeps" / identity.id)]
    while found[-1].exists:
        found.append(Ledger(root / "sweeps" / f"{identity.id}-{len(found) + 1}"))
    return found


def _made(ledger: Ledger, identity: Identity, code: Mapping[str, Any]) -> Ledger:
    with ledger.lock():
        ledger.describe(
            {
                "id": ledger.id,
                "name": identity.name,
                "created": now(),
                "swept": list(identity.swept),
                "fixed": [redact_assignments(word) for word in identity.fixed],
                "code": code,
                "accepted": [],
            }
        )
    return ledger


def _accept(ledger: Ledger, jobs: Sequence[Job], compose: Compose, drift: Drift) -> None:
    """Count what has finished as it is, and remember what it was."""
    with ledger.lock():
        finished = sum(job.state == "finished" for job in jobs)
        note = {"time": now(), "finished": finished, "differences": list(map(str, drift.differences))}
        ledger.describe({"code": drift.code, "accepted": [*ledger.about().get("accepted", []), note]})
    for job in jobs:
        ledger.write_config(job.key, recorded(compose(job)))
    logger.warning("sweep %s: accepted %s", ledger.id, listed(drift.differences))


def register(ledger: Ledger, points: Sequence[Point], *, force: bool) -> dict[str, Fate]:
    """Add the points that are new, and queue those that are to run again; what becomes of each, by key."""
    with ledger.lock():
        known = {job.key: job for job in ledger.jobs()}
        fates = {point.key: _fate(ledger, known.get(point.key), force) for point in points}
        numbers = count(1 + max((job.number for job in known.values()), default=0))
        for point in points:
            if fates[point.key] == "new":
                ledger.write_config(point.key, point.config)
                words = tuple(map(redact_assignments, point.words))
                ledger.write(Job(point.key, next(numbers), words))
            elif fates[point.key] not in ("skipped", "elsewhere") and not ledger.requeue(
                point.key, point.config
            ):
                fates[point.key] = "elsewhere"
    return fates


def _fate(ledger: Ledger, job: Job | None, force: bool) -> Fate:
    if job is None:
        return "new"
    if job.state == "finished":
        whole = (ledger.root / job.runs[-1] / "summary.json").is_file()
        return "skipped" if whole and not force else "again"
    fates: dict[State, Fate] = {"queued": "waiting", "running": "elsewhere", "failed": "retried"}
    return fates.get(job.state, "resumed")


def said(fates: Mapping[str, Fate]) -> str:
    """What becomes of the jobs, in one line."""
    numbers = Counter(fates.values())
    return ", ".join(f"{numbers[fate]} {words}" for fate, words in _SAID.items() if numbers[fate])
