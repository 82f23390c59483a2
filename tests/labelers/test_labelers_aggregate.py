"""Orders and averages by hand; a missing order is a state."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.labelers.aggregate import aggregate, average, is_inconsistent, orders_of
from rlaif.records import Judgement


def judgement(
    order: str, p_a: float | None, *, sample: int = 0, state: str | None = None, provenance="logprob"
):
    state = state or ("unparsed" if p_a is None else "ok")
    return Judgement("x", order, sample, "h", state, provenance, p_a=p_a)


def both(*judgements, mode="both", averaging="prob"):
    return aggregate(judgements, orders=("ab", "ba"), mode=mode, averaging=averaging)


def test_average_of_probabilities_and_of_logits():
    # (0.9 + 0.5) / 2 = 0.7. logit 0.9 = ln 9, logit 0.5 = 0, mean ln 3, sigmoid = 3 / 4.
    assert average([0.9, 0.5], "prob") == pytest.approx(0.7, abs=1e-15)
    assert average([0.9, 0.5], "logit") == pytest.approx(0.75, abs=1e-12)
    assert average([1.0, 0.0], "logit") == pytest.approx(0.5, abs=1e-12)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6), st.sampled_from(["prob", "logit"]))
def test_average_mirrors_when_the_pair_is_swapped(values, averaging):
    swapped = average([1.0 - value for value in values], averaging)
    assert swapped == pytest.approx(1.0 - average(values, averaging), abs=1e-9)


def test_orders():
    assert orders_of("first", seed=0, pair_id="x") == ("ab",)
    assert (
        orders_of("both", seed=0, pair_id="x")
        == orders_of("both_consistent", seed=0, pair_id="x")
        == ("ab", "ba")
    )
    drawn = [orders_of("random", seed=3, pair_id=str(number)) for number in range(400)]
    assert drawn == [orders_of("random", seed=3, pair_id=str(number)) for number in range(400)]
    # Binomial(400, 1/2): standard deviation 10; six of them.
    assert abs(drawn.count(("ab",)) - 200) < 60
    assert drawn != [orders_of("random", seed=4, pair_id=str(number)) for number in range(400)]


def test_both_orders_are_averaged_and_kept():
    preference = both(judgement("ab", 0.9), judgement("ba", 0.5))
    assert preference.p_a == pytest.approx(0.7)
    assert (preference.p_ab, preference.p_ba, preference.samples) == (0.9, 0.5, 1)


def test_samples_are_averaged_within_an_order_before_the_orders_are():
    # ab: (0.9 + 0.7 + none) / 2 = 0.8; ba: 0.2 of one. Orders: (0.8 + 0.2) / 2 = 0.5.
    # Mutation: one mean over all three values would be 0.6.
    preference = both(
        judgement("ab", 0.9),
        judgement("ab", 0.7, sample=1),
        judgement("ab", None, sample=2),
        judgement("ba", 0.2),
        judgement("ba", None, sample=1),
        judgement("ba", None, sample=2),
    )
    assert preference.p_a == pytest.approx(0.5, abs=1e-12)
    assert preference.p_ab == pytest.approx(0.8, abs=1e-12)
    assert preference.samples == 1


@pytest.mark.parametrize("lost", ["ab", "ba"])
def test_a_missing_order_makes_the_pair_unparsed_never_a_half(lost):
    kept = "ba" if lost == "ab" else "ab"
    preference = both(judgement(kept, 0.9), judgement(lost, None))
    assert (preference.p_a, preference.state) == (None, "unparsed")
    assert {preference.p_ab, preference.p_ba} == {0.9, None}
    assert not is_inconsistent(preference)


def test_a_failed_order_makes_the_pair_failed():
    preference = both(judgement("ab", 0.9), judgement("ba", None, state="failed"))
    assert (preference.p_a, preference.state) == (None, "failed")


def test_both_consistent_sets_disagreement_aside_with_both_values_kept():
    agreeing = both(judgement("ab", 0.9), judgement("ba", 0.7), mode="both_consistent")
    assert agreeing.p_a == pytest.approx(0.8)
    preference = both(judgement("ab", 0.9), judgement("ba", 0.4), mode="both_consistent")
    assert (preference.p_a, preference.p_ab, preference.p_ba) == (None, 0.9, 0.4)
    assert preference.state == "unparsed" and is_inconsistent(preference)


def test_provenance_of_repeated_text_is_a_frequency():
    rows = [judgement("ab", float(n == 0), sample=n, provenance="text") for n in range(4)]
    preference = aggregate(rows, orders=("ab",), mode="first", averaging="prob")
    assert (preference.p_a, preference.provenance, preference.samples) == (0.25, "frequency", 4)
    assert math.isclose(preference.p_ab, 0.25) and preference.p_ba is None
