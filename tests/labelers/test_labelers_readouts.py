"""Readouts against hand-worked numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from labeler_cases import READOUT, logs

from rlaif.backends.base import ChoiceScores, SequenceScore
from rlaif.labelers.readout.readouts import (
    hides_ten,
    preference_of_scores,
    read_choice,
    read_likelihood,
    read_score,
    sigmoid,
)


def choice(*probabilities: float, **changes):
    return ChoiceScores(logs(*probabilities), tokens_in=1, **changes)


NESTED = (1,) * 9 + (2,)


def chosen(scores: ChoiceScores, *, temperature: float = 1.0, min_mass: float = 0.0):
    return read_choice(scores, temperature=temperature, min_mass=min_mass)


def scored(*probabilities: float, min_mass: float = 0.0, **changes):
    changes.setdefault("token_counts", NESTED)
    return read_score(choice(*probabilities, **changes), min_mass=min_mass)


def test_choice_is_the_softmax_over_the_two_and_mass_is_their_sum():
    # 0.3 and 0.1 of all mass: 0.3 / 0.4 = 0.75, mass 0.4.
    reading = chosen(choice(0.3, 0.1))
    assert reading.value == pytest.approx(0.75, abs=1e-12)
    assert reading.mass == pytest.approx(0.4, abs=1e-12)
    assert (reading.state, reading.provenance) == ("ok", "logprob")


def test_choice_temperature_divides_the_logit():
    # T = 2 takes square roots: sqrt(0.9) : sqrt(0.1) = 3 : 1.
    assert chosen(choice(0.9, 0.1), temperature=2.0).value == pytest.approx(0.75, abs=1e-12)


def test_choice_survives_extreme_log_probabilities():
    reading = chosen(ChoiceScores((-2000.0, -3000.0), 1))
    assert (reading.value, reading.mass) == (1.0, 0.0)
    assert chosen(ChoiceScores((-math.inf, -math.inf), 1)).state == "unparsed"


def test_choice_missing_from_a_servers_top_k_is_bounded_or_unparsed():
    # p("2") = 0.8 known: p("1") is in [0, 0.2], so the share of "2" is in [0.8, 1], middle 0.9.
    reading = chosen(ChoiceScores((None, math.log(0.8)), 1), min_mass=0.5)
    assert reading.value == pytest.approx(0.1, abs=1e-12)
    assert (reading.state, reading.provenance) == ("ok", "top_k")
    # 0.4 known leaves up to 0.6 for the other: who wins is open.
    undecided = chosen(ChoiceScores((math.log(0.4), None), 1))
    assert (undecided.value, undecided.state) == (None, "unparsed")
    assert chosen(ChoiceScores((None, None), 1)).state == "unparsed"


def test_choice_error_is_failed():
    reading = chosen(ChoiceScores((None, None), 1, error="server gone"), min_mass=0.5)
    assert (reading.value, reading.state, reading.note) == (None, "failed", "server gone")


@pytest.mark.parametrize(
    "scores, mass",
    [
        (choice(0.005, 0.001), 0.006),  # the tail beside " 1" and " 2"
        (choice(0.3, 0.199), 0.499),
        (choice(0.25, 0.1, source="frequency"), 0.35),
        (ChoiceScores((math.log(0.45), None), 1, ceiling=math.log(0.001)), 0.45),
    ],
    ids=["tail", "just below", "sampled", "top-k"],
)
def test_choices_that_carry_less_than_min_mass_are_unparsed(scores, mass):
    reading = chosen(scores, min_mass=0.5)
    assert (reading.value, reading.state) == (None, "unparsed")
    assert reading.mass == pytest.approx(mass, abs=1e-12)
    # The bound is the cause: without it, each of them is read.
    assert chosen(scores).state == "ok"


def test_choices_at_min_mass_are_read():
    assert chosen(choice(0.375, 0.125), min_mass=0.5).value == pytest.approx(0.75, abs=1e-12)


def test_score_takes_ten_out_of_one():
    # As sequences: p("1") = 0.5 covers "10"; p("0" after "1") = 0.6, so p("10") = 0.3 and p(1) = 0.2.
    # p("2") = 0.1, p("9") = 0.2, the rest 0. Mass = 0.2 + 0.1 + 0.2 + 0.3 = 0.8.
    # Expected: (1 * 0.2 + 2 * 0.1 + 9 * 0.2 + 10 * 0.3) / 0.8 = (0.2 + 0.2 + 1.8 + 3.0) / 0.8 = 6.5.
    reading = scored(0.5, 0.1, 0, 0, 0, 0, 0, 0, 0.2, 0.3)
    assert reading.value == pytest.approx(6.5, abs=1e-12)
    assert reading.mass == pytest.approx(0.8, abs=1e-12)
    # Mutation: without the subtraction p(1) = 0.5, (0.5 + 0.2 + 1.8 + 3.0) / 1.1 = 5.0.
    wrong = scored(0.5, 0.1, 0, 0, 0, 0, 0, 0, 0.2, 0.3, token_counts=(1,) * 10)
    assert wrong.value == pytest.approx(5.0, abs=1e-12)


def test_score_subtracts_only_where_ten_begins_with_one():
    # p(1) = 0.2: (0.2 + 3.0) / 0.5 = 6.4. One token each: (0.5 + 3.0) / 0.8 = 4.375.
    assert scored(0.5, 0, 0, 0, 0, 0, 0, 0, 0, 0.3).value == pytest.approx(6.4, abs=1e-12)
    single = scored(0.5, 0, 0, 0, 0, 0, 0, 0, 0, 0.3, token_counts=(1,) * 10)
    assert single.value == pytest.approx(4.375, abs=1e-12)


def test_a_score_is_not_read_where_the_tokens_of_ten_are_not_known():
    # A model that says 10 in two tokens: the server names "1" with 0.94 and cannot name "10".
    hidden = ChoiceScores((math.log(0.94), *(None,) * 7, math.log(0.04), None), 1)
    assert hides_ten(hidden)
    assert (read_score(hidden, min_mass=0.5).value, read_score(hidden, min_mass=0.5).state) == (
        None,
        "unparsed",
    )
    # Sampled answers are texts, in which every "10" begins with "1": 0.9 - 0.8 = 0.1 is left for 1.
    drawn = ChoiceScores(logs(0.9, *(0,) * 8, 0.8), 1, source="frequency")
    assert not hides_ten(drawn)
    assert read_score(drawn, min_mass=0.5).value == pytest.approx((0.1 + 8.0) / 0.9, abs=1e-12)
    assert not hides_ten(ChoiceScores((None,) * 10, 1, error="gone"))


def test_a_score_below_min_mass_is_unparsed():
    low = scored(0, 0, 0, 0, 0, 0, 0.3, 0.1, 0, 0, min_mass=0.5)
    assert (low.value, low.state, low.mass) == (None, "unparsed", pytest.approx(0.4, abs=1e-12))
    assert scored(0, 0, 0, 0, 0, 0, 0.3, 0.1, 0, 0).value == pytest.approx(7.25, abs=1e-12)


def test_score_of_a_server_with_missing_numbers():
    def partial(seven: float):
        scores = ChoiceScores((*(None,) * 6, math.log(seven), *(None,) * 3), 1, token_counts=NESTED)
        return read_score(scores, min_mass=0.0)

    assert partial(0.9).value == pytest.approx(7.0)
    assert partial(0.9).provenance == "top_k"
    assert (partial(0.3).value, partial(0.3).state) == (None, "unparsed")
    assert read_score(ChoiceScores((None,) * 10, 1, error="no"), min_mass=0.0).state == "failed"


def likelihood(direction: str, normalize: str, prior_weight: float = 1.0):
    given = {"direction": direction, "normalize": normalize, "prior_weight": prior_weight}
    return replace(READOUT, kind="likelihood", temperature=1.0, **given)


def test_likelihood_forward_is_pointwise_mutual_information():
    # log p(r|c) = -12, log p(r|empty) = -20 over 4 tokens: 8 nats, 2 per token. Behind an empty context a response may
    # be cut into other tokens, 5 here: they are not what is counted.
    answers = [SequenceScore(-12.0, 4, 30), SequenceScore(-20.0, 5, 9)]
    assert read_likelihood(answers, likelihood("forward", "none")).value == 8.0
    assert read_likelihood(answers, likelihood("forward", "tokens")).value == 2.0


def test_a_prior_weight_takes_less_of_the_unconditional_off():
    # -12 + 0.75 * 20 = 3 nats, 0.75 per token; the reverse direction has no prior.
    answers = [SequenceScore(-12.0, 4, 30), SequenceScore(-20.0, 5, 9)]
    assert read_likelihood(answers, likelihood("forward", "none", 0.75)).value == 3.0
    assert read_likelihood(answers, likelihood("forward", "tokens", 0.75)).value == 0.75
    assert read_likelihood(answers, likelihood("forward", "none", 0.0)).value == -12.0
    assert read_likelihood(answers[:1], likelihood("reverse", "none", 0.0)).value == -12.0


def test_likelihood_reverse_is_the_contexts_log_probability():
    answers = [SequenceScore(-60.0, 30, 40)]
    assert read_likelihood(answers, likelihood("reverse", "none")).value == -60.0
    assert read_likelihood(answers, likelihood("reverse", "tokens")).value == -2.0


def test_likelihood_without_tokens_or_with_an_error_has_no_value():
    empty = [SequenceScore(0.0, 0, 0)] * 2
    assert read_likelihood(empty, likelihood("forward", "none")).state == "unparsed"
    failed = [SequenceScore(0.0, 0, 0, error="too long"), SequenceScore(-1.0, 1, 0)]
    assert read_likelihood(failed, likelihood("forward", "none")).state == "failed"
    # A cut-off context (0 tokens of 0 probability) must not become a number either.
    infinite = [SequenceScore(-math.inf, 3, 0), SequenceScore(-1.0, 3, 0)]
    assert read_likelihood(infinite, likelihood("forward", "none")).state == "unparsed"


def test_preference_of_scores():
    # sigmoid((7 - 5) / 2) = 1 / (1 + e^-1) = 0.731058578630...
    assert preference_of_scores(7.0, 5.0, temperature=2.0) == pytest.approx(0.7310585786300049, abs=1e-15)
    mirrored = preference_of_scores(5.0, 7.0, temperature=2.0)
    assert mirrored == pytest.approx(1 - 0.7310585786300049, abs=1e-15)


def test_sigmoid_does_not_overflow():
    assert (sigmoid(-1e6), sigmoid(1e6), sigmoid(0.0)) == (0.0, 1.0, 0.5)
