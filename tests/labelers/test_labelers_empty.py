"""An empty response is a bad answer, not an unreadable one: it loses to any text, and no one is asked."""

from __future__ import annotations

import pytest
from labeler_cases import Recorder, options, pair, pairs, scripted, templates

from rlaif.labelers import Labeler, estimate
from rlaif.records import is_empty
from rlaif.stages.common.measures.bins import confidence_bins
from rlaif.stages.common.measures.win_rate import compare, win_rate_report
from rlaif.stages.label.alignment import alignment_report

STRATEGIES = [
    {},
    {"order": "first"},
    {"order": "random"},
    {"order": "both_consistent"},
    {"averaging": "logit"},
    {"cot": True, "samples": 3, "temperature": 0.7},
    {"readout_kind": "text"},
    {"readout_kind": "score"},
    {"readout_kind": "likelihood"},
    {"readout_kind": "likelihood", "readout_direction": "reverse"},
]
EMPTY = [
    pair(0, response_a=""),
    pair(1, response_b=" \n\t"),
    pair(2, response_a="\u200b", response_b="\u00a0\u2060"),
]


def labeler(backend, **changes):
    return Labeler(backend, templates(), options(**changes), store=None, progress=None)


@pytest.mark.parametrize("text", ["", " ", "\n\t\r\n", "\u00a0\u3000", "\u200b\ufeff", "\x00"])
def test_nothing_that_can_be_seen_is_empty(text):
    assert is_empty(text)


@pytest.mark.parametrize("text", [".", "0", "\u2026", "\U0001f600", " x ", "\u0301"])
def test_any_sign_is_a_text(text):
    assert not is_empty(text)


@pytest.mark.parametrize("changes", STRATEGIES, ids=lambda changes: "-".join(map(str, changes.values())))
def test_it_loses_to_any_text_and_ties_with_another_without_a_call(changes):
    backend = Recorder(scripted(rule="shorter"))
    result = labeler(backend, **changes).label([*EMPTY[:2], pair(3), EMPTY[2]])
    p_a = [p.p_a for p in result.preferences]
    assert (p_a[0], p_a[1], p_a[3]) == (0.0, 1.0, 0.5)
    assert [p.provenance == "rule" for p in result.preferences] == [True, True, False, True]
    assert {p.state for p in result.preferences} == {"ok"}
    assert result.counters["empty"] == 3
    assert result.counters["unparsed"] == result.counters["failed"] == 0
    texts = [m.user for m, *_ in [*backend.generated, *backend.chosen]] + [t for _, t in backend.sequences]
    assert texts and all(one.prompt not in text for one in EMPTY for text in texts)
    alone = Recorder(scripted())
    assert labeler(alone, **changes).label(EMPTY).counters["n"] == 3 and alone.calls == 0
    assert estimate(EMPTY, templates(), options(**changes)).calls == 0


def test_both_orders_are_told_with_the_reason():
    result = labeler(scripted()).label(EMPTY[:1])
    first, second = result.judgements
    assert (first.order, second.order) == ("ab", "ba") and first.p_a == second.p_a == 0.0
    assert (result.preferences[0].p_ab, result.preferences[0].p_ba) == (0.0, 0.0)
    assert "loses" in first.text and first.provenance == "rule" and first.mass is None


def test_it_gets_the_least_score():
    items = [("prompt", text, None) for text in ("A text.", "", " \n")]
    assert labeler(scripted(), readout_kind="score").scores(items)[1:] == [1.0, 1.0]
    assert labeler(scripted(rule="shorter"), readout_kind="score").scores(items)[0] > 1.0


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_it_gets_no_more_likelihood_than_the_worst_text(direction):
    one = labeler(scripted(), readout_kind="likelihood", readout_direction=direction)
    items = [(p.prompt, p.response_a, None) for p in pairs(4)]
    texts = one.scores(items)
    with_empty = one.scores([*items, (items[0][0], "", None)])
    assert with_empty[:4] == texts and with_empty[4] <= min(texts)
    alone = one.scores([(items[0][0], "", None)])[0]
    assert alone == 0.0 if direction == "forward" else alone < 0.0


def test_measures_count_it_apart():
    gold = [pair(n, **({"response_b": ""} if n < 2 else {}), gold=1.0, gold_source="human") for n in range(6)]
    result = labeler(scripted(position_bias=50.0)).label(gold)  # what is shown first always wins
    report = alignment_report(gold, result.preferences, result.judgements)
    assert report["label/empty_rate"] == pytest.approx(1 / 3)
    # Position is measured on what was shown, alignment on all that has a label: 2 right, 4 at 0.5.
    assert report["label/same_position_rate"] == 1.0 and report["label/unparsed_rate"] == 0.0
    assert report["label/alignment_n"] == 6
    flips = confidence_bins(gold, result.preferences)
    assert sum(row["flip_n"] for row in flips) == 4


def test_a_judge_gives_the_win_to_the_text():
    sides = [pair(0, response_b=""), pair(1, response_a=""), pair(2, response_a="", response_b=" ")]
    judged = labeler(Recorder(scripted())).label(sides)
    made = compare(sides, judged.preferences, [(3, 1)] * 3, tie_margin=0.05)
    assert [x.outcome for x in made] == ["win", "loss", "tie"]
    report = win_rate_report(made, seed=0)
    assert report["eval/win_rate"] == 0.5 and report["eval/unparsed"] == 0
    assert report["eval/empty_rate_policy"] == report["eval/empty_rate_baseline"] == pytest.approx(2 / 3)
