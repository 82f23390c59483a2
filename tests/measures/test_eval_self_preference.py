"""The matrix of arms and judges, and what a judge of the labeler's family gives more, against plain loops."""

from __future__ import annotations

from statistics import fmean

import numpy as np
import pytest

from rlaif.stages.eval.self_preference import JudgedArm, self_preference_metrics, self_preference_rows
from rlaif.stats import paired_difference

JUDGES = {"own": "gpt", "kin": "gpt", "near": "encoder", "long": "rule longer"}


def _verdicts(seed: int, judges: dict[str, str | None]) -> list[dict]:
    """Twenty prompts; each judge misses some."""
    rng = np.random.default_rng(seed)
    return [
        {"id": f"p{i}", "prompt_id": f"q{i // 2}", "judge": judge, "value": float(rng.choice([0, 0.5, 1]))}
        for judge in judges
        for i in range(20)
        if rng.random() > 0.15
    ]


def test_the_matrix_is_that_of_a_plain_loop() -> None:
    seeds = [_verdicts(1, JUDGES), _verdicts(2, JUDGES)]
    rows = self_preference_rows(
        [JudgedArm("ai", "gpt", JUDGES, seeds), JudgedArm("people", None, JUDGES, seeds)]
    )
    assert [(row["arm"], row["judge"]) for row in rows] == [(a, j) for a in ("ai", "people") for j in JUDGES]
    given = [
        {judge: {r["id"]: r["value"] for r in seed if r["judge"] == judge} for judge in JUDGES}
        for seed in seeds
    ]
    for row in rows:
        both = [i for i in given[0][row["judge"]] if i in given[1][row["judge"]]]
        assert row["n"] == len(both) and row["win_rate_ci_low"] < row["win_rate"] < row["win_rate_ci_high"]
        assert row["win_rate"] == pytest.approx(fmean(seed[row["judge"]][i] for seed in given for i in both))
        related = row["arm"] == "ai" and JUDGES[row["judge"]] == "gpt"
        assert row["related"] is related and (row["self_preference"] is not None) is related
        if related:
            # Against the judges of other families: a sibling would favour the policy too.
            read = [row["judge"], "near", "long"]
            ids = [i for i in given[0][row["judge"]] if all(i in seed[j] for seed in given for j in read)]
            x = [[seed[row["judge"]][i] for i in ids] for seed in given]
            y = [[(seed["near"][i] + seed["long"][i]) / 2 for i in ids] for seed in given]
            expected, p = paired_difference(x, y, [f"q{int(i[1:]) // 2}" for i in ids], outcomes=False)
            assert row["self_preference"] == pytest.approx(expected.estimate) and row["p"] == pytest.approx(p)
            assert row["self_preference_ci_low"] == pytest.approx(expected.low)
            assert row["self_preference_n"] == len(ids) and row["p_holm"] >= row["p"]


def test_an_arms_number_is_that_of_its_first_relative() -> None:
    rows = self_preference_rows([JudgedArm("ai", "gpt", JUDGES, [_verdicts(1, JUDGES)])])
    metrics = self_preference_metrics(rows)
    assert set(metrics) == {"ai"}
    assert metrics["ai"]["eval/self_preference"] == rows[0]["self_preference"] != rows[1]["self_preference"]
    assert metrics["ai"]["eval/self_preference_ci_low"] == rows[0]["self_preference_ci_low"]


def test_nothing_is_said_without_others_to_compare_with() -> None:
    relatives = {"own": "gpt", "kin": "gpt"}
    rows = self_preference_rows([JudgedArm("ai", "gpt", relatives, [_verdicts(1, relatives)])])
    assert [row["self_preference"] for row in rows] == [None, None] and self_preference_metrics(rows) == {}
    alone = {"own": "gpt"}
    assert self_preference_rows([JudgedArm("ai", "gpt", alone, [_verdicts(1, alone)])]) == []
    assert self_preference_rows([JudgedArm("ai", "gpt", JUDGES, [[]])]) == []
    # A judge without a known family is no relative of a labeler without one.
    unknown = {"a": None, "b": "encoder"}
    rows = self_preference_rows([JudgedArm("people", None, unknown, [_verdicts(1, unknown)])])
    assert not any(row["related"] for row in rows)
