"""Where a result comes from: artifacts as a small graph, parents on the left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rlaif.io.lineage import LineageRow
from rlaif.tracking.runs import RunRecord
from rlaif.tracking.text import duration, size

NODE_WIDTH, NODE_HEIGHT, GAP_X, GAP_Y = 142, 50, 32, 14
MAX_NODES = 24
ROOM_BELOW = 26


@dataclass(frozen=True)
class Node:
    """One artifact with its place (pixels) and texts that are ready to print."""

    kind: str
    digest: str
    parents: tuple[str, ...]
    reused: bool
    seed: str
    seconds: str
    bytes: str
    depth: int
    x: int
    y: int


@dataclass(frozen=True)
class Graph:
    """Nodes in build order, the edges' SVG paths, and the drawing's size (pixels)."""

    nodes: tuple[Node, ...]
    edges: tuple[str, ...]
    width: int
    height: int
    note: str


def lineage_graph(runs: Sequence[RunRecord], shown: Sequence[RunRecord]) -> Graph | None:
    """The union of the runs' lineages, or that of `shown` alone if the union is too large to read.

    An artifact that one run built and another reused counts as built.
    """
    everything = _union(runs)
    rows = everything if len(everything) <= MAX_NODES else _union(shown)
    if not rows:
        return None
    uses = Counter(digest for run in runs for digest in {row.digest for row in run.lineage})
    shared = sum(count > 1 for count in uses.values())
    note = "Drawn: the best arm. " if rows is not everything else ""
    if len(runs) > 1:
        note += f"{len(everything)} artifacts in all, {shared} of them shared by several runs."
    return _place(rows, note)


def _union(runs: Sequence[RunRecord]) -> dict[str, LineageRow]:
    rows: dict[str, LineageRow] = {}
    for row in (row for run in runs for row in run.lineage):
        if row.digest not in rows or not row.reused:
            rows[row.digest] = row
    return rows


def _place(rows: Mapping[str, LineageRow], note: str) -> Graph:
    depth = _depths(rows)
    filled: Counter[int] = Counter()
    nodes = []
    for key in sorted(rows, key=lambda key: depth[key]):
        level = depth[key]
        nodes.append(_node(rows[key], _parents(rows[key], rows), level, filled[level]))
        filled[level] += 1
    width = (max(filled) + 1) * (NODE_WIDTH + GAP_X) - GAP_X + 2
    height = max(filled.values()) * (NODE_HEIGHT + GAP_Y) - GAP_Y + 2 + ROOM_BELOW
    return Graph(tuple(nodes), tuple(_edges(nodes)), width, height, note)


def _parents(row: LineageRow, rows: Mapping[str, LineageRow]) -> tuple[str, ...]:
    """Digests of the parents that are drawn."""
    return tuple(parent.digest for parent in row.parents if parent.digest in rows)


def _depths(rows: Mapping[str, LineageRow]) -> dict[str, int]:
    """Longest path from a root; even a broken (cyclic) file terminates, since levels are bounded."""
    depth = dict.fromkeys(rows, 0)
    for _ in rows:
        for key, row in rows.items():
            above = [depth[parent] + 1 for parent in _parents(row, rows)]
            depth[key] = min(max(above, default=0), len(rows) - 1)
    return depth


def _node(row: LineageRow, parents: tuple[str, ...], level: int, place: int) -> Node:
    return Node(
        kind=row.kind,
        digest=row.digest,
        parents=parents,
        reused=row.reused,
        seed="" if row.seed is None else str(row.seed),
        seconds=duration(row.seconds),
        bytes=size(row.bytes),
        depth=level,
        x=1 + level * (NODE_WIDTH + GAP_X),
        y=1 + place * (NODE_HEIGHT + GAP_Y),
    )


def _edges(nodes: Sequence[Node]) -> Iterable[str]:
    """Neighbouring levels are joined directly; a longer edge passes below the nodes, not behind them."""
    below = max(node.y for node in nodes) + NODE_HEIGHT + ROOM_BELOW // 2
    placed = {node.digest: node for node in nodes}
    for node in nodes:
        for parent in (placed[key] for key in node.parents):
            x0, y0 = parent.x + NODE_WIDTH, parent.y + NODE_HEIGHT // 2
            x1, y1 = node.x, node.y + NODE_HEIGHT // 2
            if node.depth <= parent.depth + 1:
                middle = x0 + GAP_X // 2
                yield f"M{x0} {y0} C{middle} {y0} {middle} {y1} {x1} {y1}"
                continue
            left, right, bend = x0 + GAP_X // 2, x1 - GAP_X // 2, GAP_X // 2 - 4
            down, up = f"C{left} {y0} {left - bend} {below} {left + bend} {below}", f"H{right - bend}"
            yield f"M{x0} {y0} {down} {up} C{right + bend} {below} {right} {y1} {x1} {y1}"
