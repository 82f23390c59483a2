"""Label sources: which label each training pair gets, held against loops; what must not move with what."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, get_args

import pytest
from pair_rows import label_rows

from rlaif.data.datamodule import PreferenceRow
from rlaif.errors import UserError
from rlaif.io import stable_uniform
from rlaif.options.training import Labels
from rlaif.records import Pair, Preference
from rlaif.stages.common.preferences.labels import LabelSource, TrainingRows, labelled, training_rows

SIZE = 600
SOURCES = get_args(Labels)


def source(labels: str = "ai", **changes: Any) -> LabelSource:
    plain = LabelSource(
        labels=labels, noise=0.0, n=None, min_confidence=0.0, hard=False, confidence_exponent=0.0, seed=0
    )
    return replace(plain, **changes)


def pair(i: int, gold: float | None = 0.0) -> Pair:
    return Pair(f"p{i}", f"q{i}", "say", "x", "y", "dataset", gold, None if gold is None else "human")


def preference(i: int, p_a: float | None) -> Preference:
    return Preference(f"p{i}", p_a, None, None, 1, "unparsed" if p_a is None else "ok", "logprob")


# AI labels are strictly inside (0, 1) and all different; gold ones are 0 or 1.
PAIRS = [pair(i, float(i % 3 == 0)) for i in range(SIZE)]
AI = {f"p{i}": (i + 1) / (SIZE + 1) for i in range(SIZE)}
GOLD = {p.id: p.gold for p in PAIRS}
PREFERENCES = {f"p{i}": preference(i, AI[f"p{i}"]) for i in range(SIZE)}


def own_labels(
    pairs: list[Pair], preferences: dict[str, Preference], chosen: LabelSource
) -> dict[str, float]:
    """The source's own labels by pair id, in order."""
    people = {pair.id: pair.gold for pair in pairs if pair.gold is not None}
    rows = label_rows(pairs, [None] * len(pairs))
    return {row.pair.id: row.p_a for row in labelled(rows, preferences, people, chosen)}


def training_labels(own: dict[str, float], chosen: LabelSource) -> TrainingRows:
    """What pairs with these labels become for training."""
    pairs = [Pair(pair_id, "q", "say", "x", "y", "dataset") for pair_id in own]
    return training_rows(label_rows(pairs, [*own.values()]), chosen)


def trained(labels: TrainingRows) -> dict[str, PreferenceRow]:
    rows = [row for phase in labels.phases for row in phase]
    assert len({row.pair.id for row in rows}) == len(rows), "a pair is trained on in one phase"
    return {row.pair.id: row for row in rows}


def values(labels: TrainingRows) -> dict[str, float]:
    return {pair_id: row.p_a for pair_id, row in trained(labels).items()}


# --- the source's own labels --------------------------------------------------------------------------


def test_each_source_against_a_loop() -> None:
    for name in SOURCES:
        chosen = source(name, seed=5)
        expected = {}
        for p in PAIRS:
            half = stable_uniform("rm-mix", 5, p.id) < 0.5
            gold = name == "gold" or (name in ("mixed", "ai_then_gold") and half)
            expected[p.id] = GOLD[p.id] if gold else AI[p.id]
        found = own_labels(PAIRS, PREFERENCES, chosen)
        assert found == expected and list(found) == [p.id for p in PAIRS]
        assert values(training_labels(found, replace(chosen, labels="ai"))) == expected
    # mutation: a source that is not the one asked for is another set of labels
    assert own_labels(PAIRS, PREFERENCES, source("gold")) != own_labels(PAIRS, PREFERENCES, source("mixed"))


def test_half_of_a_mix_is_gold() -> None:
    found = own_labels(PAIRS, PREFERENCES, source("mixed"))
    gold = sum(found[i] in (0.0, 1.0) for i in found)
    # binomial standard deviation at 600 pairs: 12.2; four of it
    assert abs(gold - SIZE / 2) < 49
    other = own_labels(PAIRS, PREFERENCES, source("mixed", seed=1))
    assert sum(found[i] != other[i] for i in found) > SIZE / 4, "another seed draws another half"


