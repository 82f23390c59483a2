"""What has changed since a sweep was started: of its code, and of the configuration that its jobs resolve to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.app.sweep.code import code_state, commit_text
from rlaif.errors import UserError
from rlaif.tracking.sweep import Job, Ledger

Flat = Mapping[str, Any]
Compose = Callable[[Job], Flat | str]
"""A job's present configuration, or the sentence that says why there is none."""
REFUSED = "(configuration)"  # in place of a configuration's keys, where there is none
_NONE = object()
_MOST = 12  # differences that are shown
_WIDE = 60  # characters of a value that are shown


@dataclass(frozen=True)
class Difference:
    """A key or file that has changed. `jobs`: how many jobs resolve to another value; None for code."""

    name: str
    was: str
    now: str
    jobs: int | None = None

    def __str__(self) -> str:
        many = "" if self.jobs is None else f" ({self.jobs} {'job' if self.jobs == 1 else 'jobs'})"
        return f"{self.name}: {self.was} -> {self.now}{many}"


def code_differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Libraries of another version, and files whose code has changed."""
    found = [
        Difference(name, str(was["versions"].get(name, "absent")), str(version))
        for name, version in now["versions"].items()
        if was["versions"].get(name, "absent") != version
    ]
    if any(difference.name == "python" for difference in found):
        return found  # another Python writes other syntax trees of the same files
    names = sorted({*was["files"], *now["files"]})
    changed = [name for name in names if was["files"].get(name) != now["files"].get(name)]
    return found + [Difference(name, _at(name, was), _at(name, now)) for name in changed]


def _at(name: str, code: Mapping[str, Any]) -> str:
    return f"{code['files'][name][:8]} of {commit_text(code)}" if name in code["files"] else "absent"


def config_differences(ledger: Ledger, jobs: Sequence[Job], compose: Compose) -> list[Difference]:
    """Keys that jobs which were started earlier would now resolve to another value."""
    found: Counter[tuple[str, str, str]] = Counter()
    for job in jobs:
        was, now = ledger.config(job.key), recorded(compose(job))
        keys = sorted(key for key in {*was, *now} if was.get(key, _NONE) != now.get(key, _NONE))
        if REFUSED in keys:
            found[" ".join(job.words), "a job", str(now.get(REFUSED, "another one"))] += 1
        else:
            found.update((key, _shown(was, key), _shown(now, key)) for key in keys)
    return [Difference(*difference, jobs=number) for difference, number in found.items()]


def recorded(composed: Flat | str) -> Flat:
    """What the ledger keeps of a job's configuration: the values, or why there are none."""
    return {REFUSED: composed} if isinstance(composed, str) else composed


def _shown(config: Flat, key: str) -> str:
    if key not in config:
        return "absent"
    text = json.dumps(config[key], ensure_ascii=False, default=str)
    return text if len(text) <= _WIDE else f"{text[: _WIDE - 4]} ..."


@dataclass(frozen=True)
class Drift:
    """The differences; `code` as it is now; `moved`: another commit without a difference, in words."""

    differences: Sequence[Difference]
    code: Mapping[str, Any]
    moved: str


def drift_of(ledger: Ledger, jobs: Sequence[Job], compose: Compose) -> Drift:
    """What has changed since `jobs` of the sweep were started."""
    was, code = ledger.about()["code"], code_state()
    differences = [*config_differences(ledger, jobs, compose), *code_differences(was, code)]
    before, now = commit_text(was), commit_text(code)
    return Drift(differences, code, "" if before == now else f"{now} instead of {before}")


def refusal(ledger: Ledger, differences: Sequence[Difference]) -> UserError:
    """The sentence that refuses to go on."""
    return UserError(
        f"sweep {ledger.id} was started with another configuration or code: {listed(differences)}; "
        "write sweep.on_drift=new to run all of it as a sweep of its own, sweep.on_drift=accept to keep what has "
        "finished as it is, or go back to what it was started with"
    )


def listed(differences: Sequence[Difference]) -> str:
    """The differences in one line, the first of many."""
    more = f"; and {len(differences) - _MOST} more" if len(differences) > _MOST else ""
    return "; ".join(map(str, differences[:_MOST])) + more
