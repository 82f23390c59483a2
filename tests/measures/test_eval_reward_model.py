"""Reward-model metrics on pairs small enough to count by hand."""

import math
from statistics import fmean, median

import numpy as np
import pytest
from pair_rows import label_rows
from scipy.stats import binomtest

from rlaif.models.weights import Normalization
from rlaif.records import Pair
from rlaif.stages.rm.accuracy import fitted_temperature, read_reward_items, reward_items, reward_report
from rlaif.stages.rm.bins import (
    disagreement_bins,
    reward_confidence_bins,
    reward_length_bins,
    reward_reliability,
)
from rlaif.stages.rm.scored_pairs import ScoredPair, scored_pairs
from rlaif.stats import paired_test, proportion_interval
from rlaif.tracking.glossary import unknown

AS_TRAINED = Normalization(1.0, 0.0)
Rows = list[ScoredPair]


def make(p, gold, scores, lengths, prompts=None) -> Rows:
    """Rows of one member that is not normalised; `p` and `gold` may hold None."""
    pairs = [
        Pair(str(i), f"prompt-{prompts[i] if prompts else i}", "p", "a", "b", "dataset", g, g and "human")
        if g != 0.0
        else Pair(str(i), f"prompt-{prompts[i] if prompts else i}", "p", "a", "b", "dataset", g, "human")
        for i, g in enumerate(gold)
    ]
    return scored_pairs(label_rows(pairs, p, lengths), [scores], [AS_TRAINED])


def report(*columns) -> dict[str, float]:
    return reward_report(make(*columns), temperature=None)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_by_hand() -> None:
    scores = [(2.0, 1.0), (0.0, 3.0), (1.0, 1.0), (5.0, 0.0), (1.0, 0.0)]
    lengths = [(10, 5), (9, 3), (4, 8), (1, 2), (7, 7)]
    found = report([0.9, 0.2, 0.7, 0.5, None], [1.0, 1.0, None, 0.0, 0.5], scores, lengths)
    assert found["rm/n"] == 5
    # labels of pairs 0, 1, 2 (0.5 and unparsed left out): right, right, equal rewards = half
    assert found["rm/accuracy"] == pytest.approx(2.5 / 3)
    expected = proportion_interval([1, 1, 0.5], range(3))
    assert (found["rm/accuracy_ci_low"], found["rm/accuracy_ci_high"]) == (expected.low, expected.high)
    # gold of pairs 0, 1, 3: right, wrong, wrong
    assert found["rm/gold_accuracy"] == pytest.approx(1 / 3)
    assert found["rm/gold_accuracy_ci_low"] == proportion_interval([1, 0, 0], range(3)).low
    # longer is better on pairs 0, 1, 2: right, wrong, wrong
    assert found["rm/length_only_accuracy"] == pytest.approx(1 / 3)
    assert found["rm/length_only_accuracy_ci_high"] == proportion_interval([1, 0, 0], range(3)).high
    # Brier over pairs 0-3 with p = sigmoid of 1, -3, 0, 5
    p = [sigmoid(d) for d in (1, -3, 0, 5)]
    brier = sum((x - y) ** 2 for x, y in zip(p, [0.9, 0.2, 0.7, 0.5], strict=True)) / 4
    assert found["rm/brier"] == pytest.approx(brier, abs=1e-12)
    flat = np.corrcoef([2, 1, 0, 3, 1, 1, 5, 0, 1, 0], [10, 5, 9, 3, 4, 8, 1, 2, 7, 7])[0, 1]
    assert found["rm/length_correlation"] == pytest.approx(flat, abs=1e-12)
    assert "rm/ece_fitted" not in found and "rm/disagreement" not in found
    # mutation: counting equal rewards as a vote for b gives 2 / 3
    assert found["rm/accuracy"] != pytest.approx(2 / 3)


