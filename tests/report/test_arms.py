"""Arms over seeds: means with intervals, tests on shared items, and the curve through them."""

import io
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from rich.console import Console
from synthetic_runs import write_run

from rlaif.report.comparison import arms_table, arms_verdict, terminal_arms
from rlaif.report.curve import curve_figure, curve_table, terminal_curve
from rlaif.report.markdown import comparison_markdown, markdown_table
from rlaif.report.page import render_report
from rlaif.stats import arm_interval, holm, mcnemar_test, paired_difference, proportion_interval
from rlaif.stats.means import pooled_scatter
from rlaif.study.arm_table import compare_items, curve_rows, mean_summary, standing
from rlaif.tracking.runs import load_run

GOLD, OWN = "rm/gold_accuracy", "rm/accuracy"


def table(values, metric=GOLD, first=0):
    """Items with one value each; a prompt has two items."""
    return [
        {"id": f"i{first + n}", "prompt_id": f"p{(first + n) // 2}", metric: value}
        for n, value in enumerate(values)
    ]


def seeds(rate, count=3, items=60, noise=0):
    rng = np.random.default_rng(noise)
    easy = rng.random(items)
    return [table((easy + 0.1 * rng.normal(size=items) < rate).astype(float)) for _ in range(count)]


def values(tables, metric=GOLD):
    return np.array([[row[metric] for row in rows] for rows in tables])


PROMPTS = [f"p{n // 2}" for n in range(60)]


def test_one_seed_speaks_for_itself():
    summary = {GOLD: 0.5, f"{GOLD}_ci_low": 0.4, f"{GOLD}_ci_high": 0.6, "label/labeler": "x"}
    assert mean_summary([summary], seeds(0.6, count=1)) == summary


def test_seeds_become_means_and_intervals_of_both():
    items = seeds(0.6)
    summaries = [
        {
            GOLD: value,
            f"{GOLD}_ci_low": 0.0,
            "rm/train_pairs": n,
            "rm/loss": n,
            "rm/loss_ci_low": 0.0,
            "a": "x",
            "b": n,
        }
        for n, value in enumerate(values(items).mean(1), start=1)
    ]
    summaries[0]["b"] = "one"
    merged = mean_summary(summaries, items)
    expected = arm_interval(values(items), PROMPTS)
    assert (merged[GOLD], merged[f"{GOLD}_ci_low"], merged[f"{GOLD}_ci_high"]) == (
        expected.estimate,
        expected.low,
        expected.high,
    )
    assert merged["rm/train_pairs"] == merged["rm/loss"] == 2.0
    assert "rm/loss_ci_low" not in merged, "the interval of no single seed is that of the mean"
    assert merged["a"] == "x" and merged["b"] is None


def test_warnings_of_seeds_say_how_many_they_are_of_and_other_texts_must_agree():
    runs = [
        {"rl/warning": "KL ran away.", "label/warning": "At chance.", "eval/judge": "x"},
        {"rl/warning": "KL ran away.", "eval/judge": "y"},
        {"rl/warning": "Entropy fell.", "eval/judge": "x", "label/warning": None},
    ]
    merged = mean_summary(runs, [[], [], []])
    assert merged["rl/warning"] == "(2 of 3 seeds) KL ran away. (1 of 3 seeds) Entropy fell."
    assert merged["label/warning"] == "(1 of 3 seeds) At chance."
    assert merged["eval/judge"] is None
    same = mean_summary([runs[0], runs[0]], [[], []])
    assert same["rl/warning"] == "KL ran away." and same["eval/judge"] == "x"


def test_no_p_value_is_a_mean_of_p_values():
    rows = [[{"id": str(i), "eval/win_rate": float(i < won)} for i in range(40)] for won in (28, 30)]
    runs = [
        {"eval/win_rate": 0.7, "eval/p_value": 0.001, "rm/length_only_p_value": 0.2},
        {"eval/win_rate": 0.75, "eval/p_value": 0.3, "rm/length_only_p_value": 0.4},
    ]
    merged = mean_summary(runs, rows)
    table = np.array([[row["eval/win_rate"] for row in one] for one in rows])
    assert merged["eval/p_value"] == paired_difference(table, np.full((2, 40), 0.5), range(40))[1] != 0.1505
    assert "rm/length_only_p_value" not in merged


