"""Arms and head-to-heads of stage=compare."""

import io

import pytest
from rich.console import Console

from rlaif.report.comparison import arms_table, arms_verdict, terminal_arms

ARMS = {
    "cot": {
        "eval/win_rate": 0.61,
        "eval/win_rate_ci_low": 0.55,
        "eval/win_rate_ci_high": 0.67,
        "eval/judge": "x",
    },
    "base": {"rm/accuracy": 0.7},
}


def duel(first, second, win, p, **more):
    return {"first": first, "second": second, "win_rate": win, "p": p, "n": 200, **more}


def test_columns_are_what_at_least_one_arm_has():
    table = arms_table(ARMS, [])
    assert table.metrics == ("rm/accuracy", "eval/win_rate")
    assert table.arms[0].cells == (("–", ""), ("61.0%", "55.0–67.0%"))
    assert table.arms[1].cells == (("70.0%", ""), ("–", ""))


def test_holm_over_the_rows_decides_the_tie():
    # p = 0.01, 0.03, 0.04 -> Holm: 3*0.01 = 0.03; max(0.03, 2*0.03) = 0.06; max(0.06, 0.04) = 0.06.
    rows = [duel("a", "b", 0.62, 0.01), duel("c", "a", 0.44, 0.03), duel("b", "c", 0.56, 0.04)]
    found = arms_table({}, rows).verdicts
    assert [row.p_holm for row in found] == ["p = 0.030", "p = 0.060", "p = 0.060"]
    assert [row.tied for row in found] == [False, True, True]
    assert [row.winner for row in found] == ["a", "", ""]


@pytest.mark.parametrize(("win", "winner"), [(0.7, "a"), (0.3, "b")])
def test_a_given_holm_p_is_kept_and_the_winner_has_the_share(win, winner):
    row = arms_table({}, [duel("a", "b", win, 0.5, p_holm=0.001)]).verdicts[0]
    assert (row.p_holm, row.tied, row.winner) == ("p = 0.001", False, winner)


def test_without_p_the_interval_decides():
    rows = [
        {"first": "a", "second": "b", "win_rate": 0.6, "ci_low": 0.52, "ci_high": 0.68},
        {"first": "a", "second": "c", "win_rate": 0.6, "ci_low": 0.48, "ci_high": 0.72},
        {"first": "a", "second": "d", "win_rate": 0.6},
    ]
    assert [row.tied for row in arms_table({}, rows).verdicts] == [False, True, True]


def headline(*duels):
    return arms_verdict(arms_table({}, duels))


def test_one_head_to_head_is_the_headline():
    bounds = {"ci_low": 0.391, "ci_high": 0.531}
    tied = headline(duel("likelihood", "longer", 0.461, 0.31, **bounds))
    assert (tied.tone, tied.sentence) == (
        "open",
        "No clear difference between likelihood and longer: the judge prefers likelihood to longer in 46.1% "
        "(95% CI 39.1–53.1%, Holm p = 0.31).",
    )
    length = {"win_rate_lc": 0.545, "win_rate_lc_ci_low": 0.465, "win_rate_lc_ci_high": 0.641}
    told = headline(duel("a", "b", 0.461, 0.31, **length)).sentence
    assert told.endswith("in 46.1% (Holm p = 0.31), at equal length in 54.5% (46.5–64.1%).")
    # The second of the two can be the winner.
    lost = headline(duel("a", "b", 0.4, 0.001))
    assert (lost.tone, lost.sentence) == (
        "win",
        "b wins: the judge prefers a to b in 40.0% (Holm p = 0.001).",
    )
    assert headline({"first": "a", "second": "b", "win_rate": 0.6}).sentence.endswith("a to b in 60.0%.")


def test_several_head_to_heads_name_who_differs():
    # Holm: 3 * 0.001; then 2 * 0.2 and 0.9: one of three pairs differs.
    some = headline(duel("a", "b", 0.7, 0.001), duel("a", "c", 0.55, 0.2), duel("b", "c", 0.5, 0.9))
    assert some.tone == "win" and some.sentence == (
        "Head to head: the judge prefers a to b in 70.0% (Holm p = 0.003). The policies of no other pair are told "
        "apart at 5%."
    )
    none = headline(duel("a", "b", 0.6, 0.03), duel("a", "c", 0.55, 0.2))  # 2 * 0.03 = 0.06
    assert (none.tone, none.sentence) == (
        "open",
        "No two of the policies that met are told apart at 5% (Holm over 2 pairs); that does not make them equal.",
    )
    many = headline(*(duel("a", name, 0.8, 1e-6) for name in "bcdef"))
    assert "; and 2 more." in many.sentence and "no other pair" not in many.sentence
    assert headline() is None


def test_terminal_tables():
    console = Console(width=160, record=True, file=io.StringIO())
    rates = {"ci_low": 0.55, "ci_high": 0.69, "win_rate_lc": 0.58}
    for view in terminal_arms(arms_table(ARMS, [duel("[a]", "b", 0.62, 0.01, **rates)])):
        console.print(view)
    shown = console.export_text()
    assert "62.0% (55.0–69.0%)" in shown and "58.0%" in shown and "at equal length" in shown
    assert "61.0%" in shown and "[a] wins" in shown and len(terminal_arms(arms_table(ARMS, []))) == 1


def test_wins_over_the_baseline_are_one_family():
    arms = {
        name: {"eval/win_rate": 0.6, "eval/p_value": p} for name, p in (("a", 0.02), ("b", 0.03), ("c", 0.9))
    }
    table = arms_table(arms, [])
    # Holm over three: 3 * 0.02, 2 * 0.03, 0.9: none is left below 5%, though two of them were.
    assert [row.over_baseline for row in table.arms] == ["0.060", "0.060", "0.90"] and table.judged
    console = Console(width=200, record=True, file=io.StringIO())
    for part in terminal_arms(table):
        console.print(part)
    assert "Holm p" in console.export_text()
    assert not arms_table({"a": arms["a"], "d": {"eval/win_rate": 0.5}}, []).judged


def test_a_terminal_has_room_for_the_tested_metric_and_what_matters_most():
    values = dict.fromkeys(
        (
            "label/alignment",
            "rm/accuracy",
            "rm/ece",
            "rl/reward",
            "rl/kl",
            "eval/win_rate",
            "eval/rouge_l_policy",
        ),
        0.5,
    )
    tests = [
        {
            "first": "a",
            "second": "b",
            "n": 9,
            "ahead": 1,
            "behind": 0,
            "metric": "rm/ece",
            "seeds": 1,
            "p": 0.5,
        }
    ]
    tests[0] |= {"difference": 0.1, "mcnemar_p": 0.5, "p_holm": 0.5}
    (view,) = terminal_arms(arms_table({"a": values, "b": values}, [], tests))
    heads = [str(column.header) for column in view.columns]
    assert heads == [
        "",
        "arm",
        "labeler alignment",
        "RM accuracy",
        "RM ECE",
        "win rate",
        "ROUGE-L",
        "Holm p",
        "group",
    ]
    assert "The report has 2 more columns." in str(view.caption)
