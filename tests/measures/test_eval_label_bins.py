"""Alignment and flips by confidence, alignment by length, verbosity: by hand and against plain loops."""

import math
import random

import pytest

from rlaif.records import Judgement, Pair, Preference
from rlaif.stages.common.measures.bins import confidence_bins, length_bins, verbosity
from rlaif.stages.label.alignment import alignment_report
from rlaif.stats import paired_test, proportion_interval


def pair(name: str, gold: float | None, a: int = 4, b: int = 4, prompt: str | None = None) -> Pair:
    source = None if gold is None else "human"
    return Pair(name, prompt or f"prompt-{name}", "p", "a" * a, "b" * b, "dataset", gold, source)


def preference(
    name: str, p_a: float | None, p_ab: float | None = None, p_ba: float | None = None
) -> Preference:
    return Preference(name, p_a, p_ab, p_ba, 1, "unparsed" if p_a is None else "ok", "logprob")


CASES = [  # name, gold, orders (as preferences for a): averaged p, by hand
    ("sure", 1.0, 0.9, 0.8),  # 0.85: [.3, .5], right, keeps its verdict
    ("surely wrong", 1.0, 0.1, 0.1),  # 0.1: [.3, .5], wrong, keeps
    ("flips", 0.0, 0.6, 0.3),  # 0.45: [.05, .15), right, flips
    ("edge", 1.0, 0.55, 0.55),  # 0.55: [.05, .15), as 0.45 is, right, keeps
    ("torn", 1.0, 0.9, 0.1),  # 0.5: [0, .02), undecided counts half, flips
    ("no gold", None, 0.7, 0.2),  # 0.45: [.05, .15), flips
]


def records() -> tuple[list[Pair], list[Preference]]:
    pairs = [pair(name, gold) for name, gold, _, _ in CASES]
    return pairs, [preference(name, (ab + ba) / 2, ab, ba) for name, _, ab, ba in CASES]


def test_confidence_bins_by_hand() -> None:
    rows = {row["bin"]: row for row in confidence_bins(*records())}
    assert list(rows) == ["50", "55", "80"]
    assert [(row["n"], row["alignment"]) for row in rows.values()] == [(1, 0.5), (2, 1.0), (2, 0.5)]
    assert [(row["flip_n"], row["flip_rate"]) for row in rows.values()] == [(1, 1.0), (3, 2 / 3), (2, 0.0)]
    assert (rows["55"]["low"], rows["55"]["high"]) == (0.05, 0.15)
    found = proportion_interval([1, 1, 0], range(3))
    low, high = found.low, found.high
    assert rows["55"]["flip_rate_ci_low"] == pytest.approx(low)
    assert rows["55"]["flip_rate_ci_high"] == pytest.approx(high)
    # mutation: without rounding, 0.45 and 0.55 lie on two sides of the edge at 0.05
    assert abs(0.45 - 0.5) < 0.05 < abs(0.55 - 0.5)
    # mutation: a flip as "same position in both orders, ties included" would not be 0 for the sure pair
    assert (0.9 > 0.5) == (0.8 > 0.5)


def test_flips_over_all_bins_are_the_same_position_rate() -> None:
    pairs, preferences = records()
    judgements = [
        Judgement(name, order, 0, "h", "ok", "logprob", p_a=p)
        for name, _, ab, ba in CASES
        for order, p in (("ab", ab), ("ba", ba))
    ]
    report = alignment_report(pairs, preferences, judgements)
    bins = confidence_bins(pairs, preferences)
    overall = math.fsum(row["flip_n"] * row["flip_rate"] for row in bins) / sum(row["flip_n"] for row in bins)
    assert overall == pytest.approx(report["label/same_position_rate"]) == 3 / 6
    assert report["label/confidence_55_flip_rate"] == 2 / 3 and report["label/confidence_80_n"] == 2


def test_a_pair_that_both_consistent_sets_aside_still_flips() -> None:
    rows = confidence_bins([pair("x", 1.0)], [preference("x", None, 0.9, 0.2)])
    # p = 0.55 by the mean of the orders; no preference, so no alignment
    assert [(r["bin"], r["n"], r["alignment"], r["flip_n"], r["flip_rate"]) for r in rows] == [
        ("55", 0, None, 1, 1.0)
    ]
    report = alignment_report([pair("x", 1.0)], [preference("x", None, 0.9, 0.2)], [])
    assert "label/confidence_55_alignment" not in report and report["label/confidence_55_n"] == 0


def test_one_order_has_no_flips_and_the_unread_have_no_bin() -> None:
    pairs = [pair("x", 1.0), pair("y", 1.0)]
    (row,) = confidence_bins(pairs, [preference("x", 0.7, 0.7), preference("y", None)])
    assert (row["bin"], row["n"], row["flip_n"], row["flip_rate"]) == ("65", 1, 0, None)
    assert confidence_bins([], []) == length_bins([], []) == []
    with pytest.raises(ValueError, match="'z'"):
        confidence_bins(pairs, [preference("z", 0.5)])


