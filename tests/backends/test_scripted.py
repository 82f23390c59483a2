"""The scripted backend follows its stated rule and its stated faults."""

from __future__ import annotations

import math

import pytest

from rlaif.backends.base import Message
from rlaif.backends.fencing import fence
from rlaif.backends.scripted import RATIONALE, RULES, ScriptedBackend
from rlaif.errors import UserError

CHOICES = ("1", "2")
SCALE = tuple(str(number) for number in range(1, 11))


def backend(**changes):
    values = {
        "rule": "longer",
        "strength": 6.0,
        "noise": 0.0,
        "unparsed_rate": 0.0,
        "position_bias": 0.0,
        "seed": 0,
    }
    return ScriptedBackend(**(values | changes))


def asked(first: str, second: str, *, context: str = "the source text", cue: str = "Preferred=") -> Message:
    example = "\n".join(
        [fence("text", "example"), fence("answer 1", "x" * 50), fence("answer 2", "y"), "Preferred=1"]
    )
    return Message(
        "\n".join([example, fence("text", context), fence("answer 1", first), fence("answer 2", second)]), cue
    )


def logit(engine, first, second, **kwargs):
    one, two = engine.choice_logprobs([asked(first, second, **kwargs)], CHOICES)[0].logprobs
    assert math.exp(one) + math.exp(two) == pytest.approx(1.0, abs=1e-12)
    return one - two


def test_rules_by_hand():
    # longer: 100 / 200 - 25 / 125 = 0.3, times 6 logits = 1.8. shorter is its opposite.
    assert logit(backend(), "a" * 100, "b" * 25) == pytest.approx(1.8, abs=1e-12)
    assert logit(backend(rule="shorter"), "a" * 100, "b" * 25) == pytest.approx(-1.8, abs=1e-12)
    # overlap: {source, text} both known: 2 / (2 + 2) = 0.5; {other} none: 0. Difference 0.5 * 6 = 3.
    assert logit(backend(rule="overlap"), "source text", "other") == pytest.approx(3.0, abs=1e-12)
    assert logit(backend(rule="first"), "a", "bbbb") == logit(backend(rule="first"), "bbbb", "a") == 6.0
    assert logit(backend(rule=lambda context, response: float(response == "b")), "a", "b") == pytest.approx(
        -6.0
    )


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"first"}))
def test_without_bias_a_swap_mirrors_even_with_noise_and_bias_adds_to_the_first(rule):
    noisy = backend(rule=rule, noise=4.0)
    there, back = logit(noisy, "source of one", "another two"), logit(noisy, "another two", "source of one")
    assert there == pytest.approx(-back, abs=1e-9)
    assert there != pytest.approx(logit(backend(rule=rule), "source of one", "another two"), abs=1e-3)
    biased = backend(rule=rule, noise=4.0, position_bias=1.5)
    assert logit(biased, "source of one", "another two") == pytest.approx(there + 1.5, abs=1e-9)
    assert logit(biased, "another two", "source of one") == pytest.approx(back + 1.5, abs=1e-9)


def test_only_the_last_pair_counts_and_a_batch_changes_nothing():
    engine = backend(noise=2.0)
    prompts = [asked("a" * number, "bbbb") for number in range(1, 6)]
    together = engine.choice_logprobs(prompts, CHOICES)
    assert together == [engine.choice_logprobs([prompt], CHOICES)[0] for prompt in prompts]


def test_unparsed_rate_is_met_by_hash_and_seed():
    prompts = [asked(f"a {number}", "b") for number in range(400)]
    silent = [s.logprobs[0] is None for s in backend(unparsed_rate=0.25).choice_logprobs(prompts, CHOICES)]
    # Binomial(400, 1/4): mean 100, standard deviation 8.7; five of them.
    assert abs(sum(silent) - 100) < 44
    other = [
        s.logprobs[0] is None for s in backend(unparsed_rate=0.25, seed=1).choice_logprobs(prompts, CHOICES)
    ]
    assert silent != other


