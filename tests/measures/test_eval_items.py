"""Item scores: what a metric is the mean of, so that arms can be paired item by item."""

from statistics import fmean

import pytest
from pair_rows import label_rows

from rlaif.models.weights import Normalization
from rlaif.records import Judgement, Pair, Preference
from rlaif.stages.common.measures.joining import cluster
from rlaif.stages.common.measures.win_rate import compare, win_rate_items, win_rate_report
from rlaif.stages.label.alignment import alignment_items, alignment_report, asking_items, reliability
from rlaif.stages.rm.accuracy import reward_items, reward_report
from rlaif.stages.rm.scored_pairs import scored_pairs
from rlaif.stats import expected_calibration_error

GOLD = [1.0, 0.0, 1.0, 0.5, None, 0.0]
P_A = [0.9, 0.8, 0.5, 0.9, 0.9, None]


def _records() -> tuple[list[Pair], list[Preference]]:
    pairs = [
        Pair(
            str(i),
            f"prompt-{i}",
            "p",
            "a",
            "b",
            "dataset",
            gold,
            None if gold is None else "human",
            "mismatched",
        )
        for i, gold in enumerate(GOLD)
    ]
    preferences = [
        Preference(str(i), p, p, None, 1, "unparsed" if p is None else "ok", "logprob")
        for i, p in enumerate(P_A)
    ]
    return pairs, preferences


def test_alignment_items_by_hand() -> None:
    """Pairs 0-2 count: right, wrong, undecided. Gold 0.5 and None say nothing, pair 5 is unparsed."""
    pairs, preferences = _records()
    rows = alignment_items(pairs, preferences)
    read = [(row["id"], row["label/alignment"]) for row in rows if "label/alignment" in row]
    assert read == [("0", 1.0), ("1", 0.0), ("2", 0.5)]
    worst, half = ([row[f"label/alignment_{name}"] for row in rows] for name in ("worst", "half"))
    assert (worst, half) == ([1.0, 0.0, 0.5, 0.0], [1.0, 0.0, 0.5, 0.5])
    assert rows[0] == {
        "id": "0",
        "prompt_id": "prompt-0",
        "construction": "mismatched",
        "p_a": 0.9,
        "gold": 1.0,
        "label/alignment": 1.0,
        "label/alignment_worst": 1.0,
        "label/alignment_half": 1.0,
    }
    assert (
        fmean(row["label/alignment"] for row in rows if "label/alignment" in row)
        == alignment_report(pairs, preferences, [])["label/alignment"]
    )


def test_reliability_is_of_the_preferred_side() -> None:
    """Confidences 0.9, 0.8 and 0.5 with outcomes 1, 0 and 0.5: bins [0.5, 0.6), [0.8, 0.9), [0.9, 1]."""
    pairs, preferences = _records()
    rows = reliability(pairs, preferences)
    assert [(row["n"], row["mean_predicted"], row["mean_observed"]) for row in rows] == [
        (1, 0.5, 0.5),
        (1, 0.8, 0.0),
        (1, 0.9, 1.0),
    ]
    ece = sum(abs(row["mean_predicted"] - row["mean_observed"]) for row in rows) / 3
    assert ece == pytest.approx(alignment_report(pairs, preferences, [])["label/ece"])
    # mutation: without the fold the outcome of pair 1 (p_a 0.8, gold 0) and of a mirrored one would differ
    mirrored = expected_calibration_error([0.1, 0.2, 0.5], [0.0, 1.0, 0.0])
    assert mirrored != pytest.approx(ece)
    assert reliability(pairs[5:], preferences[5:]) == []


def test_reward_items_average_to_the_report() -> None:
    pairs, preferences = _records()
    scores = [(2.0, 1.0), (0.0, 3.0), (1.0, 1.0), (5.0, 0.0), (1.0, 0.0), (0.0, 2.0)]
    lengths = [(1, 2)] * 6
    labels = [preference.p_a for preference in preferences]
    scored = scored_pairs(label_rows(pairs, labels, lengths), [scores], [Normalization(1.0, 0.0)])
    rows, report = reward_items(scored), reward_report(scored, temperature=None)
    # labels 0.9, 0.8, (0.5), 0.9, 0.9, (unparsed): right, wrong, -, right, right, -
    assert [row["rm/accuracy"] for row in rows] == [1.0, 0.0, None, 1.0, 1.0, None]
    # gold 1, 0, 1, (0.5), (None), 0: right, right, equal rewards, -, -, right
    assert [row["rm/gold_accuracy"] for row in rows] == [1.0, 1.0, 0.5, None, None, 1.0]
    for name in ("rm/accuracy", "rm/gold_accuracy"):
        assert fmean(row[name] for row in rows if row[name] is not None) == pytest.approx(report[name])
    assert (rows[1]["reward_a"], rows[1]["reward_b"], rows[1]["tokens_b"]) == (0.0, 3.0, 2)


def test_win_rate_items_average_to_the_report() -> None:
    pairs = [Pair(str(i), f"q{i}", "p", "a", "b", "policy") for i in range(4)]
    p = [0.9, 0.1, 0.51, None]
    preferences = [
        Preference(str(i), v, v, v, 1, "unparsed" if v is None else "ok", "logprob") for i, v in enumerate(p)
    ]
    comparisons = compare(pairs, preferences, [(3, 4)] * 4, tie_margin=0.02)
    rows = win_rate_items(comparisons)
    assert [(row["id"], row["prompt_id"], row["eval/win_rate"]) for row in rows] == [
        ("0", "q0", 1.0),
        ("1", "q1", 0.0),
        ("2", "q2", 0.5),
    ]
    assert (
        fmean(row["eval/win_rate"] for row in rows) == win_rate_report(comparisons, seed=0)["eval/win_rate"]
    )


def test_what_a_labeler_was_asked_by_hand() -> None:
    """Pair x names the first position in both orders, y its response in both; z was read in one order, e in none."""
    pairs = [Pair(name, f"prompt-{name}", "p", "a", "b", "policy") for name in "xyze"]
    preferences = [
        Preference("x", 0.5, 0.8, 0.2, 1, "ok", "logprob"),  # p_ba is of a, which was shown second
        Preference("y", 0.8, 0.8, 0.8, 1, "ok", "logprob"),
        Preference("z", 0.8, 0.8, None, 1, "ok", "logprob"),
        Preference("e", 1.0, None, None, 1, "ok", "rule"),
    ]
    calls = [
        Judgement(name, order, 0, "h", "ok", "logprob", p_a=0.8, tokens_in=read, tokens_out=3)
        for name, order, read in (
            ("x", "ab", 10),
            ("x", "ba", 20),
            ("y", "ab", 5),
            ("y", "ba", 6),
            ("z", "ab", 7),
        )
    ]
    calls.append(Judgement("e", "ab", 0, "h", "ok", "rule", p_a=1.0))
    rows = {row["id"]: row for row in asking_items(pairs, preferences, calls)}
    assert {name: (row["tokens_in"], row["tokens_out"]) for name, row in rows.items()} == {
        "x": (30, 6),
        "y": (11, 6),
        "z": (7, 3),
    }
    same = {name: row.get("label/same_position_rate") for name, row in rows.items()}
    assert same == {"x": 1.0, "y": 0.0, "z": None}


def test_an_item_is_resampled_with_its_group_else_with_its_prompt() -> None:
    item = {"id": "p#0", "prompt_id": "p", "group": "g"}
    assert [cluster(item), cluster(item | {"group": None}), cluster({"id": "p#0"})] == ["g", "p", "p#0"]
