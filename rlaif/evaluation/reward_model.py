"""How well a reward model ranks pairs, and how much of that is length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from rlaif.evaluation.joining import agreement, by_pair, preference_by_pair, symmetric_calibration
from rlaif.records import Pair, Preference
from rlaif.stats import proportion_interval

_SEED = 0  # resampling noise of an interval, as in `alignment`


def reward_report(
    pairs: Sequence[Pair],
    preferences: Sequence[Preference],
    scores: Sequence[tuple[float, float]],
    lengths: Sequence[tuple[int, int]],
    *,
    prefix: str = "rm",
) -> dict[str, float]:
    """Flat metrics `<prefix>/*`; `scores[i]` and `lengths[i]` (tokens) are pair i's (a, b).

    `accuracy` is against the labels' preferred response (labels of 0.5 or unparsed are left out; equal
    rewards count half), `gold_accuracy` against gold where there is some; intervals cluster by prompt.
    `ece` and `brier` compare sigmoid(reward_a - reward_b) with the soft labels, for the preferred side.
    `length_correlation` is Pearson's of reward and tokens over all responses, `length_only_accuracy`
    what "longer is better" would reach. `n` counts pairs. Keys without data are absent.
    Raises ValueError when the columns do not fit together.
    """
    if not len(pairs) == len(scores) == len(lengths):
        raise ValueError(f"{len(pairs)} pairs, {len(scores)} scores and {len(lengths)} lengths do not match")
    by_pair(pairs, preferences)
    label_of = preference_by_pair(preferences)
    labels = [label_of[pair.id].p_a if pair.id in label_of else None for pair in pairs]
    p = [float(expit(a - b)) for a, b in scores]
    sides = [float(np.sign(a - b)) for a, b in scores]
    longer = [float(np.sign(a - b)) for a, b in lengths]
    prompts = [pair.prompt_id for pair in pairs]
    report: dict[str, float] = {f"{prefix}/n": len(pairs)}
    report |= _accuracy(f"{prefix}/accuracy", sides, labels, prompts)
    report |= _accuracy(f"{prefix}/gold_accuracy", sides, [pair.gold for pair in pairs], prompts)
    only = _accuracy("length", longer, labels, prompts)
    if only:
        report[f"{prefix}/length_only_accuracy"] = only["length"]
    labelled = [(x, y) for x, y in zip(p, labels, strict=True) if y is not None]
    if labelled:
        ece, brier = symmetric_calibration([x for x, _ in labelled], [y for _, y in labelled])
        report |= {f"{prefix}/ece": ece, f"{prefix}/brier": brier}
    if pairs:
        report[f"{prefix}/length_correlation"] = _correlation(np.ravel(scores), np.ravel(lengths))
    return report


def reward_items(
    pairs: Sequence[Pair],
    preferences: Sequence[Preference],
    scores: Sequence[tuple[float, float]],
    lengths: Sequence[tuple[int, int]],
) -> list[dict[str, Any]]:
    """A row for each pair with its rewards, tokens and targets; None where a target prefers no side.

    The mean of its `rm/accuracy` (and `rm/gold_accuracy`) is the report's.
    """
    label_of = {preference.pair_id: preference.p_a for preference in preferences}
    rows = []
    for pair, (a, b), (tokens_a, tokens_b) in zip(pairs, scores, lengths, strict=True):
        side = (float(np.sign(a - b)) + 1) / 2
        targets = {"rm/accuracy": label_of.get(pair.id), "rm/gold_accuracy": pair.gold}
        right = {
            name: None if target in (None, 0.5) else agreement(side, target)
            for name, target in targets.items()
        }
        values = {"reward_a": a, "reward_b": b, "tokens_a": tokens_a, "tokens_b": tokens_b}
        own = {"id": pair.id, "prompt_id": pair.prompt_id, "p_a": label_of.get(pair.id), "gold": pair.gold}
        rows.append({**own, **values, **right})
    return rows


def _accuracy(
    name: str, sides: Sequence[float], targets: Sequence[float | None], prompts: Sequence[str]
) -> dict[str, float]:
    """Share of decided targets whose side (sign of the difference, 0 = undecided) is met."""
    kept = [i for i, target in enumerate(targets) if target is not None and target != 0.5]
    if not kept:
        return {}
    right = [agreement((sides[i] + 1) / 2, targets[i]) for i in kept]
    interval = proportion_interval(right, [prompts[i] for i in kept], seed=_SEED)
    return {name: interval.estimate, f"{name}_ci_low": interval.low, f"{name}_ci_high": interval.high}


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's r; NaN where either side is constant."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])
