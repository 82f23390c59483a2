"""Do judges favour the policies that learnt from their relatives? Each arm's win rate by each judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlaif.stages.common.measures.joining import with_bounds
from rlaif.stages.common.stage import Row
from rlaif.stats import Interval, arm_interval, holm, paired_difference

Verdicts = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class JudgedArm:
    """An arm whose policy several judges compared with the SFT policy.

    `labeler` is the family of the labeler that the policy was trained to please, None if it was none; `judges` gives
    the judges' families; `seeds` has the verdicts of each seed (rows of `judges.read_verdicts`).
    """

    name: str
    labeler: str | None
    judges: Mapping[str, str | None]
    seeds: Sequence[Verdicts]


def self_preference_rows(arms: Sequence[JudgedArm]) -> list[Row]:
    """A row per arm and judge: the win rate by this judge and, if it is of the labeler's family, `self_preference`.

    That is its win rate less the mean of the judges of other families, paired over the prompts that all of them could
    read (in every seed), with p and Holm's p over all rows that have one. Empty unless an arm had several judges.
    """
    rows = [row for arm in arms if any(map(len, arm.seeds)) for row in _arm_rows(arm)]
    if not any(len(arm.judges) > 1 for arm in arms):
        return []
    adjusted = holm({str(place): row["p"] for place, row in enumerate(rows) if row["p"] is not None})
    return [{**row, "p_holm": adjusted.get(str(place))} for place, row in enumerate(rows)]


def _arm_rows(arm: JudgedArm) -> list[Row]:
    seeds = [_by_judge(verdicts) for verdicts in arm.seeds]
    clusters = {row["id"]: str(row.get("group") or row["prompt_id"]) for seed in arm.seeds for row in seed}
    others = [name for name, own in arm.judges.items() if own is None or own != arm.labeler]
    rows = []
    for judge, own in arm.judges.items():
        values, prompts = _shared(seeds, [judge], clusters)
        rate = arm_interval(values[:, 0], prompts)
        related = own is not None and own == arm.labeler
        row: Row = {"arm": arm.name, "judge": judge, "labeler_family": arm.labeler, "judge_family": own}
        row |= {"related": related, **with_bounds("win_rate", rate), "n": rate.n}
        excess, p = _excess(seeds, judge, others, clusters) if related and others else (None, None)
        found: Row = {f"self_preference{end}": None for end in ("", "_ci_low", "_ci_high", "_n")}
        if excess is not None:
            found |= {**with_bounds("self_preference", excess), "self_preference_n": excess.n}
        rows.append({**row, **found, "p": p})
    return rows


def _excess(
    seeds: Sequence[Mapping[str, Mapping[str, float]]],
    judge: str,
    others: Sequence[str],
    clusters: Mapping[str, str],
) -> tuple[Interval, float]:
    """The judge's verdicts less the mean of the others' on the same responses."""
    values, prompts = _shared(seeds, [judge, *others], clusters)
    return paired_difference(values[:, 0], values[:, 1:].mean(axis=1), prompts, outcomes=False)


def _by_judge(verdicts: Verdicts) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for row in verdicts:
        found.setdefault(row["judge"], {})[row["id"]] = row["value"]
    return found


def _shared(
    seeds: Sequence[Mapping[str, Mapping[str, float]]], judges: Sequence[str], clusters: Mapping[str, str]
) -> tuple[np.ndarray, list[str]]:
    """Verdicts (S, judges, n) on the n prompts that all these judges could read in every seed, and their clusters."""
    given = [seed.get(judge, {}) for seed in seeds for judge in judges]
    ids = [name for name in given[0] if all(name in own for own in given)]
    table = np.array([[own[name] for name in ids] for own in given])
    return table.reshape(len(seeds), len(judges), len(ids)), [clusters[name] for name in ids]


def self_preference_metrics(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """`eval/self_preference` of each arm that has one; of several related judges, that of the first."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["self_preference"] is not None and row["arm"] not in found:
            ends = ("", "_ci_low", "_ci_high")
            found[row["arm"]] = {f"eval/self_preference{end}": row[f"self_preference{end}"] for end in ends}
    return found