def test_a_pair_without_its_label_is_left_out() -> None:
    pairs = [pair(0, None), pair(1, 1.0), pair(2, None), pair(3, 0.0)]
    asked = {f"p{i}": preference(i, p) for i, p in enumerate([0.3, None, None, 0.8])}
    assert own_labels(pairs, asked, source("ai")) == {"p0": 0.3, "p3": 0.8}
    assert own_labels(pairs, asked, source("shuffled")) == {"p0": 0.3, "p3": 0.8}
    assert own_labels(pairs, {}, source("gold")) == {"p1": 1.0, "p3": 0.0}
    mixed = source("mixed")
    expected = {
        p.id: label
        for p in pairs
        if (label := p.gold if mixed.is_gold(p.id) else asked[p.id].p_a) is not None
    }
    assert own_labels(pairs, asked, mixed) == expected


def test_which_labels_a_source_needs() -> None:
    assert [name for name in SOURCES if source(name).needs_gold] == ["gold", "mixed", "ai_then_gold"]
    assert [name for name in SOURCES if not source(name).needs_ai] == ["gold"]


# --- phases, controls ---------------------------------------------------------------------------------


def test_ai_then_gold_is_the_mix_in_another_order() -> None:
    chosen = source("ai_then_gold", n=200)
    own = own_labels(PAIRS, PREFERENCES, chosen)
    labels = training_labels(own, chosen)
    first, second = labels.phases
    assert all(row.p_a not in (0, 1) for row in first) and all(row.p_a in (0, 1) for row in second)
    assert len(first) + len(second) == 200
    mixed = training_labels(own, replace(chosen, labels="mixed"))
    assert len(mixed.phases) == 1 and values(mixed) == values(labels)
    # a phase without pairs is none
    alone = {i: p for i, p in own.items() if chosen.is_gold(i)}
    assert len(training_labels(alone, chosen).phases) == 1


def test_shuffled_deals_the_same_labels_to_other_pairs() -> None:
    own = own_labels(PAIRS, PREFERENCES, source("shuffled"))
    dealt = values(training_labels(own, source("shuffled")))
    assert list(dealt) == list(own) and Counter(dealt.values()) == Counter(own.values())
    kept = sum(dealt[i] == own[i] for i in own)
    assert kept < 10, "on average one pair keeps its own label"
    order = list(own)
    donors = sorted(order, key=lambda i: stable_uniform("rm-shuffle", 0, i))
    assert all(dealt[taker] == own[donor] for taker, donor in zip(sorted(order), donors, strict=True))
    # neither the rows' order nor n deals anew, another seed does
    turned = values(training_labels({i: own[i] for i in reversed(order)}, source("shuffled")))
    assert turned == dealt and list(turned) == order[::-1]
    few = values(training_labels(own, source("shuffled", n=50)))
    assert len(few) == 50 and all(dealt[i] == p for i, p in few.items())
    assert values(training_labels(own, source("shuffled", seed=1))) != dealt
    # the control carries nothing: agreement with the own labels is a coin's (sd 0.02 at 600)
    agree = sum((dealt[i] > 0.5) == (own[i] > 0.5) for i in own) / SIZE
    assert abs(agree - 0.5) < 0.09


# --- number of preferences ----------------------------------------------------------------------------


@pytest.mark.parametrize("labels", SOURCES)
def test_smaller_sets_are_parts_of_larger_ones(labels: str) -> None:
    own = own_labels(PAIRS, PREFERENCES, source(labels))
    sets = [
        values(training_labels(own, source(labels, n=n, noise=0.3, hard=n > 99)))
        for n in (16, 64, 99, SIZE, 10**6)
    ]
    assert [len(s) for s in sets] == [16, 64, 99, SIZE, SIZE]
    for small, large in zip(sets[:2], sets[1:3], strict=True):
        assert small.items() <= large.items(), "the same pairs with the same labels"
    everything = values(training_labels(own, source(labels, noise=0.3, hard=True)))
    assert sets[3] == sets[4] == everything and list(sets[3]) == list(everything)