def test_length_bins_by_hand() -> None:
    cases = [  # gold, p_a, lengths of a and b
        (1.0, 0.9, 20, 10),  # prefers the longer, right
        (0.0, 0.9, 30, 10),  # prefers the longer, wrong
        (0.0, 0.1, 10, 5),  # prefers the shorter (b), right
        (1.0, 0.8, 90, 100),  # 10 of 100 apart: similar, right
        (1.0, 0.8, 89, 100),  # 11 of 100 apart: shorter, right
        (1.0, 0.5, 20, 10),  # prefers none
        (0.5, 0.9, 20, 10),  # gold prefers none
        (1.0, None, 20, 10),  # unread
    ]
    pairs = [pair(str(i), gold, a, b) for i, (gold, _, a, b) in enumerate(cases)]
    preferences = [preference(str(i), p) for i, (_, p, _, _) in enumerate(cases)]
    rows = {row["bin"]: (row["n"], row["alignment"]) for row in length_bins(pairs, preferences)}
    assert rows == {"shorter": (2, 1.0), "similar": (1, 1.0), "longer": (2, 0.5)}
    report = alignment_report(pairs, preferences, [])
    assert report["label/length_longer_alignment"] == 0.5 and report["label/length_shorter_n"] == 2
    # mutation: by what gold prefers instead, the longer bin holds pairs 0, 3 and 4 only
    assert rows["longer"] != (1, 1.0)
    found = proportion_interval([1, 0], range(2))
    low, high = found.low, found.high
    assert report["label/length_longer_alignment_ci_low"] == pytest.approx(low)
    assert report["label/length_longer_alignment_ci_high"] == pytest.approx(high)


def test_verbosity_by_hand() -> None:
    # labeler longer, gold longer: (1, 1), (1, 0), (0, 0), (1, 0); then an equal length, a tie and no gold
    cases = [
        (1.0, 0.9, 2, 1), (0.0, 0.9, 2, 1), (1.0, 0.9, 1, 2), (1.0, 0.2, 1, 2),
        (1.0, 0.9, 2, 2), (1.0, 0.5, 2, 1), (None, 0.9, 2, 1),
    ]  # fmt: skip
    pairs = [pair(str(i), gold, a, b) for i, (gold, _, a, b) in enumerate(cases)]
    found = verbosity(pairs, [preference(str(i), p) for i, (_, p, _, _) in enumerate(cases)])
    assert found["label/longer_rate"] == 0.75 and found["label/gold_longer_rate"] == 0.25
    assert found["label/verbosity_gap"] == 0.5 and found["label/verbosity_n"] == 4
    interval, _ = paired_test([1, 1, 0, 1], [1, 0, 0, 0], list("abcd"))
    assert (found["label/verbosity_gap_ci_low"], found["label/verbosity_gap_ci_high"]) == (
        interval.low,
        interval.high,
    )
    assert verbosity(pairs[4:], [preference("4", 0.9), preference("5", 0.5)]) == {}


def drawn(seed: int) -> tuple[list[Pair], list[Preference]]:
    rng = random.Random(seed)
    pairs, preferences = [], []
    for index in range(300):
        ab, ba = round(rng.random(), 2), round(rng.random(), 2)
        gold = rng.choice([0.0, 1.0, 0.8, 0.5, None])
        pairs.append(pair(str(index), gold, rng.randint(1, 30), rng.randint(1, 30), f"q{index // 3}"))
        p_a = rng.choice([(ab + ba) / 2, (ab + ba) / 2, None])
        preferences.append(preference(str(index), p_a, ab, ba))
    return pairs, preferences


@pytest.mark.parametrize("seed", range(4))
def test_against_a_plain_loop(seed: int) -> None:
    pairs, preferences = drawn(seed)
    edges = [0, 2000, 5000, 15000, 30000, 50001]  # |p - 0.5| in units of 1e-5
    for low, high in zip(edges, edges[1:], strict=False):
        right = total = flips = both = 0.0
        for one, x in zip(pairs, preferences, strict=True):
            p = x.p_a if x.p_a is not None else (x.p_ab + x.p_ba) / 2
            if not low <= round(1e5 * abs(p - 0.5)) < high:
                continue
            both += 1
            flips += (x.p_ab > 0.5 > x.p_ba) or (x.p_ab < 0.5 < x.p_ba)
            if x.p_a is not None and one.gold not in (None, 0.5):
                total += 1
                right += 0.5 if p == 0.5 else (p > 0.5) == (one.gold > 0.5)
        row = next(r for r in confidence_bins(pairs, preferences) if round(1e5 * r["low"]) == low)
        assert (row["n"], row["flip_n"]) == (total, both)
        assert row["alignment"] == pytest.approx(right / total)
        assert row["flip_rate"] == pytest.approx(flips / both)
        assert row["alignment_ci_low"] <= row["alignment"] <= row["alignment_ci_high"]


def test_swapping_the_responses_changes_nothing() -> None:
    pairs, preferences = drawn(9)
    mirror = [
        Pair(p.id, p.prompt_id, p.prompt, p.response_b, p.response_a, p.origin,
             None if p.gold is None else 1 - p.gold, p.gold_source)
        for p in pairs
    ]  # fmt: skip
    turned = [
        preference(x.pair_id, None if x.p_a is None else 1 - x.p_a, 1 - x.p_ab, 1 - x.p_ba)
        for x in preferences
    ]
    for function in (confidence_bins, length_bins):
        for one, other in zip(function(pairs, preferences), function(mirror, turned), strict=True):
            assert one == pytest.approx(other)
    assert verbosity(pairs, preferences) == pytest.approx(verbosity(mirror, turned))
