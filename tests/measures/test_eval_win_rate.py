"""Verdicts and win rates counted by hand."""

import dataclasses
import math

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit
from scipy.stats import ttest_rel

from rlaif.records import Comparison, Pair, Preference
from rlaif.stages.common.measures.win_rate import (
    compare,
    outcome_of,
    text_gains,
    win_rate_by_length,
    win_rate_report,
)
from rlaif.stats import length_controlled_win_rate, proportion_interval, sign_test


def make(p: list[float | None], prompts: list[str] | None = None) -> tuple[list[Pair], list[Preference]]:
    prompts = prompts or [f"prompt-{i}" for i in range(len(p))]
    pairs = [Pair(str(i), prompts[i], "p", "policy", "baseline", "policy") for i in range(len(p))]
    preferences = [
        Preference(str(i), v, None, None, 2, "unparsed" if v is None else "ok", "logprob")
        for i, v in enumerate(p)
    ]
    return pairs, preferences


def comparisons_of(
    p: list[float | None], prompts: list[str] | None = None, seed: int = 0
) -> list[Comparison]:
    lengths = [tuple(row) for row in np.random.default_rng(seed).integers(5, 60, (len(p), 2)).tolist()]
    return compare(*make(p, prompts), lengths, tie_margin=0.05)


def test_outcomes() -> None:
    expected = {0.56: "win", 0.44: "loss", 0.54: "tie", 0.46: "tie", 0.5: "tie", None: "unparsed"}
    assert {p: outcome_of(p, tie_margin=0.05) for p in expected} == expected
    # the margin itself is decided; without a margin only exactly 0.5 is a tie
    assert outcome_of(0.75, tie_margin=0.25) == "win" and outcome_of(0.25, tie_margin=0.25) == "loss"
    assert [outcome_of(p, tie_margin=0.0) for p in (0.5, 0.5001, 0.4999)] == ["tie", "win", "loss"]


def test_compare_keeps_order_and_sides() -> None:
    pairs, preferences = make([0.9, None])
    made = compare(pairs, preferences[::-1], [(3, 4), (5, 6)], tie_margin=0.1, references=["r", None])
    assert [x.outcome for x in made] == ["win", "unparsed"]
    first = made[0]
    assert (first.policy_response, first.baseline_response, first.p_policy) == ("policy", "baseline", 0.9)
    assert (first.policy_tokens, first.baseline_tokens, first.reference) == (3, 4, "r")
    assert made[1].p_policy is None and made[1].reference is None
    with pytest.raises(ValueError, match="no preference"):
        compare(pairs, preferences[:1], [(1, 1)] * 2, tie_margin=0.1)
    with pytest.raises(ValueError, match="do not match"):
        compare(pairs, preferences, [(1, 1)], tie_margin=0.1)


def test_report_by_hand() -> None:
    # 4 wins, 2 losses, 2 ties, 2 unparsed: (4 + 1) / 8
    p = [0.9, 0.8, 0.7, 0.6, 0.1, 0.2, 0.5, 0.52, None, None]
    items = comparisons_of(p)
    report = win_rate_report(items, seed=1)
    names = ("n", "wins", "losses", "ties", "unparsed")
    assert [report[f"eval/{name}"] for name in names] == [8, 4, 2, 2, 2]
    assert report["eval/win_rate"] == 0.625 and report["eval/unparsed_rate"] == 0.2
    assert report["eval/win_rate_worst"] == 0.5 and report["eval/win_rate_best"] == 0.7
    assert report["eval/p_value"] == sign_test(4, 2)
    values = [1, 1, 1, 1, 0, 0, 0.5, 0.5]
    expected = proportion_interval(values, range(8))
    assert (report["eval/win_rate_ci_low"], report["eval/win_rate_ci_high"]) == (expected.low, expected.high)
    assert report["eval/length_policy"] == pytest.approx(sum(x.policy_tokens for x in items) / 10)
    assert report["eval/length_baseline"] == pytest.approx(sum(x.baseline_tokens for x in items) / 10)
    # mutation: unparsed as losses or as ties is another rate
    assert report["eval/win_rate"] not in (0.5, 0.6)


def test_wilson_without_ties_and_length_control() -> None:
    p = [0.9] * 14 + [0.1] * 6
    items = comparisons_of(p)
    report = win_rate_report(items, seed=0)
    expected = proportion_interval([1.0] * 14 + [0.0] * 6, range(20))
    assert (report["eval/win_rate_ci_low"], report["eval/win_rate_ci_high"]) == (expected.low, expected.high)
    controlled = length_controlled_win_rate(
        p,
        [x.policy_tokens for x in items], [x.baseline_tokens for x in items],
        [x.prompt_id for x in items], seed=0,
    )  # fmt: skip
    names = ("eval/win_rate_lc", "eval/win_rate_lc_ci_low", "eval/win_rate_lc_ci_high")
    assert [report[n] for n in names] == [controlled.estimate, controlled.low, controlled.high]
    assert controlled.low < controlled.estimate < controlled.high