def test_the_lead_over_length_is_paired() -> None:
    """Eight pairs: the model alone right on 4, length alone on 1, both on 2, neither on 1; two of one prompt."""
    model_right = [1, 1, 1, 1, 0, 1, 1, 0]
    length_right = [0, 0, 0, 0, 1, 1, 1, 0]
    scores = [(float(r), 1.0 - r) for r in model_right]
    lengths = [(9, 2) if r else (2, 9) for r in length_right]
    prompts = [0, 0, 1, 2, 3, 4, 5, 6]
    found = reward_report(make([0.8] * 8, [None] * 8, scores, lengths, prompts), temperature=None)
    assert found["rm/length_only_gap"] == pytest.approx(3 / 8)
    names = [f"prompt-{i}" for i in prompts]
    expected, p = paired_test(model_right, length_right, names)
    assert found["rm/length_only_gap_ci_low"] == expected.low
    assert found["rm/length_only_gap_ci_high"] == expected.high
    assert found["rm/length_only_p_value"] == p
    # mutation: McNemar's test counts pairs, two of which answer one prompt: 4 against 1, 2 (1 + 5) / 32
    assert p != pytest.approx(12 / 32)
    alone = reward_report(make([0.8] * 8, [None] * 8, scores, lengths, range(8)), temperature=None)
    assert alone["rm/length_only_p_value"] == pytest.approx(12 / 32) == pytest.approx(binomtest(4, 5).pvalue)


def test_a_constant_reward_is_at_chance_and_has_no_correlation() -> None:
    found = report([0.9] * 3 + [0.1] * 7, [None] * 10, [(1.0, 1.0)] * 10, [(3, 4)] * 10)
    assert found["rm/accuracy"] == 0.5
    assert math.isnan(found["rm/length_correlation"])
    assert "rm/gold_accuracy" not in found and "rm/confidence_80_gold_n" not in found


def random_columns(n: int = 60):
    rng = np.random.default_rng(0)
    p, gold = rng.random(n).tolist(), rng.integers(0, 2, n).astype(float).tolist()
    scores = [tuple(row) for row in rng.normal(size=(n, 2)).tolist()]
    lengths = [tuple(row) for row in rng.integers(1, 50, (n, 2)).tolist()]
    return p, gold, scores, lengths


def test_swapping_every_pair_changes_nothing() -> None:
    p, gold, scores, lengths = random_columns()
    forward = reward_report(make(p, gold, scores, lengths), temperature=1.7)
    mirrored = [1 - v for v in p], [1 - v for v in gold]
    backward = make(*mirrored, [s[::-1] for s in scores], [n[::-1] for n in lengths])
    assert forward == pytest.approx(reward_report(backward, temperature=1.7), abs=1e-9)
    wrong = report(*mirrored, scores, lengths)
    assert wrong["rm/accuracy"] == pytest.approx(1 - forward["rm/accuracy"])


def test_calibration_of_soft_labels() -> None:
    differences = np.linspace(-3, 3, 50)
    labels = (1 / (1 + np.exp(-differences))).tolist()
    scores = [(float(d), 0.0) for d in differences]
    exact = report(labels, [None] * 50, scores, [(1, 2)] * 50)
    assert exact["rm/ece"] == pytest.approx(0.0, abs=1e-12) and exact["rm/brier"] < 1e-12
    doubled = make(labels, [None] * 50, [(2 * a, b) for a, b in scores], [(1, 2)] * 50)
    assert fitted_temperature(doubled) == pytest.approx(2.0, rel=1e-6)
    found = reward_report(doubled, temperature=2.0)
    assert found["rm/ece"] > 0.05 and found["rm/ece_fitted"] == pytest.approx(0.0, abs=1e-12)
    assert found["rm/fitted_temperature"] == 2.0
    # mutation: multiplying by the temperature makes it worse
    assert reward_report(doubled, temperature=0.5)["rm/ece_fitted"] > found["rm/ece"]
    flat = make([0.9], [None], [(1.0, 1.0)], [(1, 2)])
    assert fitted_temperature(flat) is None and fitted_temperature([]) is None


def test_reliability_rows_are_what_ece_is_made_of() -> None:
    rows = make(*random_columns())
    curves = reward_reliability(rows, 2.0)
    found = reward_report(rows, temperature=2.0)
    for curve, name in (("as trained", "rm/ece"), ("fitted", "rm/ece_fitted")):
        mine = [row for row in curves if row["curve"] == curve]
        gap = sum(row["n"] * abs(row["mean_predicted"] - row["mean_observed"]) for row in mine) / 60
        assert gap == pytest.approx(found[name], abs=1e-12) and sum(row["n"] for row in mine) == 60
    assert {row["curve"] for row in reward_reliability(rows, None)} == {"as trained"}


def brute(rows: Rows, chosen, target: str) -> tuple[int, float]:
    """Count and accuracy of the chosen rows against `p_a` or `gold`, one by one."""
    right = []
    for row in rows:
        value = getattr(row, target)
        if value is None or value == 0.5 or not chosen(row, value):
            continue
        gap = row.reward_a - row.reward_b
        right.append(0.5 if gap == 0 else float((gap > 0) == (value > 0.5)))
    return len(right), fmean(right)


