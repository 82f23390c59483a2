"""Labelers on the same gold pairs: ranking, ties, every pair; and the page and terminal that show them."""

import io

import pytest
from rich.console import Console
from scipy.stats import binomtest
from synthetic_runs import write_run

from rlaif.io.lineage import LineageRow
from rlaif.report.comparison import sweep_table
from rlaif.report.page import render_report
from rlaif.study.items import common_items, seed_scores
from rlaif.study.labelers import compare_labelers, labelers_of, labelers_table, terminal_labelers
from rlaif.study.sweeps import sweep
from rlaif.tracking.runs import find_runs

METRIC, WORST, HALF = "label/alignment", "label/alignment_worst", "label/alignment_half"


def rows(scores, prompts=None):
    """None: the labeler could not read the pair."""
    return [
        {
            "id": str(i),
            "prompt_id": (prompts or {}).get(i, f"q{i}"),
            **({} if score is None else {METRIC: float(score)}),
            WORST: float(score or 0),
            HALF: 0.5 if score is None else float(score),
        }
        for i, score in enumerate(scores)
    ]


# 40 gold pairs: best is right on all, close on 38, poor on 20.
BEST, CLOSE, POOR = [1] * 40, [1] * 38 + [0] * 2, [1] * 20 + [0] * 20
LABELERS = {"poor": [rows(POOR)], "best": [rows(BEST)], "close": [rows(CLOSE)]}
SUMMARIES = {
    "poor": {"label/ece": 0.3},
    "best": {"label/ece": 0.1, "label/verbosity_gap": -0.05},
    "close": {},
}


def printed(view):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(view)
    return console.export_text()


def test_ranking_ties_and_pairs_by_hand():
    ranking, pairs = compare_labelers(LABELERS, SUMMARIES)
    assert [(row["labeler"], row[WORST], row["best"], row["tied"]) for row in ranking] == [
        ("best", 1.0, True, True),
        ("close", 0.95, False, True),
        ("poor", 0.5, False, False),
    ]
    # Right alone: best 2 to 0, best 20 to 0, close 18 to 0. McNemar: 2 * 0.5^2, 2 * 0.5^20, 2 * 0.5^18.
    assert [(p["first"], p["second"], p["ahead"], p["behind"]) for p in pairs] == [
        ("best", "close", 2, 0),
        ("best", "poor", 20, 0),
        ("close", "poor", 18, 0),
    ]
    raw = [binomtest(k, k).pvalue for k in (2, 20, 18)]
    assert [p["mcnemar_p"] for p in pairs] == pytest.approx(raw)
    # Holm over three, smallest first: 3 p, then 2 p, then p.
    assert [p["p_holm"] for p in pairs] == pytest.approx([raw[0], 3 * raw[1], 2 * raw[2]])
    assert ranking[1]["p_holm"] == pairs[0]["p_holm"] and ranking[0]["p_holm"] is None


def test_holm_over_all_pairs_ties_what_holm_against_the_best_would_not():
    # Against the best: 9 to 1 (p = .0215) and 8 to 1; of two tests, 2 * .0215 = .043 is below 5%.
    one, other = [0] * 9 + [1] * 31, [1] * 9 + [0] * 9 + [1] * 22
    best = [1] * 39 + [0]
    ranking, pairs = compare_labelers(
        {"best": [rows(best)], "one": [rows(one)], "other": [rows(other)]},
        {"best": {}, "one": {}, "other": {}},
    )
    raw = binomtest(9, 10).pvalue
    assert 2 * raw < 0.05 < 3 * raw
    assert [row["tied"] for row in ranking] == [True, True, True]
    assert pairs[0]["p_holm"] == pytest.approx(3 * raw)


def test_no_labeler_chooses_its_test_by_what_it_abstains_from():
    """b is right on 24 of the 28 pairs that it reads, a on 30 of all 40: b leads only where it chose the pairs."""
    a, b = [1] * 30 + [0] * 10, [1] * 24 + [0] * 4 + [None] * 12
    ranking, pairs = compare_labelers({"a": [rows(a)], "b": [rows(b)]}, {"a": {}, "b": {}})
    assert 24 / 28 > 30 / 40
    assert [(row["labeler"], row["n"], row[WORST], row[HALF]) for row in ranking] == [
        ("a", 40, 0.75, 0.75),
        ("b", 40, 24 / 40, 30 / 40),
    ]
    # As errors: a alone is right on 24-27 (b wrong) and 28-29 (b unread), so 6 to 0.
    assert (pairs[0]["ahead"], pairs[0]["behind"]) == (6, 0) and pairs[0]["p"] == binomtest(6, 6).pvalue
    assert ranking[1]["p_holm_half"] > 0.05 > ranking[1]["p_holm"]


def test_all_seeds_count_as_many_as_all_labelers_have():
    a, b = [rows(BEST), rows(CLOSE)], [rows(POOR), rows(POOR), rows(BEST)]
    ranking, _ = compare_labelers({"a": a, "b": b}, {"a": {}, "b": {}})
    # Two seeds each: a is right on 40 and 38 of 40, b on 20 and 20; its third seed has no partner.
    assert [(row["labeler"], row["seeds"], row[WORST]) for row in ranking] == [
        ("a", 2, 78 / 80),
        ("b", 2, 0.5),
    ]


def test_runs_from_before_are_compared_on_the_pairs_that_all_read():
    old = [
        [{k: v for k, v in row.items() if k not in (WORST, HALF)} for row in rows(s)] for s in (BEST, CLOSE)
    ]
    ranking, _ = compare_labelers({"a": [old[0]], "b": [old[1]]}, {"a": {}, "b": {}})
    assert [row[WORST] for row in ranking] == [1.0, 0.95]


