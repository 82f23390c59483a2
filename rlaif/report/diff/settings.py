"""Where two mappings differ: configurations, the slices of artifacts, versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.options.read import leaves
from rlaif.options.rules import shown
from rlaif.tracking.runs import RunRecord
from rlaif.tracking.text import MISSING

_PLACES = ("paths", "hydra")  # where files lie, which is no setting of a run


@dataclass(frozen=True)
class Changed:
    """A key and its two values as text; a dash for one that is not there."""

    key: str
    a: str
    b: str


def changed(a: Mapping[str, Any], b: Mapping[str, Any], leave_out: Sequence[str] = ()) -> tuple[Changed, ...]:
    """The keys, at any depth, whose values differ or that only one has, but for those below `leave_out`."""
    first, second = (dict(leaves(one)) for one in (a, b))
    return tuple(
        Changed(key, _text(first, key), _text(second, key))
        for key in sorted({*first, *second})
        if key.split(".")[0] not in leave_out
        and (key not in first or key not in second or first[key] != second[key])
    )


def _text(values: Mapping[str, Any], key: str) -> str:
    return shown(values[key]) if key in values else MISSING


def changed_settings(a: RunRecord, b: RunRecord) -> tuple[Changed, ...]:
    """What differs between the resolved configurations."""
    return changed(a.config, b.config, _PLACES)


def changed_versions(a: RunRecord, b: RunRecord) -> tuple[Changed, ...]:
    """What differs between the code and the libraries; without a commit in either, only the libraries are known."""
    commits = [{} if run.git is None else {"commit": run.git} for run in (a, b)]
    return changed(commits[0], commits[1]) + changed(a.versions, b.versions)


def own_overrides(a: RunRecord, b: RunRecord) -> tuple[list[str], list[str]]:
    """The overrides that only the first has, and those that only the second has."""
    return (
        [word for word in a.overrides if word not in b.overrides],
        [word for word in b.overrides if word not in a.overrides],
    )
