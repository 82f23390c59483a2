"""The last step of stage=rm: held-out scores, normalisation on reference responses, and the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlaif.data.datamodule import PreferenceRow
from rlaif.io import read_jsonl, write_jsonl
from rlaif.models.split import ScalarHead, Top
from rlaif.models.weights import Normalization, RewardMember, save_reward
from rlaif.stages.common.context import Context
from rlaif.stages.common.rows import reference_rows
from rlaif.stages.common.scoring import score_pairs, score_rows
from rlaif.stages.rm.accuracy import fitted_temperature, read_reward_items, reward_items, reward_report
from rlaif.stages.rm.bins import (
    disagreement_bins,
    reward_confidence_bins,
    reward_length_bins,
    reward_reliability,
)
from rlaif.stages.rm.scored_pairs import scored_pairs
from rlaif.store import Artifact

SCORES_FILE = "scores.jsonl"

Member = tuple[Top, ScalarHead]
PairScores = Sequence[tuple[float, float]]


def measure_and_save(
    ctx: Context,
    folder: Path,
    members: Sequence[Member],
    validation: Sequence[PreferenceRow],
    test: Sequence[PreferenceRow],
) -> dict[str, Any]:
    """Write the normalised members and the test pairs' scores to `folder`; return the test pairs' metrics.

    The validation part fits the temperature and, if the task has no references, the normalisation.
    """
    tuning, scores = (score_pairs(ctx, members, part) for part in (validation, test))
    labels = [row.p_a for row in validation]
    anchors = reference_scores(ctx, members) or [preferred_scores(one, labels) for one in tuning]
    normalization = [Normalization.of(one) for one in anchors]
    save_reward(folder, [RewardMember.fold(*m, n) for m, n in zip(members, normalization, strict=True)])
    temperature = fitted_temperature(scored_pairs(validation, tuning, normalization))
    rows = scored_pairs(test, scores, normalization)
    write_jsonl(folder / SCORES_FILE, reward_items(rows))
    return reward_report(rows, temperature=temperature)


def reference_scores(ctx: Context, members: Sequence[Member]) -> list[list[float]]:
    """Each member's scores of the validation prompts' references; empty if there are fewer than 2.

    The prompts are the task's own validation split: no model in the path was trained on them.
    """
    rows = reference_rows(ctx, ctx.task.validation, ctx.options.rm.normalize_rows, "reference")
    return [score_rows(ctx, top, head, rows) for top, head in members] if len(rows) > 1 else []


def preferred_scores(scores: PairScores, labels: Sequence[float]) -> list[float]:
    """The scores of the responses that the labels prefer; of all responses if they prefer fewer than 2."""
    preferred = [a if p > 0.5 else b for (a, b), p in zip(scores, labels, strict=True) if p != 0.5]
    return preferred if len(preferred) > 1 else [score for pair in scores for score in pair]


def item_rows(rm: Artifact) -> list[dict[str, Any]]:
    """One row per test pair: what `rm/accuracy` is the mean of, with both rewards."""
    return list(read_jsonl(rm.file(SCORES_FILE)))


def table_rows(rm: Artifact) -> dict[str, list[dict[str, Any]]]:
    """The tables behind `rm/ece`, `rm/confidence_*`, `rm/length_*` and `rm/disagreement_*`."""
    rows = read_reward_items(item_rows(rm))
    return {
        "rm_reliability": reward_reliability(rows, rm.metrics.get("rm/fitted_temperature")),
        "rm_confidence": reward_confidence_bins(rows),
        "rm_length": reward_length_bins(rows),
        "rm_disagreement": disagreement_bins(rows),
    }
