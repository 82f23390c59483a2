"""How well a reward model ranks pairs, how far its probabilities can be trusted, how much of it is length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

import numpy as np
from scipy.special import expit

from rlaif.stages.common.measures.bins import bin_metrics
from rlaif.stages.common.measures.joining import rate_metrics, symmetric_calibration, with_bounds
from rlaif.stages.rm.bins import disagreement_bins, reward_confidence_bins, reward_length_bins
from rlaif.stages.rm.scored_pairs import ScoredPair
from rlaif.stats import fit_temperature, paired_test


def reward_report(rows: Sequence[ScoredPair], *, temperature: float | None) -> dict[str, float]:
    """Flat metrics `rm/*` of a reward model on held-out pairs; keys without data are absent.

    `accuracy` is against the labels' preferred response (labels of 0.5 or unparsed are left out, equal rewards count
    half; the pairwise accuracy of Lee et al. 2023), `gold_accuracy` against gold; intervals cluster by prompt.
    `length_only_*` is the rule "longer is better" on the same pairs. `ece` and `brier` compare sigmoid(logit) with
    the soft labels for the preferred side; `ece_fitted` does so after dividing the logits by `temperature` (fitted on
    other pairs, see `fitted_temperature`). `length_correlation` is Pearson's r of reward and tokens over all
    responses, `disagreement` the mean over pairs. `n` counts pairs.
    """
    report: dict[str, float] = {"rm/n": len(rows)}
    if not rows:
        return report
    report |= _accuracy("rm/accuracy", rows, [row.right for row in rows])
    report |= _accuracy("rm/gold_accuracy", rows, [row.gold_right for row in rows])
    report |= _length_only(rows) | _calibration(rows, temperature)
    rewards = [reward for row in rows for reward in (row.reward_a, row.reward_b)]
    tokens = [count for row in rows for count in (row.tokens_a, row.tokens_b)]
    report["rm/length_correlation"] = _correlation(rewards, tokens)
    report |= bin_metrics("rm/confidence", reward_confidence_bins(rows))
    report |= bin_metrics("rm/length", reward_length_bins(rows))
    spread = [row.disagreement for row in rows if row.disagreement is not None]
    if spread:
        report["rm/disagreement"] = fmean(spread)
        report |= bin_metrics("rm/disagreement", disagreement_bins(rows))
    return report


def fitted_temperature(rows: Sequence[ScoredPair]) -> float | None:
    """The temperature at which the logits fit the soft labels best; None if the rows do not determine it."""
    labelled = [(row.logit, row.p_a) for row in rows if row.p_a is not None]
    found = fit_temperature([x for x, _ in labelled], [y for _, y in labelled])
    return None if math.isnan(found) else found


def reward_items(rows: Sequence[ScoredPair]) -> list[dict[str, Any]]:
    """The rows as plain data, with the values that `rm/accuracy` and `rm/gold_accuracy` are means of."""
    return [{**asdict(row), "rm/accuracy": row.right, "rm/gold_accuracy": row.gold_right} for row in rows]


def read_reward_items(items: Sequence[dict[str, Any]]) -> list[ScoredPair]:
    """What `reward_items` wrote."""
    return [ScoredPair(**{name: row[name] for name in ScoredPair.__dataclass_fields__}) for row in items]


def _accuracy(name: str, rows: Sequence[ScoredPair], right: Sequence[float | None]) -> dict[str, float]:
    kept = [(row.cluster, value) for row, value in zip(rows, right, strict=True) if value is not None]
    return rate_metrics(name, kept) if kept else {}


def _length_only(rows: Sequence[ScoredPair]) -> dict[str, float]:
    """The rule's accuracy, and the model's lead over it with a paired test clustered by prompt."""
    kept = [
        (row.cluster, row.right, row.longer_right)
        for row in rows
        if row.right is not None and row.longer_right is not None
    ]
    if not kept:
        return {}
    prompts, model, rule = (list(column) for column in zip(*kept, strict=True))
    lead, p = paired_test(model, rule, prompts)
    return {
        **_accuracy("rm/length_only_accuracy", rows, [row.longer_right for row in rows]),
        **with_bounds("rm/length_only_gap", lead),
        "rm/length_only_p_value": p,
    }


def _calibration(rows: Sequence[ScoredPair], temperature: float | None) -> dict[str, float]:
    labelled = [(row.logit, row.p_a) for row in rows if row.p_a is not None]
    if not labelled:
        return {}
    logits, labels = np.array([x for x, _ in labelled]), [y for _, y in labelled]
    ece, brier = symmetric_calibration(expit(logits).tolist(), labels)
    report = {"rm/ece": ece, "rm/brier": brier}
    if temperature is not None:
        report["rm/ece_fitted"], _ = symmetric_calibration(expit(logits / temperature).tolist(), labels)
        report["rm/fitted_temperature"] = temperature
    return report


def _correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's r; NaN if either side is constant."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])