def test_only_items_of_all_seeds_count():
    short = [table([1.0, 0.0, 1.0, 1.0, 1.0, 1.0]), table([1.0] * 4, first=2)]
    merged = mean_summary([{GOLD: 5 / 6}, {GOLD: 1.0}], short)
    mean, found = 11 / 12, proportion_interval([1, 1], range(2))
    assert merged[GOLD] == pytest.approx(mean), "what the seeds' own summaries say"
    assert merged[f"{GOLD}_ci_low"] == pytest.approx(mean + found.low - found.estimate)
    assert merged[f"{GOLD}_ci_high"] == pytest.approx(mean + found.high - found.estimate)


def test_a_measure_of_text_is_no_win_or_loss_although_all_are_nought():
    rouge = "eval/rouge_l_policy"
    arms = {name: [table([0.0] * 20, metric=rouge)] for name in ("a", "b")}
    (test,) = compare_items(arms, [rouge])
    assert (test["difference"], test["difference_ci_low"], test["difference_ci_high"], test["p"]) == (
        0,
        0,
        0,
        1,
    )
    won = {name: [table([0.0] * 20, metric=GOLD)] for name in ("a", "b")}
    assert compare_items(won, [GOLD])[0]["difference_ci_high"] > 0, (
        "of outcomes, twenty ties may still hide a difference"
    )


def test_a_difference_of_shares_is_one():
    few = {"a": [table([1.0] * 4)], "b": [table([0.0] * 4)]}
    (test,) = compare_items(few, [GOLD])
    assert -1 <= test["difference_ci_low"] < test["difference"] == 1 == test["difference_ci_high"]


def test_a_handful_of_shared_items_does_not_speak_for_the_seeds():
    """Seeds of the split measure other items each: the mean is theirs, its interval by the scatter of the seeds."""
    rates = (0.82, 0.81, 0.78)
    runs = [{GOLD: r, f"{GOLD}_ci_low": r - 0.08, f"{GOLD}_ci_high": r + 0.08} for r in rates]
    apart = [table([0.0] * 100, first=98 * n) for n in range(3)]
    merged = mean_summary(runs, apart)
    assert merged[GOLD] == pytest.approx(0.80333, abs=1e-5)
    # items 0.08^2; seeds: variance 0.000433, t with 2 degrees of freedom 4.302653: 4.302653^2 * 0.000433 / 3.
    half = math.sqrt(0.08**2 + 4.302653**2 * 4.3333e-4 / 3)
    assert merged[f"{GOLD}_ci_high"] == pytest.approx(merged[GOLD] + half, abs=1e-4)


def test_an_interval_of_a_share_stays_a_share_and_a_missing_seed_leaves_the_mean():
    rate = "eval/win_rate_lc"
    merged = mean_summary(
        [{rate: r, f"{rate}_ci_low": r - 0.1, f"{rate}_ci_high": r + 0.1} for r in (0.82, 0.88)], [[], []]
    )
    assert merged[rate] == pytest.approx(0.85) and merged[f"{rate}_ci_high"] == 1.0 < 0.85 + 0.1 * 2
    assert mean_summary([{GOLD: 0.5}, {GOLD: None}, {GOLD: 0.7}], [[], [], []])[GOLD] == pytest.approx(0.6)