def test_nothing_to_compare():
    other = [{"id": str(i), "prompt_id": "elsewhere", METRIC: 1.0} for i in range(40)]
    assert compare_labelers({"a": [rows(BEST)]}, {"a": {}}) == ([], [])
    assert compare_labelers({"a": [rows(BEST)], "b": [other]}, {"a": {}, "b": {}}) == ([], [])
    assert compare_labelers({"a": [rows(BEST)], "b": [[]]}, {"a": {}, "b": {}}) == ([], [])
    assert labelers_table([], []) is None


def label_run(root, identifier, labeler, scores, digest, *, stage="label", seed=None):
    table = rows(scores)
    mean = sum(row[WORST] for row in table) / len(table)
    write_run(
        root,
        identifier,
        stage=stage,
        summary={METRIC: mean, f"{METRIC}_ci_low": mean - 0.1, f"{METRIC}_ci_high": mean + 0.1},
        overrides=[f"labeler={labeler}"] + ([f"seed={seed}"] if seed is not None else []),
        lineage=[LineageRow("label", digest)],
        tables={"items": table},
    )


def test_a_sweep_has_one_labeler_for_each_label_artifact(tmp_path):
    for seed in (0, 1):
        label_run(tmp_path, f"1{seed}", "cot", BEST, "d1", stage="rm", seed=seed)
        label_run(tmp_path, f"2{seed}", "base", POOR, "d2", stage="rm", seed=seed)
    ranking, pairs = labelers_of(find_runs(tmp_path))
    assert [row["labeler"] for row in ranking] == ["labeler=cot", "labeler=base"] and len(pairs) == 1
    assert pairs[0]["ahead"] == 20


def test_a_sweeps_table_says_the_same_as_the_labelers(tmp_path):
    best = [1] * 39 + [0]
    for index, scores in enumerate((best, [0] * 9 + [1] * 31, [1] * 9 + [0] * 9 + [1] * 22)):
        label_run(tmp_path, str(index), f"l{index}", scores, f"d{index}")
    runs = find_runs(tmp_path)
    found, (ranking, _) = sweep(runs, [METRIC]), labelers_of(runs)
    assert [row["p_holm"] for row in found.rows[1:]] == pytest.approx([row["p_holm"] for row in ranking[1:]])
    assert found.rows[0]["best"] and ranking[0]["best"]
    table = sweep_table(found)
    assert [row.tied for row in table.arms[1:]] == [row["tied"] for row in ranking[1:]]
    assert "Holm over 3 pairs of arms" in table.caption


def test_terminal_and_page_show_the_tied_group(tmp_path):
    for index, (name, scores) in enumerate((("[best]", BEST), ("close", CLOSE), ("poor", POOR))):
        label_run(tmp_path, str(index), name, scores, f"d{index}")
    runs = find_runs(tmp_path)
    shown = printed(terminal_labelers(labelers_table(*labelers_of(runs))))
    lines = {
        name: line
        for line in shown.splitlines()
        for name in ("[best]", "close", "poor")
        if line.startswith("│") and f"={name}" in line
    }
    assert "*" in lines["[best]"] and " = " in lines["close"] and " = " not in lines["poor"]
    assert "not told apart from the best: labeler=close" in " ".join(shown.split())
    text = render_report(runs, tmp_path / "r.html", title="t").read_text()
    part = text[text.index("Labelers on the same gold pairs") : text.index("<h2>Labeler of the best arm")]
    assert part.count('class="badge best">best') == 1 and "20 : 0" in part and "+50.0 points" in part
    ranks = part[: part.index("<details")]
    assert ranks.count('class="badge tied"') == 1 and "Holm over 3 pairs" in ranks


def test_a_comparison_brings_its_own_tables(tmp_path):
    ranking, pairs = compare_labelers(LABELERS, SUMMARIES)
    write_run(tmp_path, "1", stage="compare", tables={"labelers": ranking, "labeler_tests": pairs})
    runs = find_runs(tmp_path)
    assert labelers_of(runs) == (ranking, pairs)
    table = labelers_table(ranking, pairs)
    assert table.metrics == (HALF, "label/ece", "label/verbosity_gap")
    assert table.labelers[0].cells == ("100.0%", "0.100", "−5.0 points")
    assert table.labelers[1].cells == ("95.0%", "–", "–")
    assert "20 : 0" in render_report(runs, tmp_path / "r.html", title="t").read_text()


def test_items_that_not_all_seeds_have_do_not_count():
    scores = seed_scores([rows([1, 1, 0, 1]), rows([1, 0, 0, None])], METRIC)
    assert scores == {"0": ("q0", (1.0, 1.0)), "1": ("q1", (1.0, 0.0)), "2": ("q2", (0.0, 0.0))}


def test_arms_that_share_too_few_items_measured_different_things():
    ten = seed_scores([rows([1] * 10)], METRIC)
    half = seed_scores([rows([None] * 5 + [1] * 10)], METRIC)
    less = seed_scores([rows([None] * 6 + [1] * 10)], METRIC)
    # 5 of the smaller arm's 10 items are enough, 4 are not; a small arm within a large one is.
    assert common_items({"a": ten, "b": half}) == [(str(i), f"q{i}") for i in range(5, 10)]
    assert common_items({"a": ten, "b": less}) == []
    assert common_items({"a": ten, "b": seed_scores([rows([1, 0])], METRIC)}) == [("0", "q0"), ("1", "q1")]
