"""Finished runs as the arms of a comparison: named by the overrides that differ, and grouped by seed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlaif.errors import UserError
from rlaif.study.arm_table import Rows, compare_items, mean_summary, standing
from rlaif.tracking.runs import Row, RunRecord, Scalar, number
from rlaif.tracking.text import lower_is_better, metric_label

# Keys of overrides that make no arm.
_HOUSEKEEPING = re.compile(r"paths\.|hydra[./]|dashboard|tracking|force|plan|export|stage|experiments|sweeps")


@dataclass(frozen=True)
class Sweep:
    """Runs by arm, the best first; `rows` and `tests` as a comparison records them.

    `metrics[0]` ranks the arms, and they are tested on it if their runs have its test items. `notes`: the runs and
    seeds that are left out of that.
    """

    metrics: tuple[str, ...]
    arms: Mapping[str, tuple[RunRecord, ...]]
    rows: Rows
    tests: Rows
    notes: tuple[str, ...]


def split_override(override: str) -> tuple[str, str]:
    """`+rm.lr=1e-4` as (`rm.lr`, `1e-4`)."""
    key, _, value = override.lstrip("+~").partition("=")
    return key, value


def _is_seed(key: str) -> bool:
    return key == "seed" or key.startswith("seeds.")


def _overrides(run: RunRecord) -> dict[str, str]:
    """The overrides that make an arm: everything but seeds and housekeeping."""
    pairs = dict(map(split_override, run.overrides))
    kept = (key for key in pairs if not _is_seed(key) and not _HOUSEKEEPING.match(key))
    return {"stage": run.stage, **{key: pairs[key] for key in kept}}


def differing_keys(runs: Sequence[RunRecord]) -> list[str]:
    """The keys of the overrides, and `stage`, whose values differ between `runs`."""
    arms = [_overrides(run) for run in runs]
    keys = dict.fromkeys(key for arm in arms for key in arm)
    return [key for key in keys if len({arm.get(key) for arm in arms}) > 1]


def arm_labels(runs: Sequence[RunRecord]) -> list[str]:
    """One label per run: the overrides whose values differ between `runs` (`default` if none)."""
    arms, differing = [_overrides(run) for run in runs], differing_keys(runs)
    return [", ".join(f"{key}={arm[key]}" for key in differing if key in arm) or "default" for arm in arms]


def group_runs(runs: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Runs by arm label, in the order of their seeds; if a seed was run again, the later finished run counts."""
    return {label: list(own.values()) for label, own in _by_seed(runs).items()}


Seeded = Mapping[tuple[str, ...], RunRecord]
"""Runs by the seeds on their command lines."""


def _by_seed(runs: Sequence[RunRecord]) -> dict[str, Seeded]:
    """Runs by arm label and seeds."""
    groups: dict[str, dict[tuple[str, ...], RunRecord]] = {}
    for label, run in zip(arm_labels(runs), runs, strict=True):
        pairs = map(split_override, run.overrides)
        seeds = tuple(sorted(f"{key}={value}" for key, value in pairs if _is_seed(key)))
        earlier = groups.setdefault(label, {}).get(seeds)
        if earlier is None or _counts(run) >= _counts(earlier):
            groups[label][seeds] = run
    return {label: dict(sorted(own.items())) for label, own in groups.items()}


def _counts(run: RunRecord) -> tuple[bool, str]:
    """A finished run is not replaced by one of the same seed that is still running, or failed."""
    return not _is_unfinished(run), run.id


def _is_unfinished(run: RunRecord) -> bool:
    return run.state != "finished"


def _finished(seeds: Seeded) -> Seeded:
    return {seed: run for seed, run in seeds.items() if not _is_unfinished(run)}


def _paired_items(seeds: Mapping[str, Seeded]) -> dict[str, list[list[Row]]]:
    """Test items of the seeds that all arms have, in one order; of one run per arm if they share no seed."""
    shared = [seed for seed in next(iter(seeds.values())) if all(seed in own for own in seeds.values())]
    chosen = {label: [own[seed] for seed in shared] or list(own.values())[:1] for label, own in seeds.items()}
    return {label: [run.table("items") for run in group] for label, group in chosen.items()}


def sweep(runs: Sequence[RunRecord], metrics: Sequence[str]) -> Sweep:
    """Compare runs over `metrics`, by the same means and tests as any comparison.

    Runs that have not finished are in `arms`, after their arm's finished ones, and have no part in means and tests.
    Raises UserError without runs, without metrics, and without any value of the main metric.
    """
    if not runs or not metrics:
        raise UserError("report: nothing to compare; give at least one finished run and one metric")
    main, seeds = metrics[0], _by_seed(runs)
    groups = {label: sorted(own.values(), key=_is_unfinished) for label, own in seeds.items()}
    seeds = {label: _finished(own) or own for label, own in seeds.items()}
    items = {label: [run.table("items") for run in own.values()] for label, own in seeds.items()}
    means = {
        label: mean_summary([run.summary for run in own.values()], items[label])
        for label, own in seeds.items()
    }
    if all(number(mean, main) is None for mean in means.values()):
        raise UserError(f"report: no run has the metric {main}; name one from their summary.json")
    measured = {label: own for label, own in seeds.items() if number(means[label], main) is not None}
    tests = compare_items(_paired_items(measured), [main])
    stands = standing(tests)
    order = sorted(groups, key=lambda label: _rank(means[label], main))
    order.sort(key=lambda label: not stands.get(label, {}).get("best", False))
    rows = [
        {"arm": label, "seeds": len(seeds[label]), **means[label], **stands.get(label, {})} for label in order
    ]
    earlier, unfinished = len(runs) - sum(map(len, groups.values())), sum(map(_is_unfinished, runs))
    notes = _notes(earlier, unfinished, measured, main, tests)
    return Sweep(tuple(metrics), {label: tuple(groups[label]) for label in order}, rows, tests, notes)


def _notes(
    earlier: int, unfinished: int, seeds: Mapping[str, Seeded], main: str, tests: Rows
) -> tuple[str, ...]:
    """What is left out: earlier runs of a seed, seeds without the main metric, seeds that some arm lacks."""
    lacking = sum(number(run.summary, main) is None for own in seeds.values() for run in own.values())
    most = max(map(len, seeds.values()))
    tested = int(tests[0]["seeds"]) if tests else most
    notes = {
        f"{earlier} other run(s) of the same arm and seed left out.": earlier,
        f"{unfinished} run(s) that have not finished have no part in means and tests.": unfinished,
        f"{lacking} run(s) without {metric_label(main)} have no part in its means.": lacking,
        f"Tested on {tested} of up to {most} seeds: those that all arms have, or one of each.": tested < most,
    }
    return tuple(sentence for sentence, holds in notes.items() if holds)


def _rank(summary: Mapping[str, Scalar], name: str) -> float:
    value = number(summary, name)
    if value is None:
        return math.inf
    return value if lower_is_better(name) else -value