def test_generation_is_a_verdict_after_an_equals_sign_and_a_rationale_otherwise():
    def generate(engine, message, tokens=100, temperature=0.0, seed=0):
        return engine.generate(
            [message], max_new_tokens=tokens, temperature=temperature, top_k=0, seeds=[seed]
        )[0]

    assert generate(backend(), asked("aaa", "b")).text == "1"
    assert generate(backend(), asked("a", "bbb")).text == "2"
    assert generate(backend(unparsed_rate=1.0), asked("a", "b")).text == "I cannot decide."
    rationale = asked("a", "b", cue="Comparison:")
    assert generate(backend(), rationale).text == generate(backend(), rationale, seed=9).text == RATIONALE
    cut = generate(backend(), rationale, tokens=3)
    assert (cut.text, cut.tokens_out, cut.finished) == ("Both were read", 3, False)
    drawn = [generate(backend(), rationale, temperature=1.0, seed=seed).text for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_scale_peaks_at_the_quality_and_ten_nests_in_one():
    message = Message("\n".join([fence("text", "c"), fence("answer 1", "r")]), "Score=")
    good = backend(rule=lambda context, response: 1.0).choice_logprobs([message], SCALE)[0]
    # Quality 1 aims at 10: weights e^0, e^-1 ... e^-9 from 10 down to 1.
    total = sum(math.exp(-k) for k in range(10))
    shares = [math.exp(good.logprobs[k]) for k in range(10)]
    assert shares[9] == pytest.approx(1 / total, abs=1e-12)
    assert shares[0] == pytest.approx((1 + math.exp(-9)) / total, abs=1e-12)  # "1" and "10"
    assert sum(shares[1:9]) + shares[0] == pytest.approx(1.0, abs=1e-12)
    assert good.token_counts == (1,) * 9 + (2,)


def test_sequences_cost_less_where_the_prompt_has_the_word():
    # "sum" is in the prompt (2 nats), "other" is not (5): -7 over two words.
    score = backend().sequence_logprobs([(Message("the sum", chat=False), "Sum other")])[0]
    assert (score.logprob, score.tokens) == (-7.0, 2)


def test_identity_tells_every_setting_and_bad_settings_are_named():
    changes = ({"rule": "hash"}, {"strength": 1.0}, {"noise": 1.0}, {"unparsed_rate": 0.1}, {"seed": 1})
    seen = [backend(**change).identity() for change in ({}, *changes, {"position_bias": 1.0})]
    assert all(seen.count(one) == 1 for one in seen)
    assert seen[0]["engine"] == "scripted"
    with pytest.raises(UserError, match=r"labeler\.scripted\.rule is 'best'; write one of longer"):
        backend(rule="best")
    with pytest.raises(UserError, match=r"labeler\.scripted\.unparsed_rate is 2"):
        backend(unparsed_rate=2.0)
    with pytest.raises(UserError, match="strength > 0"):
        backend(strength=0.0)


def test_a_critique_counts_strange_words_and_a_revision_is_the_lead() -> None:
    shown = "\n\n".join(
        [
            fence("prompt", "one two three four five six seven eight nine ten"),
            fence("response 1", "Two, or eleven?"),
        ]
    )
    critique = Message(shown, "Critique:")
    revision = Message(f"{shown}\n\n{fence('critique', 'It guesses.')}", "Revision:")

    def said(one: Message, *, temperature: float = 0.0, limit: int = 50, **changes):
        (got,) = backend(**changes).generate(
            [one], max_new_tokens=limit, temperature=temperature, top_k=0, seeds=[3]
        )
        return got.text, got.finished

    assert said(critique) == ("2 of 3 words are not in the source.", True)
    assert said(revision) == ("one two three four five six seven eight", True)
    assert said(revision, limit=3) == ("one two three", False)
    assert said(revision, unparsed_rate=1.0) == ("", True)
    assert said(revision, temperature=1.0)[0].startswith("one two three four five six seven eight (")
