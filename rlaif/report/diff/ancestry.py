"""Which artifacts two runs share, which differ, and what the first differing ones were made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlaif.io.lineage import LineageRow
from rlaif.report.diff.settings import Changed, changed
from rlaif.tracking.text import MISSING

Rows = Mapping[str, LineageRow]


@dataclass(frozen=True)
class Differing:
    """The artifacts of one kind that the runs do not share, or one that only one of them has.

    `first`: all that they were built from is shared, so the difference begins here. `keys`: what differs of what they
    were made from; `parents`: the kinds of their parents that differ; `note`: why nothing more is known.
    """

    kind: str
    a: str
    b: str
    first: bool
    keys: tuple[Changed, ...] = ()
    parents: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Ancestry:
    """The lineages of two runs against each other, ancestors first."""

    shared: tuple[LineageRow, ...]
    differing: tuple[Differing, ...]

    def differs(self, kind: str) -> bool:
        """Whether one run stands on an artifact of `kind` that the other does not stand on."""
        return any(one.kind == kind for one in self.differing)

    def shares(self, kind: str) -> bool:
        """Whether both stand on the same artifacts of `kind`, of which there is one at least."""
        return any(row.kind == kind for row in self.shared) and not self.differs(kind)

    def keys(self, kind: str) -> tuple[Changed, ...] | None:
        """What differs of what the artifacts of `kind` were made from; None if that is not recorded."""
        found = [one for one in self.differing if one.kind == kind]
        return None if any(one.note for one in found) else tuple(key for one in found for key in one.keys)


def ancestry(a: Sequence[LineageRow], b: Sequence[LineageRow]) -> Ancestry:
    """Compare two runs' lineages. Artifacts are paired by kind, where each run has one alone that is not shared."""
    rows = {"a": _by_name(a), "b": _by_name(b)}
    both = {**rows["a"], **rows["b"]}
    order = sorted(both, key=lambda name: (len(_ancestors(name, both)), both[name].kind, name))
    shared = [name for name in order if name in rows["a"] and name in rows["b"]]
    found: list[Differing] = []
    for kind in dict.fromkeys(both[name].kind for name in order if name not in shared):
        own = [
            [both[name] for name in order if name in side and name not in shared and both[name].kind == kind]
            for side in rows.values()
        ]
        found += _differing(own[0], own[1], shared)
    return Ancestry(tuple(rows["a"][name] for name in shared), tuple(found))


def _by_name(rows: Sequence[LineageRow]) -> Rows:
    return {row.name: row for row in rows}


def _ancestors(name: str, rows: Rows) -> set[str]:
    """What `name` was built from, near and far; even a broken (cyclic) file terminates."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        row = rows.get(waiting.pop())
        new = {parent.name for parent in row.parents} - found if row else set()
        found |= new
        waiting += new
    return found


def _differing(a: Sequence[LineageRow], b: Sequence[LineageRow], shared: Sequence[str]) -> list[Differing]:
    if len(a) == len(b) == 1:
        return [_pair(a[0], b[0], shared)]
    unpaired = "which of this kind belongs to which is not recorded" if a and b else ""
    return [
        *(
            Differing(x.kind, x.digest, MISSING, _is_first(x, shared), note=unpaired or "only A has it")
            for x in a
        ),
        *(
            Differing(x.kind, MISSING, x.digest, _is_first(x, shared), note=unpaired or "only B has it")
            for x in b
        ),
    ]


def _is_first(row: LineageRow, shared: Sequence[str]) -> bool:
    return all(parent.name in shared for parent in row.parents)


def _pair(a: LineageRow, b: LineageRow, shared: Sequence[str]) -> Differing:
    mine, others = ({parent.name: parent.kind for parent in row.parents} for row in (a, b))
    parents = {kind for name, kind in (*mine.items(), *others.items()) if (name in mine) != (name in others)}
    recorded = None not in (a.version, b.version)
    keys = changed(_made_from(a), _made_from(b)) if recorded else ()
    note = (
        ""
        if recorded
        else "what it was made from is not in the run's lineage.json, which an older version wrote"
    )
    first = _is_first(a, shared) and _is_first(b, shared)
    return Differing(a.kind, a.digest, b.digest, first, keys, tuple(sorted(parents)), note)


def _made_from(row: LineageRow) -> dict[str, object]:
    own = {"seed": row.seed, "stage's version": row.version, "data": row.data_hash or None}
    return {**row.config, **own}
