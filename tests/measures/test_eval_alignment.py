"""Alignment and bias metrics on judgements small enough to count by hand."""

import dataclasses
import math

import pytest

from rlaif.records import Judgement, Pair, Preference
from rlaif.stages.label.alignment import alignment_report
from rlaif.stats import binomial_test, proportion_interval


def pair(name: str, gold: float | None = None, construction: str | None = None, **fields: object) -> Pair:
    values = {"prompt_id": f"prompt-{name}", "response_a": "aaaa", "response_b": "bb"} | fields
    return Pair(
        id=name, prompt="p", origin="dataset", gold=gold,
        gold_source=None if gold is None else "human", construction=construction, **values,
    )  # fmt: skip


def preference(
    name: str, p_a: float | None, p_ab: float | None = None, p_ba: float | None = None
) -> Preference:
    state = "unparsed" if p_a is None else "ok"
    return Preference(name, p_a, p_ab, p_ba, samples=1, state=state, provenance="logprob")


def judgement(name: str, order: str, p_a: float | None, **fields: object) -> Judgement:
    state = fields.pop("state", "unparsed" if p_a is None else "ok")
    return Judgement(name, order, 0, "hash", state, "logprob", p_a=p_a, **fields)


GOLD_CASE = [  # name, gold, the labeler's p_a: right, right, wrong, half, unparsed, no gold, tied gold
    ("1", 1.0, 0.9), ("2", 0.0, 0.2), ("3", 1.0, 0.4), ("4", 1.0, 0.5), ("5", 0.0, None),
    ("6", None, 0.8), ("7", 0.5, 0.8),
]  # fmt: skip


def gold_report() -> dict[str, float]:
    pairs = [pair(name, gold) for name, gold, _ in GOLD_CASE]
    return alignment_report(pairs, [preference(name, p) for name, _, p in GOLD_CASE], [])


def test_alignment_by_hand() -> None:
    report = gold_report()
    # parsed gold pairs 1-4: 1 + 1 + 0 + 0.5 of 4; with the unparsed one wrong or right: of 5
    assert report["label/n"] == 7 and report["label/alignment_n"] == 4
    assert report["label/alignment"] == 0.625
    assert report["label/alignment_worst"] == 2.5 / 5 and report["label/alignment_best"] == 3.5 / 5
    expected = proportion_interval([1, 1, 0, 0.5], range(4))
    assert (report["label/alignment_ci_low"], report["label/alignment_ci_high"]) == (
        expected.low,
        expected.high,
    )
    # mutation: counting the unparsed pair as 0.5 gives 3 / 5
    assert report["label/alignment"] != 0.6


def test_pairs_that_were_set_aside_count_as_unread() -> None:
    pairs = [pair(name) for name in "1234"]
    # Read, unparsed, set aside though both orders were read, one order alone.
    given = [(0.9, 0.9, 0.9), (None, None, 0.3), (None, 0.9, 0.1), (0.8, 0.8, None)]
    preferences = [preference(name, *p) for name, p in zip("1234", given, strict=True)]
    assert alignment_report(pairs, preferences, [])["label/unread_rate"] == 2 / 4


def test_kappa_ece_and_brier_by_hand() -> None:
    report = gold_report()
    # decided pairs 1-3: labeler a b b, gold a b a; observed 2/3, expected 1/3 * 2/3 + 2/3 * 1/3 = 4/9
    assert report["label/kappa"] == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9), abs=1e-12)
    # p .9 .2 .4 .5 against 1 0 1 1: squares .01 .04 .36 .25
    assert report["label/brier"] == pytest.approx(0.66 / 4, abs=1e-12)


def test_which_response_is_called_a_does_not_matter() -> None:
    # chosen always first, as some data sets list it: 80% sure and 80% right is calibrated
    names = [str(i) for i in range(10)]
    p = [0.8] * 8 + [0.2] * 2
    first = alignment_report(
        [pair(n, 1.0) for n in names], [preference(n, v) for n, v in zip(names, p, strict=True)], []
    )
    flip = [i % 2 == 0 for i in range(10)]
    mixed = alignment_report(
        [pair(n, 0.0 if f else 1.0) for n, f in zip(names, flip, strict=True)],
        [preference(n, 1 - v if f else v) for n, v, f in zip(names, p, flip, strict=True)],
        [],
    )
    for key in ("label/alignment", "label/ece", "label/brier"):
        assert first[key] == pytest.approx(mixed[key], abs=1e-12)
    assert first["label/alignment"] == 0.8 and first["label/ece"] == pytest.approx(0.0, abs=1e-12)
    interval = proportion_interval([1.0] * 8 + [0.0] * 2, range(10))
    assert (first["label/alignment_ci_low"], first["label/alignment_ci_high"]) == (
        interval.low,
        interval.high,
    )


def test_constructions_are_reported_apart() -> None:
    made = [
        ("1", "mismatched", 0.9),
        ("2", "mismatched", 0.8),
        ("3", "truncated", 0.1),
        ("4", "truncated", None),
    ]
    pairs = [dataclasses.replace(pair(n, 1.0, c), gold_source="constructed") for n, c, _ in made]
    report = alignment_report(pairs, [preference(n, p) for n, _, p in made], [])
    assert report["label/alignment"] == pytest.approx(2 / 3)
    assert report["label/alignment_mismatched"] == 1.0 and report["label/alignment_mismatched_n"] == 2
    assert report["label/alignment_mismatched_ci_low"] == proportion_interval([1, 1], range(2)).low
    assert report["label/alignment_mismatched_ci_high"] == 1.0
    assert report["label/alignment_truncated"] == 0.0 and report["label/alignment_truncated_n"] == 1