def test_bins_against_plain_loops() -> None:
    rows = make(*random_columns(200))
    for row in reward_confidence_bins(rows):
        last = row["high"] == 0.5

        def inside(x, _, low=row["low"], high=row["high"], last=last):
            return low <= abs(x.p_a - 0.5) < high or (last and abs(x.p_a - 0.5) == high)

        assert (row["n"], row["accuracy"]) == pytest.approx(brute(rows, inside, "p_a"))
        assert (row["gold_n"], row["gold_accuracy"]) == pytest.approx(brute(rows, inside, "gold"))
    assert sum(row["n"] for row in reward_confidence_bins(rows)) == 200

    def place(x, target) -> str:
        preferred, other = (x.tokens_a, x.tokens_b) if target > 0.5 else (x.tokens_b, x.tokens_a)
        if abs(preferred - other) <= 0.1 * max(preferred, other):
            return "similar"
        return "longer" if preferred > other else "shorter"

    table = reward_length_bins(rows)
    assert [row["bin"] for row in table] == ["shorter", "similar", "longer"]
    for row in table:
        own = brute(rows, lambda x, t, name=row["bin"]: place(x, t) == name, "p_a")
        gold = brute(rows, lambda x, t, name=row["bin"]: place(x, t) == name, "gold")
        assert (row["n"], row["accuracy"], row["gold_n"], row["gold_accuracy"]) == pytest.approx(
            (*own, *gold)
        )
        low, high = row["accuracy_ci_low"], row["accuracy_ci_high"]
        assert low < row["accuracy"] < high
    # mutation: by gold's preferred side, the bins of the labels would be other ones
    assert any(place(x, x.p_a) != place(x, x.gold) for x in rows)


def test_every_bin_is_a_metric_with_a_glossary_line() -> None:
    rows = make(*random_columns())
    found = reward_report(rows, temperature=1.5)
    for row in reward_length_bins(rows):
        assert found[f"rm/length_{row['bin']}_accuracy"] == row["accuracy"]
        assert found[f"rm/length_{row['bin']}_gold_accuracy_ci_high"] == row["gold_accuracy_ci_high"]
    assert found["rm/confidence_80_n"] > 0
    assert unknown([*found, *reward_report(ensemble(), temperature=1.0)]) == []


SCORES = [  # two members' scores of four pairs, as trained
    [(1.0, 0.0), (0.0, 1.0), (2.0, 0.0), (0.0, 0.5)],
    [(3.0, 0.0), (1.0, 0.0), (2.0, 0.5), (0.0, 0.5)],
]
SCALES = [Normalization(2.0, 0.5), Normalization(1.0, -0.25)]


def ensemble() -> Rows:
    gold = [1.0, 0.0, 1.0, 0.0]
    pairs = [Pair(str(i), f"x{i}", "p", "a", "b", "dataset", g, "human") for i, g in enumerate(gold)]
    return scored_pairs(label_rows(pairs, [0.9, 0.8, 0.7, 0.4], [(3, 4)] * 4), SCORES, SCALES)


def test_an_ensemble_by_hand() -> None:
    rows = ensemble()
    # Pair 0: members' rewards of a are 2 * 1 + 0.5 and 3 - 0.25, of b 0.5 and -0.25.
    assert (rows[0].reward_a, rows[0].reward_b) == pytest.approx(((2.5 + 2.75) / 2, (0.5 - 0.25) / 2))
    # Its logit: the mean of 2 * 1 and 1 * 3, over the mean scale 1.5.
    assert rows[0].logit == pytest.approx(2.5 / 1.5)
    spreads = []
    for pair in range(4):
        p, q = (sigmoid(SCORES[m][pair][0] - SCORES[m][pair][1]) for m in (0, 1))
        spreads.append(abs(p - q) / 2)  # the standard deviation of two values
        assert rows[pair].disagreement == pytest.approx(spreads[-1], abs=1e-12)
    found = reward_report(rows, temperature=None)
    assert found["rm/disagreement"] == pytest.approx(fmean(spreads))
    # Pair 1 is torn (-2 against 1: the mean prefers b, the label a); pairs 3 and 2 are agreed on.
    table = {row["bin"]: row for row in disagreement_bins(rows)}
    assert [spread <= median(spreads) for spread in spreads] == [False, False, True, True]
    assert (table["low"]["n"], table["low"]["accuracy"]) == (2, 1.0)
    assert (table["high"]["n"], table["high"]["accuracy"]) == (2, 0.5)
    assert found["rm/disagreement_high_gold_accuracy"] == 1.0
    # mutation: disagreement of normalised differences, or of the sample's standard deviation, is another number
    assert spreads[0] != pytest.approx(abs(sigmoid(2.0) - sigmoid(3.0)) / 2)
    assert found["rm/disagreement"] != pytest.approx(fmean(spreads) * math.sqrt(2))