def test_pairs_on_shared_items_over_seeds():
    arms = {"poor": seeds(0.2), "best": seeds(0.9), "mid": seeds(0.8)}
    tests = compare_items(arms, ["eval/win_rate", GOLD, OWN])
    assert [(row["first"], row["second"]) for row in tests] == [
        ("best", "mid"),
        ("best", "poor"),
        ("mid", "poor"),
    ]
    assert {row["metric"] for row in tests} == {GOLD} and {row["seeds"] for row in tests} == {3}
    scatter = pooled_scatter([values(own) for own in arms.values()])
    raw = {
        f"{row['first']} {row['second']}": paired_difference(
            values(arms[row["first"]]), values(arms[row["second"]]), PROMPTS, scatter=scatter
        )[1]
        for row in tests
    }
    assert [row["p"] for row in tests] == pytest.approx(list(raw.values()))
    assert [row["p_holm"] for row in tests] == pytest.approx(list(holm(raw).values()))
    # mutation: seeds averaged first give another p
    averaged = {name: [table(values(own).mean(0))] for name, own in arms.items()}
    assert compare_items(averaged, [GOLD])[1]["p"] != tests[1]["p"]


def test_one_seed_is_mcnemar():
    x, y = np.ones(20), np.r_[np.zeros(8), np.ones(12)]
    rows = [[{"id": i, GOLD: v} for i, v in enumerate(column)] for column in (x, y)]
    (test,) = compare_items({"x": [rows[0]], "y": [rows[1]]}, [GOLD])
    assert test["p"] == mcnemar_test(x == 1, y == 1) and (test["ahead"], test["behind"]) == (8, 0)


def test_nothing_to_test():
    assert compare_items({"x": seeds(0.5)}, [GOLD]) == []
    assert compare_items({"x": seeds(0.5), "y": [[], [], []]}, [GOLD]) == []
    assert compare_items({"x": seeds(0.5), "y": seeds(0.5)}, []) == []
    far = [table([1.0] * 60, first=50)] * 3
    assert compare_items({"x": seeds(0.5), "y": far}, [GOLD]) == [], "10 of 60 items are too few to share"


def pair(first, second, p_holm):
    more = {"metric": GOLD, "seeds": 3, "n": 60, "ahead": 9, "behind": 4, "mcnemar_p": 0.1, "p": 0.01}
    gap = {"difference": 0.08, "difference_ci_low": 0.01, "difference_ci_high": 0.15}
    return {"first": first, "second": second, "p_holm": p_holm, **more, **gap}


TESTS = [pair("best", "mid", 0.2), pair("best", "poor", 0.003), pair("mid", "poor", 0.051)]


def test_standing_by_hand():
    assert standing(TESTS) == {
        "best": {"best": True, "p_holm": None, "group": "a"},
        "mid": {"best": False, "p_holm": 0.2, "group": "ab"},
        "poor": {"best": False, "p_holm": 0.003, "group": "b"},
    }
    assert standing([]) == {}


def arm(name, value, **more):
    bounds = {f"{GOLD}_ci_low": value - 0.1, f"{GOLD}_ci_high": value + 0.1}
    return {"arm": name, "seeds": 3, GOLD: value, **bounds, **standing(TESTS)[name], **more}


ARMS = [arm("best", 0.7), arm("mid", 0.65), arm("poor", 0.5)]


def shown(*views):
    console = Console(width=150, record=True, file=io.StringIO())
    for view in views:
        console.print(view)
    return console.export_text()


def test_the_arms_table_tells_seeds_ties_and_groups():
    found = arms_table({row["arm"]: row for row in ARMS}, [], TESTS)
    assert found.repeated and found.main == GOLD
    assert [(row.seeds, row.group, row.best, row.tied) for row in found.arms] == [
        ("3", "a", True, False),
        ("3", "ab", False, True),
        ("3", "b", False, False),
    ]
    assert "60 test items and 3 seeds" in found.caption and "Holm over 3 pairs" in found.caption
    text = shown(*terminal_arms(found))
    assert "│ * │ best" in text and "│ = │ mid" in text and "│   │ poor" in text and "60.0–80.0%" in text
    verdict = arms_verdict(found)
    assert verdict.tone == "open" and verdict.sentence == (
        "No single winner: best has the best RM gold accuracy 70.0% (95% CI 60.0–80.0%), not told apart from mid."
    )
    clear = arms_table({row["arm"]: row | {"p_holm": row["p_holm"] and 0.001} for row in ARMS}, [], TESTS)
    assert arms_verdict(clear).tone == "win" and "every other arm" in arms_verdict(clear).sentence


