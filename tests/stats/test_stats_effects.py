"""Effects and verdicts on claims: against hand-worked numbers, statsmodels' equivalence test, and simulation."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import DescrStatsW

from rlaif.stats import Interval, paired_difference
from rlaif.stats.effects.contrast import Effect, contrast, decide, from_interval
from rlaif.stats.means import MeanError, Part


def _effect(estimate: float, sd: float) -> Effect:
    """An effect whose error is normal with this standard deviation."""
    return Effect(estimate, MeanError((Part(sd**2, math.inf),)), 100, 1)


def test_a_difference_of_two_arms_is_the_paired_one() -> None:
    rng = np.random.default_rng(0)
    x, y, clusters = rng.normal(0.3, 1, (3, 40)), rng.normal(0, 1, (3, 40)), [i // 2 for i in range(40)]
    found = contrast({"x": x, "y": y, "other": y}, {"x": 1, "y": -1}, clusters)
    interval, p = paired_difference(x, y, clusters)
    assert found.interval() == interval and found.p_value() == pytest.approx(p, abs=1e-12)
    wins = (x > 0).astype(float), (y > 0).astype(float)
    found = contrast({"x": wins[0], "y": wins[1]}, {"x": 1, "y": -1}, clusters)
    assert found.interval() == paired_difference(*wins, clusters)[0]


def test_outcomes_that_happen_to_be_equal_are_not_certain() -> None:
    """The stabilised variance of a difference, and twice that of four arms, which may differ by twice as much."""
    same, weights = [1.0, 0.0] * 10, {"a": 1.0, "b": -1.0}
    two = contrast({"a": same, "b": same}, weights, range(20)).interval()
    four = contrast(dict.fromkeys("abcd", same), weights | {"c": -1.0, "d": 1.0}, range(20)).interval()
    assert 0.1 < two.high == pytest.approx(four.high / 2)


def test_four_arms_by_hand() -> None:
    """(a - b) - (c - d) per item is 2, 0, 1, 1: mean 1, standard error sqrt(2/3) / 2 with three degrees of freedom."""
    arms = {"a": [3, 1, 2, 2], "b": [1, 1, 1, 1], "c": [1, 1, 2, 2], "d": [1, 1, 2, 2]}
    found = contrast(arms, {"a": 1, "b": -1, "c": -1, "d": 1}, range(4), outcomes=False)
    half = stats.t.ppf(0.975, 3) * math.sqrt(2 / 3) / 2
    assert found.interval().estimate == 1.0
    assert (found.interval().low, found.interval().high) == pytest.approx((1 - half, 1 + half))
    shifted = contrast(arms, {"a": 1}, range(4), null=1.5, outcomes=False)
    assert shifted.estimate == 0.5 and shifted.p_value() == pytest.approx(
        stats.ttest_1samp(arms["a"], 1.5).pvalue
    )


@pytest.mark.parametrize(
    "arms, weights, clusters",
    [
        ({"a": [1.0, 2.0]}, {"b": 1.0}, [0, 1]),
        ({"a": [1.0, 2.0], "b": [1.0]}, {"a": 1.0, "b": -1.0}, [0, 1]),
        ({"a": [1.0, math.nan]}, {"a": 1.0}, [0, 1]),
        ({"a": [1.0, 2.0]}, {"a": 1.0}, [0, 0]),
        ({"a": []}, {"a": 1.0}, []),
    ],
)
def test_what_has_no_effect_is_refused(
    arms: dict[str, list[float]], weights: dict[str, float], clusters: list[int]
) -> None:
    with pytest.raises(ValueError):
        contrast(arms, weights, clusters)


@pytest.mark.parametrize("shift", [-0.3, -0.05, 0.0, 0.1, 0.4])
def test_equivalence_is_two_one_sided_t_tests(shift: float) -> None:
    values = np.random.default_rng(1).normal(shift, 0.5, 80)
    found = contrast({"a": values}, {"a": 1.0}, range(80), outcomes=False)
    p, _, _ = DescrStatsW(values).ttost_mean(-0.2, 0.2)
    decision = decide(found, "equal", 0.2)
    if decision.state != "contradicted":
        assert decision.p_value == pytest.approx(p, rel=1e-4)
    assert (decision.state == "supported") == (p < 0.05)


@pytest.mark.parametrize(
    "relation, estimate, sd, smallest, state, small",
    [
        # 95% intervals: estimate +- 1.96 sd; 90%: +- 1.645 sd.
        ("greater", 0.10, 0.05, 0.05, "supported", False),
        ("greater", 0.03, 0.01, 0.05, "supported", True),
        ("greater", 0.08, 0.05, 0.05, "undecided", False),
        ("greater", -0.06, 0.05, 0.05, "contradicted", False),
        ("greater", -0.06, 0.05, 0.03, "undecided", False),
        ("less", -0.10, 0.05, 0.05, "supported", False),
        ("less", 0.06, 0.05, 0.05, "contradicted", False),
        ("not_greater", -0.06, 0.05, 0.05, "supported", False),
        ("not_greater", 0.10, 0.05, 0.05, "contradicted", False),
        ("not_greater", 0.03, 0.01, 0.05, "supported", True),
        ("not_greater", 0.02, 0.05, 0.05, "undecided", False),
        ("not_less", 0.06, 0.05, 0.05, "supported", False),
        ("not_less", -0.10, 0.05, 0.05, "contradicted", False),
        ("equal", 0.01, 0.02, 0.05, "supported", False),
        ("equal", 0.03, 0.01, 0.05, "supported", True),
        ("equal", 0.01, 0.03, 0.05, "undecided", False),
        ("equal", 0.06, 0.02, 0.05, "undecided", False),
        ("equal", 0.12, 0.03, 0.05, "contradicted", False),
        ("equal", -0.12, 0.03, 0.05, "contradicted", False),
        (
            "equal",
            0.015,
            0.02,
            0.05,
            "supported",
            False,
        ),  # the 95% interval alone would reach beyond the bound
    ],
)
def test_verdicts_by_hand(
    relation: str, estimate: float, sd: float, smallest: float, state: str, small: bool
) -> None:
    decision = decide(_effect(estimate, sd), relation, smallest)  # type: ignore[arg-type]
    assert (decision.state, decision.small) == (state, small)
    # Two one-sided tests have 5% each; an interval's p has 5% in two tails.
    assert (decision.p_value < 0.05) == (state != "undecided")


def test_p_of_a_verdict_is_about_the_bound_that_decided_it() -> None:
    def two_sided(distance: float) -> float:
        return 2 * float(stats.norm.sf(abs(distance)))

    assert decide(_effect(0.10, 0.05), "greater", 0.05).p_value == pytest.approx(two_sided(2.0))
    assert decide(_effect(-0.06, 0.05), "greater", 0.05).p_value == pytest.approx(two_sided(2.2))
    assert decide(_effect(-0.06, 0.05), "not_greater", 0.05).p_value == pytest.approx(two_sided(2.2))
    assert decide(_effect(0.06, 0.05), "less", 0.05).p_value == pytest.approx(two_sided(2.2))
    assert decide(_effect(0.12, 0.03), "equal", 0.05).p_value == pytest.approx(two_sided(7 / 3))


@pytest.mark.parametrize("relation, truth", [("greater", 0.0), ("not_greater", 0.4), ("equal", 0.4)])
def test_wrong_verdicts_are_rare(relation: str, truth: float) -> None:
    """At the edge of what is claimed, at most 5% of samples say `supported` (and nearly so many do)."""
    rng, smallest, runs = np.random.default_rng(2), 0.4, 1500
    values = rng.normal(truth, 1.0, (runs, 60))
    states = [
        decide(contrast({"a": row}, {"a": 1.0}, range(60), outcomes=False), relation, smallest).state  # type: ignore[arg-type]
        for row in values
    ]
    wrong = states.count("supported") / runs
    expected = 0.05 if relation == "equal" else 0.025
    assert expected - 3 * 0.006 < wrong < expected + 3 * 0.006


def test_what_could_have_been_found_is_found_four_times_in_five() -> None:
    rng, runs = np.random.default_rng(3), 1500
    one = contrast({"a": rng.normal(0, 1.0, 60)}, {"a": 1.0}, range(60), outcomes=False)
    exact = Effect(0.0, MeanError((Part(1 / 60, 59.0),)), 60, 1)  # the true variance, not this sample's
    assert one.detectable("greater") == pytest.approx(exact.detectable("greater"), rel=0.25)
    reach = exact.detectable("greater")
    found = [
        decide(contrast({"a": row}, {"a": 1.0}, range(60), outcomes=False), "greater", 0.1).state
        for row in rng.normal(reach, 1.0, (runs, 60))
    ]
    assert found.count("supported") / runs == pytest.approx(0.8, abs=0.035)
    margin = exact.detectable("equal")
    equal = [
        decide(contrast({"a": row}, {"a": 1.0}, range(60), outcomes=False), "equal", margin).state
        for row in rng.normal(0.0, 1.0, (runs, 60))
    ]
    assert equal.count("supported") / runs == pytest.approx(0.8, abs=0.035)


def test_an_interval_alone_makes_an_effect() -> None:
    found = from_interval(Interval(0.6, 0.5, 0.7, 90), null=0.5, seeds=3)
    assert found.estimate == pytest.approx(0.1) and (found.n, found.seeds) == (90, 3)
    assert (found.interval().low, found.interval().high) == pytest.approx((0.0, 0.2))
    assert found.p_value() == pytest.approx(0.05)