def test_one_members_normalisation_moves_rewards_alone() -> None:
    p, gold, scores, lengths = random_columns()
    plain = make(p, gold, scores, lengths)
    pairs = [Pair(str(i), f"prompt-{i}", "p", "a", "b", "dataset", g, "human") for i, g in enumerate(gold)]
    scaled = scored_pairs(label_rows(pairs, p, lengths), [scores], [Normalization(3.0, -1.0)])
    assert scaled[0].reward_a == pytest.approx(3 * plain[0].reward_a - 1)
    assert [row.logit for row in scaled] == pytest.approx([row.logit for row in plain])
    one, other = (reward_report(rows, temperature=1.2) for rows in (plain, scaled))
    assert one == pytest.approx(other, abs=1e-9)
    assert scaled[0].disagreement is None and disagreement_bins(scaled) == []


def test_items_carry_what_the_accuracies_are_means_of() -> None:
    rows = make([0.9, 0.2, 0.5], [None, 1.0, 0.0], [(1.0, 0.0), (2.0, 1.0), (0.0, 0.0)], [(1, 2)] * 3)
    items = reward_items(rows)
    assert [item["rm/accuracy"] for item in items] == [1.0, 0.0, None]
    assert [item["rm/gold_accuracy"] for item in items] == [None, 1.0, 0.5]
    assert [item["prompt_id"] for item in items] == ["prompt-0", "prompt-1", "prompt-2"]
    assert read_reward_items(items) == rows


def test_columns_must_fit() -> None:
    (row,) = make([0.9], [None], [(1.0, 0.0)], [(1, 1)])
    assert row.right == 1.0
    pair = Pair("0", "prompt", "p", "a", "b", "dataset")
    one = label_rows([pair], [0.9])
    good = (one, [[(1.0, 0.0)]], [AS_TRAINED])
    for place, wrong in enumerate(([], [[]], [])):
        with pytest.raises(ValueError, match="do not match"):
            scored_pairs(*(wrong if i == place else column for i, column in enumerate(good)))
    with pytest.raises(ValueError, match="repeat"):
        scored_pairs(one * 2, [[(1.0, 0.0)] * 2], [AS_TRAINED])
    assert reward_report([], temperature=None) == {"rm/n": 0}


def test_an_empty_response_loses_to_any_text_whatever_its_scores() -> None:
    """Two members that like a bare end of text best; labels by the rule, and two empty ones that tie."""
    texts = [("", "A text."), ("A text.", " \n"), ("", "\u200b"), ("Good.", "Bad.")]
    pairs = [
        Pair(str(i), f"prompt-{i}", "p", *two, "dataset", g, "human")
        for i, (two, g) in enumerate(zip(texts, (0.0, 1.0, 1.0, 1.0)))
    ]
    members = [
        [(5.0, 0.0), (1.0, 4.0), (3.0, 2.0), (2.0, 1.0)],
        [(7.0, 1.0), (0.5, 6.0), (2.0, 3.0), (1.0, 0.0)],
    ]
    rows = scored_pairs(
        label_rows(pairs, [0.0, 1.0, 0.5, 0.9], [(1, 3)] * 4), members, [AS_TRAINED, Normalization(2.0, -1.0)]
    )
    assert [row.gold_right for row in rows] == [1.0, 1.0, 0.5, 1.0]
    assert reward_report(rows, temperature=None)["rm/accuracy"] == 1.0
    assert rows[2].reward_a == rows[2].reward_b and rows[2].logit == 0.0
    # Texts keep the members' mean: (5 - ... ) by hand for the last pair, (2 + 2 * 1 - 1) / 2 and (1 + 2 * 0 - 1) / 2.
    assert (rows[3].reward_a, rows[3].reward_b) == (1.5, 0.0)
    least = min(rows[0].reward_b, rows[1].reward_a, 0.0)
    assert rows[0].reward_a == rows[1].reward_b == rows[2].reward_a < least