def test_an_arm_without_a_test_is_named_beside_the_verdict():
    rows = {row["arm"]: row | {"p_holm": row["p_holm"] and 0.001} for row in ARMS} | {"odd": {"arm": "odd"}}
    assert arms_verdict(arms_table(rows, [], TESTS)).sentence.endswith(
        "significantly ahead of every other arm (odd could not be tested)."
    )


def test_without_tests_nothing_is_claimed():
    plain = {row["arm"]: {GOLD: row[GOLD]} for row in ARMS}
    found = arms_table(plain, [])
    assert arms_verdict(found) is None and not found.repeated and found.caption == ""
    assert "Holm" not in shown(*terminal_arms(found)) and "seeds" not in shown(*terminal_arms(found))


POINTS = [
    {
        "arm": f"{source} {n}",
        "seeds": 3,
        "rm.labels": source,
        "rm/train_pairs": n,
        GOLD: base + i / 50,
        OWN: base,
    }
    | {f"{GOLD}_ci_low": base - 0.1, f"{GOLD}_ci_high": base + 0.2}
    for source, base in (("gold", 0.6), ("ai", 0.5))
    for i, n in reversed(list(enumerate((8, 64, 512))))
]


def test_points_of_a_curve():
    rows = curve_rows(POINTS, x="rm/train_pairs", y=[GOLD, OWN], by="rm.labels")
    assert [(row["line"], row["x"]) for row in rows if row["metric"] == GOLD] == [
        (line, n) for line in ("gold", "ai") for n in (8, 64, 512)
    ]
    first = rows[0]
    assert (first["value"], first["ci_low"], first["ci_high"]) == (0.6, 0.5, pytest.approx(0.8))
    assert rows[1]["metric"] == OWN and rows[1]["ci_low"] is None
    without = [{**POINTS[0], "rm/train_pairs": None}, *POINTS[1:]]
    assert len(curve_rows(without, x="rm/train_pairs", y=[GOLD], by=None)) == 5
    assert curve_rows(POINTS, x="rm.n", y=[GOLD], by=None) == []


def test_curve_in_text_and_as_a_figure():
    rows = curve_rows(POINTS, x="rm/train_pairs", y=[GOLD, OWN], by="rm.labels")
    found = curve_table(rows)
    assert found.heads == ("rm.labels", "RM train pairs", "seeds", "RM gold accuracy", "RM accuracy")
    assert found.rows[0] == ("gold", "8", "3", "60.0% (50.0–80.0%)", "60.0%") and len(found.rows) == 6
    assert "60.0% (50.0–80.0%)" in shown(terminal_curve(found))
    svg = curve_figure(rows)
    texts = {node.text for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}
    assert {"rm.labels=gold", "rm.labels=ai", "RM gold accuracy", "RM train pairs", "8", "64", "512"} <= texts
    assert curve_table([]) is None and curve_figure([]) == ""


def places(rows):
    """x of the drawn line's three points, in the figure's own units: of two pieces, which belong to two arms each."""
    svg = ET.fromstring(curve_figure(rows))
    pieces = [node[0].get("d") for node in svg.iter() if " " in node.get("data-arm", "")]
    ends = [[float(point.split()[0]) for point in d.replace("M", "").split("L")] for d in pieces]
    (first, middle), (same, last) = ends
    assert middle == same
    return first, middle, last