def test_repeated_prompts_are_one_vote() -> None:
    # 5 prompts with 4 answers each, all answers of a prompt alike: 4 prompts won, 1 lost
    prompts = [str(i // 4) for i in range(20)]
    items = comparisons_of([0.9] * 16 + [0.1] * 4, prompts)
    report = win_rate_report(items, seed=0)
    assert report["eval/p_value"] == sign_test(4, 1)
    # mutation: 20 independent votes would be significant
    assert sign_test(16, 4) < 0.05 < report["eval/p_value"]
    plain = win_rate_report([dataclasses.replace(x, prompt_id=x.id) for x in items], seed=0)
    width = [r["eval/win_rate_ci_high"] - r["eval/win_rate_ci_low"] for r in (report, plain)]
    assert width[0] > 1.5 * width[1]


def test_swapping_policy_and_baseline_mirrors_the_rate() -> None:
    items = comparisons_of([0.9, 0.8, 0.3, 0.5, 0.7, 0.1, 0.95])
    other = {"win": "loss", "loss": "win", "tie": "tie", "unparsed": "unparsed"}
    swapped = [
        dataclasses.replace(
            x, outcome=other[x.outcome], p_policy=1 - x.p_policy,
            policy_tokens=x.baseline_tokens, baseline_tokens=x.policy_tokens,
        )
        for x in items
    ]  # fmt: skip
    forward, backward = win_rate_report(items, seed=0), win_rate_report(swapped, seed=0)
    assert backward["eval/win_rate"] == pytest.approx(1 - forward["eval/win_rate"], abs=1e-12)
    assert backward["eval/win_rate_ci_low"] == pytest.approx(1 - forward["eval/win_rate_ci_high"], abs=1e-12)
    assert backward["eval/p_value"] == forward["eval/p_value"]


def test_nothing_parsed() -> None:
    report = win_rate_report(comparisons_of([None, None]), seed=0)
    assert report["eval/n"] == 0 and math.isnan(report["eval/win_rate"])
    assert (report["eval/win_rate_worst"], report["eval/win_rate_best"]) == (0.0, 1.0)
    assert win_rate_report([], seed=0)["eval/n"] == 0


def test_the_length_controlled_rate_is_fitted_to_preferences_as_alpacaeval_does() -> None:
    """AlpacaEval regresses the annotator's preference; verdicts would be another rate, with wider bounds."""
    rng = np.random.default_rng(4)
    n = 200
    tokens = rng.integers(10, 60, (n, 2))
    difference = tokens[:, 0] - tokens[:, 1]
    x = np.tanh(difference / difference.std())
    p = expit(0.25 + 0.8 * x + 0.3 * rng.normal(size=n))
    made = compare(*make(list(p)), [tuple(row) for row in tokens.tolist()], tie_margin=0.02)
    report = win_rate_report(made, seed=0)
    fit = sm.GLM(p, sm.add_constant(x), family=sm.families.Binomial()).fit(tol=1e-12)
    assert report["eval/win_rate_lc"] == pytest.approx(float(expit(fit.params[0])), abs=1e-8)
    assert report["eval/win_rate_lc"] == pytest.approx(expit(0.25), abs=0.02), "what was put in"
    verdicts = [{"win": 1.0, "tie": 0.5, "loss": 0.0}[one.outcome] for one in made]
    coarse = length_controlled_win_rate(verdicts, *tokens.T, range(n), seed=0)
    assert abs(coarse.estimate - report["eval/win_rate_lc"]) > 0.03
    width = report["eval/win_rate_lc_ci_high"] - report["eval/win_rate_lc_ci_low"]
    assert coarse.high - coarse.low > 1.5 * width
    # The rate itself still counts verdicts.
    assert report["eval/win_rate"] == pytest.approx(np.mean(verdicts))


def test_gains_are_policy_minus_baseline_on_the_same_prompts() -> None:
    pairs, preferences = make([0.9, 0.2, 0.6, 0.5])
    lengths = [(9, 4), (12, 6), (8, 8), (11, 3)]
    # ROUGE-L of one word each: the policy says "policy", the baseline "baseline".
    references = ["policy", "policy", "baseline", None]
    made = compare(pairs, preferences, lengths, tie_margin=0.05, references=references)
    found = text_gains(made)
    length = ttest_rel([9, 12, 8, 11], [4, 6, 8, 3])
    assert found["eval/length_gain"] == 19 / 4
    bounds = length.confidence_interval(0.95)
    assert (found["eval/length_gain_ci_low"], found["eval/length_gain_ci_high"]) == pytest.approx(
        tuple(bounds)
    )
    assert found["eval/rouge_l_gain"] == pytest.approx((1 + 1 - 1) / 3), "the last has no reference"
    # ROUGE-L of 0 and 1 is a score all the same, not a verdict.
    rouge = ttest_rel([1, 1, 0], [0, 0, 1]).confidence_interval(0.95)
    assert found["eval/rouge_l_gain_ci_low"] == pytest.approx(rouge.low)
    assert "eval/rouge_l_gain" not in text_gains(made[3:]) and text_gains([]) == {}


def test_win_rate_by_length_by_hand() -> None:
    # Tokens of policy and baseline: 10 against 20 is shorter, 19 and 22 against 20 similar (2 of 22), 40 longer.
    lengths = [(10, 20), (19, 20), (22, 20), (40, 20), (40, 20), (10, 20), (5, 5)]
    pairs, preferences = make([0.9, 0.1, 0.5, 0.9, 0.2, None, 0.9])
    rows = win_rate_by_length(compare(pairs, preferences, lengths, tie_margin=0.05))
    found = [(row["bin"], row["n"], row["win_rate"]) for row in rows]
    assert found == [("shorter", 1, 1.0), ("similar", 3, 0.5), ("longer", 2, 0.5)], (
        "the unread one counts nowhere"
    )
    wanted = proportion_interval([0.0, 0.5, 1.0], ["a", "b", "c"])
    assert (rows[1]["win_rate_ci_low"], rows[1]["win_rate_ci_high"]) == pytest.approx(
        (wanted.low, wanted.high)
    )
    assert win_rate_by_length([]) == []