def test_position_bias_by_hand() -> None:
    # displayed-first preferences (order ab: p_a; order ba: 1 - p_a)
    cases = {  # p_a in ab, p_a in ba
        "consistent": (0.9, 0.8),  # first, then second: same response
        "first 1": (0.9, 0.3),  # first, first
        "first 2": (0.7, 0.1),  # first, first
        "second": (0.2, 0.6),  # second, second
        "tied": (0.5, 0.2),  # neither, first
    }
    pairs = [pair(n) for n in cases]
    preferences = [preference(n, (ab + ba) / 2, ab, ba) for n, (ab, ba) in cases.items()]
    judgements = [
        judgement(n, order, p)
        for n, both in cases.items()
        for order, p in zip(("ab", "ba"), both, strict=True)
    ]
    # an unparsed judgement has no say
    judgements.append(judgement("tied", "ab", None))
    report = alignment_report(pairs, preferences, judgements)
    assert report["label/same_position_rate"] == 3 / 5
    # first: 1 + 0, 1 + 1, 1 + 1, 0 + 0, .5 + 1 = 6.5 of 10 judgements
    assert report["label/first_position_rate"] == 0.65
    assert report["label/position_p_value"] == binomial_test(2, 3)
    assert report["label/unparsed_rate"] == 1 / 11
    assert "label/alignment" not in report
    # mutation: comparing preferred responses instead of positions gives 2 / 5
    same_response = sum((ab > 0.5) == (ba > 0.5) for ab, ba in cases.values()) / 5
    assert same_response == 2 / 5 != report["label/same_position_rate"]


def test_a_labeler_that_always_says_first() -> None:
    names = [str(i) for i in range(12)]
    pairs = [pair(n) for n in names]
    preferences = [preference(n, 0.5, 1.0, 0.0) for n in names]
    judgements = [judgement(n, o, 1.0 if o == "ab" else 0.0) for n in names for o in ("ab", "ba")]
    report = alignment_report(pairs, preferences, judgements)
    assert report["label/same_position_rate"] == report["label/first_position_rate"] == 1.0
    assert report["label/position_p_value"] == pytest.approx(2 / 2**12)


def test_position_metrics_need_both_orders() -> None:
    one = alignment_report(
        [pair("1"), pair("2")],
        [preference("1", 0.9, 0.9), preference("2", 0.8, 0.8)],
        [judgement("1", "ab", 0.9), judgement("2", "ab", 0.8)],
    )
    assert not [key for key in one if "position" in key]
    random = alignment_report(
        [pair("1"), pair("2")],
        [preference("1", 0.9, 0.9), preference("2", 0.3, None, 0.3)],
        [judgement("1", "ab", 0.9), judgement("2", "ba", 0.3)],
    )
    # one order for each pair: direction is known, consistency is not
    assert random["label/first_position_rate"] == 1.0 and "label/same_position_rate" not in random
    assert random["label/position_p_value"] == 0.5


def test_states_mass_tokens_and_length_gap() -> None:
    pairs = [pair("1", response_a="a" * 10, response_b="b" * 4), pair("2"), pair("3")]
    judgements = [
        judgement("1", "ab", 0.2, mass=0.9, tokens_in=10, tokens_out=1, tokens_cached=4),
        judgement("2", "ab", 0.7, mass=0.5, tokens_in=20, tokens_out=2),
        judgement("3", "ab", None, tokens_in=5, tokens_out=3),
        judgement("3", "ab", None, state="failed"),
    ]
    report = alignment_report(
        pairs, [preference("1", 0.2), preference("2", 0.7), preference("3", None)], judgements
    )
    assert report["label/unparsed_rate"] == report["label/failed_rate"] == 0.25
    assert report["label/choice_mass"] == pytest.approx(0.7)
    tokens = [report[f"label/tokens_{kind}"] for kind in ("in", "out", "cached")]
    assert tokens == [35, 6, 4]
    # pair 1: prefers b, 4 - 10 = -6; pair 2: prefers a, 4 - 2 = 2; the unparsed pair has no say
    assert report["label/length_gap"] == -2.0


def test_clusters_are_prompts() -> None:
    names = [str(i) for i in range(40)]
    p = [0.9 if i // 10 % 2 else 0.1 for i in range(40)]
    preferences = [preference(n, v) for n, v in zip(names, p, strict=True)]
    apart = [pair(n, 1.0) for n in names]
    shared = [dataclasses.replace(x, prompt_id=str(int(x.id) // 10)) for x in apart]
    wide, narrow = alignment_report(shared, preferences, []), alignment_report(apart, preferences, [])
    width = [r["label/alignment_ci_high"] - r["label/alignment_ci_low"] for r in (wide, narrow)]
    assert width[0] > 2 * width[1]


def test_unknown_pairs_and_nothing_at_all() -> None:
    with pytest.raises(ValueError, match="'x'"):
        alignment_report([pair("1")], [preference("x", 0.5)], [])
    with pytest.raises(ValueError, match="repeat"):
        alignment_report([pair("1"), pair("1")], [], [])
    empty = alignment_report([], [], [])
    assert empty["label/n"] == 0 and "label/alignment" not in empty
    nothing = alignment_report([pair("1", 1.0)], [preference("1", None)], [])
    assert math.isnan(nothing["label/alignment"])
    assert (nothing["label/alignment_worst"], nothing["label/alignment_best"]) == (0.0, 1.0)