@pytest.mark.parametrize(
    ("ladder", "logarithmic"), [((8, 64, 512), True), ((2, 3, 8), False), ((0, 20, 90), False)]
)
def test_x_is_logarithmic_beyond_a_decade(ladder, logarithmic):
    rows = [{**point, "rm/train_pairs": n} for n, point in zip(ladder, POINTS[2::-1], strict=True)]
    x = places(curve_rows(rows, x="rm/train_pairs", y=[GOLD], by=None))
    scale = [math.log(n) if logarithmic else n for n in ladder]
    share = (scale[1] - scale[0]) / (scale[2] - scale[0])
    assert (x[1] - x[0]) / (x[2] - x[0]) == pytest.approx(share, abs=1e-4)


def test_x_in_percent():
    rows = [{**point, "rm/label_alignment": x} for x, point in zip((0.6, 0.8, 1.0), POINTS, strict=False)]
    points = curve_rows(rows, x="rm/label_alignment", y=[GOLD], by=None)
    assert curve_table(points).rows[0][0] == "60.0%" and "100%" in curve_figure(points)


def test_markdown_and_page(tmp_path):
    rows = curve_rows(POINTS, x="rm/train_pairs", y=[GOLD], by="rm.labels")
    duel = {"first": "best", "second": "a|b", "win_rate": 0.6, "p": 0.01, "n": 9, "win_rate_lc": 0.587}
    arms = [*ARMS, {**ARMS[2], "arm": "<i>&"}]
    tables = {"arms": arms, "arm_tests": TESTS, "curve": rows, "verdicts": [duel]}
    record = load_run(write_run(tmp_path, "x", stage="compare", tables=tables))
    text = comparison_markdown(record)
    assert "| **best** | 3 | 70.0% (60.0–80.0%) | – | a |" in text
    assert "| gold | 8 | 3 | 60.0% (50.0–80.0%) |" in text and "a\\|b" in text
    assert text.count("\n| --- |") == 3 and "Holm over 3 pairs" in text
    page = render_report([record], tmp_path / "page.html", title="t").read_text(encoding="utf-8")
    assert "No single winner: best has the best RM gold accuracy 70.0%" in page
    assert "Every pair of arms (3)" in page and "+8.0 points" in page and "9 : 4" in page
    assert "rm.labels=gold" in page and "intervals include the variance of seeds and test items" in page
    assert "at equal length" in text and "58.7%" in text and "58.7%" in page
    assert "&lt;i&gt;&amp;" in page and "<i>&" not in page


def test_each_arm_has_a_curve_of_its_own(tmp_path):
    """What a comparison logs is one arm after the other, and no curve of anything."""
    jumble = [{"step": step, "rl/reward": 7.0, "rl/kl": 1.0} for step in (0, 1, 0, 1)]
    rows = [
        {"arm": arm, "step": step, "rl/reward": step + start, "rl/kl": 0.5 * step}
        for arm, start in (("quick arm", 0.0), ("slow arm", 5.0))
        for step in range(3)
    ]
    arms = [
        {"arm": name, "rl/kl": 1.0, "eval/win_rate": 0.6, "rl/reward": 2.0}
        for name in ("quick arm", "slow arm")
    ]
    tables = {"arms": arms, "arm_histories": rows}
    record = load_run(write_run(tmp_path, "x", stage="compare", tables=tables, history=jumble))
    page = render_report([record], tmp_path / "page.html", title="t").read_text(encoding="utf-8")
    assert "none was tested against another" in page and "No policy was judged" not in page
    curves = page[page.index("Proxy against judge") :]
    assert curves.count("quick arm") == curves.count("slow arm") >= 2, "a label in each figure's legend"
    assert "reward (proxy)" not in curves
    alone = load_run(write_run(tmp_path, "y", stage="rl", history=jumble))
    assert "reward (proxy)" in render_report([alone], tmp_path / "alone.html", title="t").read_text(
        encoding="utf-8"
    )


def test_a_cell_cannot_break_a_markdown_table():
    assert (
        markdown_table(["a", "b"], [["x|y", "two\nlines"]])
        == "| a | b |\n| --- | --- |\n| x\\|y | two lines |"
    )