def test_the_draw_is_by_hash() -> None:
    own = own_labels(PAIRS, PREFERENCES, source())
    drawn = set(sorted(own, key=lambda i: stable_uniform("rm-n", 7, i))[:40])
    found = values(training_labels(own, source(n=40, seed=7)))
    assert set(found) == drawn and list(found) == [i for i in own if i in drawn]
    assert set(values(training_labels(own, source(n=40, seed=8)))) != drawn
    # pairs that come later leave the order of the others alone: what is still drawn was drawn before
    half = {i: p for i, p in own.items() if int(i[1:]) < SIZE // 2}
    assert drawn & set(half) <= set(values(training_labels(half, source(n=40, seed=7))))


# --- noise --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.1, 0.35])
def test_noise_flips_labels_at_its_rate(noise: float) -> None:
    own = own_labels(PAIRS, PREFERENCES, source())
    labels = training_labels(own, source(noise=noise))
    found = values(labels)
    flipped = {i for i in own if found[i] != own[i]}
    for i in own:
        hit = stable_uniform("rm-noise", 0, i) < noise
        assert found[i] == (1 - own[i] if hit else own[i])
    assert len(flipped) == labels.flipped and labels.dropped == 0
    # four binomial standard deviations
    assert abs(len(flipped) - noise * SIZE) < 4 * (noise * (1 - noise) * SIZE) ** 0.5


def test_the_same_pairs_are_flipped_whatever_else_is_chosen() -> None:
    """More noise flips more pairs and those again; n, the filter, the source and rounding change none of it."""

    def flipped(labels: str, **changes: Any) -> tuple[set[str], set[str]]:
        chosen = source(labels, **changes)
        own = own_labels(PAIRS, PREFERENCES, chosen)
        clean, noisy = (
            values(training_labels(own, c))
            for c in (chosen, replace(chosen, noise=changes.get("noise", 0.2)))
        )
        return {i for i in noisy if noisy[i] != clean[i]}, set(noisy)

    every, _ = flipped("ai")
    assert len(every) > 80
    for labels, changes in (
        ("ai", {"n": 100}),
        ("ai", {"min_confidence": 0.3}),
        ("gold", {}),
        ("mixed", {"n": 300}),
        ("shuffled", {"hard": True}),
    ):
        found, there = flipped(labels, **changes)
        assert found == every & there and found, labels
    own = own_labels(PAIRS, PREFERENCES, source())
    more = values(training_labels(own, source(noise=0.4)))
    assert every < {i for i in own if more[i] != own[i]}
    other = values(training_labels(own, source(noise=0.2, seed=1)))
    assert {i for i in own if other[i] != own[i]} != every


def test_only_flips_that_are_trained_on_count() -> None:
    own = own_labels(PAIRS, PREFERENCES, source())
    chosen = source(noise=0.3, n=200, min_confidence=0.2)
    labels = training_labels(own, chosen)
    found = values(labels)
    assert labels.flipped == sum(found[i] != own[i] for i in found) > 20
    assert len(found) + labels.dropped == 200 and labels.dropped > 20


def test_all_noise_turns_every_label() -> None:
    own = own_labels(PAIRS, PREFERENCES, source("gold"))
    labels = training_labels(own, source("gold", noise=1.0))
    assert values(labels) == {i: 1 - p for i, p in own.items()} and labels.flipped == SIZE


# --- confidence ---------------------------------------------------------------------------------------


def test_the_filter_drops_and_counts_what_is_unsure() -> None:
    own = {"a": 0.5, "b": 0.6, "c": 0.25, "d": 0.9, "e": 0.45}
    labels = training_labels(own, source(min_confidence=0.25))
    assert values(labels) == {"c": 0.25, "d": 0.9} and labels.dropped == 3
    assert training_labels(own, source()).dropped == 0
    # of n labels that were paid for: the draw comes first
    drawn = set(values(training_labels(own, source(n=3))))
    filtered = training_labels(own, source(n=3, min_confidence=0.25))
    assert set(values(filtered)) == drawn & {"c", "d"} and filtered.dropped == len(drawn - {"c", "d"})
    with pytest.raises(
        UserError, match=r"none of 2 training labels is as far from 0.5 as rm.min_confidence=0.4"
    ):
        training_labels({"a": 0.2, "b": 0.6}, source(min_confidence=0.4))


def test_weights_and_rounding_by_hand() -> None:
    own = {"a": 0.75, "b": 0.5, "c": 0.1, "d": 1.0}
    rows = trained(training_labels(own, source(confidence_exponent=2.0)))
    assert [rows[i].weight for i in own] == pytest.approx([0.25, 0.0, 0.64, 1.0])
    assert {i: row.p_a for i, row in rows.items()} == own
    # rounded labels keep the weight of what they were, and 0.5 prefers no side
    hard = trained(training_labels(own, source(confidence_exponent=2.0, hard=True)))
    assert [hard[i].p_a for i in own] == [1.0, 0.5, 0.0, 1.0]
    assert [hard[i].weight for i in own] == [rows[i].weight for i in own]
    assert {row.weight for row in trained(training_labels(own, source(hard=True))).values()} == {1.0}
    # flips do not change how sure a label is
    noisy = trained(training_labels(own, source(confidence_exponent=2.0, noise=1.0)))
    assert [noisy[i].weight for i in own] == pytest.approx([rows[i].weight for i in own])
