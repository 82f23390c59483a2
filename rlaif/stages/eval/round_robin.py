"""Every policy against every other on the same prompts: the verdicts, and Bradley-Terry strengths from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from rlaif.data.encode import Cuts
from rlaif.io import read_jsonl, write_jsonl
from rlaif.stages.common.context import Context
from rlaif.stages.common.measures.joining import cluster, with_bounds
from rlaif.stages.common.measures.win_rate import win_rate_items
from rlaif.stages.common.stage import Row
from rlaif.stages.eval.answers import Policy, answers
from rlaif.stages.eval.judges import Judges, judges_config
from rlaif.stats import arm_interval, bradley_terry, holm, mean_interval, paired_difference
from rlaif.store import Artifact, ArtifactSpec

MEETINGS_FILE = "meetings.jsonl"
VERSION = 1
BASELINE = "SFT"
"""The player that every strength is relative to: the SFT policy, or the base model."""


def round_robin(ctx: Context, players: Mapping[str, Policy]) -> Artifact:
    """The judge's verdict on every pair of players and every prompt: a row per verdict that could be read."""
    options = ctx.options.eval
    sources = {source.name: source for policy in players.values() for source in policy.sources}
    spec = ArtifactSpec(
        kind="roundrobin",
        config={
            "players": {
                name: [source.manifest["files"] for source in own.sources] for name, own in players.items()
            },
            "eval": {
                key: getattr(options, key) for key in ("num_prompts", "temperature", "top_k", "tie_margin")
            },
            **_judges(ctx),
            "model": ctx.model_identity,
            "encoding": ctx.encoding,
        },
        parents=tuple(sources.values()),
        seed=ctx.options.seeds.eval,
        version=VERSION,
        data_hash=ctx.task.fingerprint,
    )

    def build(folder: Path) -> dict[str, Any]:
        rows = _met(ctx, players)
        write_jsonl(folder / MEETINGS_FILE, rows)
        return {"eval/n": len(rows)}

    return ctx.store.get_or_build(spec, build)


def _judges(ctx: Context) -> dict[str, Any]:
    """The judges that decide, for the digest; their names are in no row."""
    return {key: value for key, value in judges_config(ctx, every=False).items() if key != "name"}


def _met(ctx: Context, players: Mapping[str, Policy]) -> list[Row]:
    given = {name: answers(ctx, policy, name, Cuts()) for name, policy in players.items()}
    judges, rows = Judges.of(ctx, ctx.options.deciding_keys), []
    for first, second in combinations(players, 2):
        sides = list(zip(given[first], given[second], strict=True))
        for row in win_rate_items(judges.headline(judges.ask(sides), sides)):
            value = row.pop("eval/win_rate")
            rows.append({**row, "first": first, "second": second, "value": value})
    return rows


def read_meetings(meetings: Artifact) -> list[Row]:
    """The rows that `round_robin` wrote."""
    return list(read_jsonl(meetings.file(MEETINGS_FILE)))


def strength_items(meetings: Sequence[Row]) -> dict[str, list[Row]]:
    """For every player but the baseline, a row per prompt: its part of `eval/strength`, which is the parts' mean."""
    prompts, players, table = _table(meetings)
    pairs = list(combinations(range(len(players)), 2))
    parts = bradley_terry(pairs, table).parts
    own = parts - parts[:, [players.index(BASELINE)]]
    return {
        name: [
            {**prompt, "eval/strength": value}
            for prompt, value in zip(prompts, own[:, i].tolist(), strict=True)
        ]
        for i, name in enumerate(players)
        if name != BASELINE
    }


def strength_metrics(items: Sequence[Row]) -> dict[str, float]:
    """`eval/strength` of one player with its interval, from its items."""
    values = [row["eval/strength"] for row in items]
    return with_bounds("eval/strength", mean_interval(values, list(map(cluster, items))))


def meeting_rows(seeds: Sequence[Sequence[Row]]) -> list[Row]:
    """A row per pair of players, over all seeds: the first one's win rate with its interval, and p with Holm's."""
    tables = [_table(meetings) for meetings in seeds]
    players = tables[0][1]
    rows: list[Row] = []
    for column, (i, j) in enumerate(combinations(range(len(players)), 2)):
        values, clusters = _shared([(prompts, table[:, column]) for prompts, _, table in tables])
        rate = arm_interval(values, clusters)
        _, p = paired_difference(values, np.full_like(values, 0.5), clusters)
        bounds = {"win_rate": rate.estimate, "ci_low": rate.low, "ci_high": rate.high}
        rows.append({"first": players[i], "second": players[j], **bounds, "p": p, "n": rate.n})
    adjusted = holm({str(index): row["p"] for index, row in enumerate(rows)})
    return [{**row, "p_holm": adjusted[str(index)]} for index, row in enumerate(rows)]


def meeting_values(
    seeds: Sequence[Sequence[Row]], first: str, second: str, *, unread: float | None = None
) -> tuple[np.ndarray, list[str]]:
    """Outcomes (S, n) of `first` against `second` on the prompts that have one in every seed, and their clusters.

    `unread` stands for a verdict that could not be read; without it such prompts are left out.
    """
    found = []
    for meetings in seeds:
        prompts, players, table = _table(meetings)
        i, j = players.index(first), players.index(second)
        column = list(combinations(range(len(players)), 2)).index((min(i, j), max(i, j)))
        values = table[:, column] if i < j else 1 - table[:, column]
        found.append((prompts, values if unread is None else np.nan_to_num(values, nan=unread)))
    return _shared(found)


def _table(meetings: Sequence[Row]) -> tuple[list[Row], list[str], np.ndarray]:
    """The prompts, the players in order, and outcomes (prompts, pairs), NaN where a verdict could not be read."""
    players = list(dict.fromkeys(row[side] for row in meetings for side in ("first", "second")))
    prompts: dict[str, Row] = {}
    for row in meetings:
        prompts.setdefault(row["id"], {key: row[key] for key in ("id", "prompt_id", "group") if key in row})
    columns = {pair: column for column, pair in enumerate(combinations(players, 2))}
    places = {name: place for place, name in enumerate(prompts)}
    table = np.full((len(prompts), len(columns)), math.nan)
    for row in meetings:
        table[places[row["id"]], columns[row["first"], row["second"]]] = row["value"]
    return list(prompts.values()), players, table


def _shared(seeds: Sequence[tuple[list[Row], np.ndarray]]) -> tuple[np.ndarray, list[str]]:
    """Outcomes (S, n) of the prompts that have one in every seed, and their clusters."""
    found = [
        {
            row["id"]: value
            for row, value in zip(prompts, values.tolist(), strict=True)
            if not math.isnan(value)
        }
        for prompts, values in seeds
    ]
    clusters = {row["id"]: cluster(row) for prompts, _ in seeds for row in prompts}
    shared = [name for name in found[0] if all(name in own for own in found)]
    return np.array([[own[name] for name in shared] for own in found]), [clusters[name] for name in shared]
