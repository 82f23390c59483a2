"""The ablation table against hand-worked numbers."""

import io
import math

import pytest
from rich.console import Console
from synthetic_runs import write_run

from rlaif.errors import UserError
from rlaif.report.summary import result_table
from rlaif.study.tables import Cell, ablation_table, arm_labels, terminal_table
from rlaif.tracking.runs import find_runs

WIN = "eval/win_rate"


def summary(value, half):
    return {WIN: value, f"{WIN}_ci_low": value - half, f"{WIN}_ci_high": value + half}


def printed(view):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(view)
    return console.export_text()


def three_arms(root):
    write_run(root, "1", summary=summary(0.70, 0.049), overrides=["labeler=cot", "rm.lr=1e-5"])
    write_run(root, "2", summary=summary(0.66, 0.049), overrides=["labeler=detailed", "rm.lr=1e-5"])
    write_run(root, "3", summary=summary(0.55, 0.049), overrides=["rm.lr=1e-5"])
    return find_runs(root)


def test_labels_hold_only_what_differs(tmp_path):
    assert arm_labels(three_arms(tmp_path)) == ["labeler=cot", "labeler=detailed", "default"]


def test_ties_by_intervals_on_a_hand_worked_case(tmp_path):
    # half-width 0.049 -> standard error 0.049/1.95996 = 0.025; of a difference 0.025*sqrt(2) = 0.035355.
    # cot-detailed: z = 0.04/0.035355 = 1.1314 -> p = 0.2579; cot-default: z = 4.2426 -> p = 2.21e-5.
    # detailed-default: z = 0.11/0.035355 = 3.1113 -> p = 0.00186. Holm over all three pairs: 3*2.21e-5 = 6.63e-5,
    # 2*0.00186, 0.2579.
    table = ablation_table(three_arms(tmp_path), [WIN])
    assert [(arm.label, arm.best, arm.tied) for arm in table.arms] == [
        ("labeler=cot", True, True),
        ("labeler=detailed", False, True),
        ("default", False, False),
    ]
    assert table.arms[0].p_holm is None
    assert table.arms[1].p_holm == pytest.approx(0.2579, abs=2e-4)
    assert table.arms[2].p_holm == pytest.approx(6.63e-5, rel=5e-3)
    assert (
        "two-sample z test" in table.caption
        and "Not told apart from the best: labeler=detailed." in table.caption
    )
    # Mutation check: an uncorrected p of the last arm would not pass.
    assert table.arms[2].p_holm != pytest.approx(2.21e-5, rel=0.1)


def test_holm_decides_where_a_single_test_would_not(tmp_path):
    # z = 0.075/0.035355 = 2.1213 -> p = 0.0339: significant alone; four arms have six pairs: Holm 6*0.0339 = 0.2034.
    write_run(tmp_path, "0", summary=summary(0.70, 0.049), overrides=["labeler=cot"])
    for index, name in enumerate(("a", "b", "c")):
        write_run(tmp_path, str(index + 1), summary=summary(0.625, 0.049), overrides=[f"labeler={name}"])
    runs = find_runs(tmp_path)
    many, two = ablation_table(runs, [WIN]), ablation_table(runs[:2], [WIN])
    assert [arm.p_holm for arm in many.arms[1:]] == pytest.approx([0.2034] * 3, abs=6e-4)
    assert all(arm.tied for arm in many.arms)
    assert two.arms[1].p_holm == pytest.approx(0.0339, abs=2e-4)
    assert not any(arm.tied for arm in two.arms)


def test_seeds_are_grouped_with_mean_spread_and_interval(tmp_path):
    for seed, value in enumerate((0.60, 0.62, 0.67)):
        run = {**summary(value, 0.0392), "rl/kl": 4.0}
        write_run(tmp_path, f"{seed}", summary=run, overrides=["labeler=cot", f"seed={seed}"])
    write_run(tmp_path, "9", summary=summary(0.5, 0.0392), overrides=["labeler=base", "seeds.rm=1"])
    table = ablation_table(find_runs(tmp_path), [WIN, "rl/kl"])
    arm = table.arms[0]
    cell = arm.cells[WIN]
    assert (arm.label, len(arm.runs), cell.n) == ("labeler=cot", 3, 3)
    # mean 1.89/3 = 0.63; squares .0009 + .0001 + .0016 = .0026, /2 = .0013, root .0360555.
    assert cell.value == pytest.approx(0.63, abs=1e-12)
    assert cell.spread == pytest.approx(0.0360555, abs=1e-7)
    # items: 0.0392^2 = 1.53664e-3; seeds, t with 2 degrees of freedom 4.302653: 4.302653^2 * .0013/3 = 8.02221e-3.
    assert cell.high - cell.value == pytest.approx(0.00955885**0.5, abs=2e-5)
    assert cell.text(WIN) == "63.0% ± 3.6%"
    assert arm.cells["rl/kl"].text("rl/kl") == "4"
    assert table.arms[1].cells[WIN].spread is None


def test_a_seed_that_ran_twice_counts_once_and_the_later_one(tmp_path):
    write_run(tmp_path, "20260101", summary=summary(0.5, 0.05), overrides=["labeler=cot", "seed=0"])
    write_run(tmp_path, "20260102", summary=summary(0.6, 0.05), overrides=["labeler=cot", "seed=0"])
    table = ablation_table(find_runs(tmp_path), [WIN])
    assert table.arms[0].cells[WIN].value == 0.6 and len(table.arms[0].runs) == 1
    assert "1 earlier run of the same arm and seed left out." in table.notes


def items(scores):
    return {
        "items": [{"id": str(i), "prompt_id": str(i), WIN: float(score)} for i, score in enumerate(scores)]
    }


def test_paired_items_decide_where_the_intervals_overlap(tmp_path):
    # b is right on the first 60 of 100 items, a on the same and 10 more: McNemar 2 * 0.5^10.
    a, b = [1] * 70 + [0] * 30, [1] * 60 + [0] * 40
    write_run(tmp_path, "1", summary=summary(0.70, 0.09), overrides=["labeler=a"], tables=items(a))
    write_run(tmp_path, "2", summary=summary(0.60, 0.09), overrides=["labeler=b"], tables=items(b))
    runs = find_runs(tmp_path)
    table = ablation_table(runs, [WIN])
    assert table.arms[1].p_holm == pytest.approx(2 * 0.5**10, rel=1e-9) and not table.arms[1].tied
    assert "paired test on the same 100 items" in table.caption
    (runs[1].path / "tables" / "items.jsonl").unlink()
    assert ablation_table(runs, [WIN]).arms[1].tied  # the intervals alone cannot tell the arms apart


def test_a_spread_has_no_sign():
    assert Cell(12.3, spread=1.2, n=2).text("label/length_gap") == "+12.3 ± 1.200"
    assert Cell(0.062, spread=0.01, n=2).text("label/verbosity_gap") == "+6.2 points ± 1.0 points"


def test_lower_is_better_for_losses(tmp_path):
    write_run(tmp_path, "1", summary={"rm/loss": 0.5}, overrides=["rm.lr=1"])
    write_run(tmp_path, "2", summary={"rm/loss": 0.4}, overrides=["rm.lr=2"])
    table = ablation_table(find_runs(tmp_path), ["rm/loss"])
    assert table.arms[0].label == "rm.lr=2" and not table.arms[1].tied
    assert "None is marked as not told apart" in table.caption


def test_missing_values_rank_last_and_empty_input_is_refused(tmp_path):
    write_run(tmp_path, "1", summary={}, overrides=["rm.lr=1"])
    write_run(tmp_path, "2", summary=summary(0.5, 0.1), overrides=["rm.lr=2"])
    runs = find_runs(tmp_path)
    table = ablation_table(runs, [WIN])
    assert [arm.label for arm in table.arms] == ["rm.lr=2", "rm.lr=1"]
    assert table.arms[1].cells[WIN].text(WIN) == "–" and not table.arms[1].tied
    with pytest.raises(UserError, match="no run has the metric rm/ece"):
        ablation_table(runs, ["rm/ece"])
    with pytest.raises(UserError, match="nothing to compare"):
        ablation_table([], [WIN])


def test_terminal_table_prints_labels_that_look_like_markup(tmp_path):
    write_run(tmp_path, "1", summary=summary(0.7, 0.01), overrides=["labeler.x=[red]"])
    write_run(tmp_path, "2", summary=summary(0.5, 0.01), overrides=["labeler.x=[blue]"])
    shown = printed(terminal_table(ablation_table(find_runs(tmp_path), [WIN])))
    assert "labeler.x=[red]" in shown and "70.0%" in shown and "(69.0–71.0%)" in shown


def test_result_table_skips_what_is_missing():
    shown = printed(result_table({"label/alignment": 0.78, "rl/kl": math.nan}))
    assert "labeler alignment" in shown and "78.0%" in shown
    assert "KL" not in shown and "win rate" not in shown


def test_result_table_shows_the_path(tmp_path):
    from synthetic_runs import full_run

    from rlaif.tracking.runs import load_run

    run = load_run(full_run(tmp_path))
    shown = printed(result_table(run.summary, run.history))
    for expected in (
        "78.0%",
        "72.0–83.0%",
        "57.0–69.0%",
        "p < 0.001, n = 256, judge: detailed",
        "0.213 vs 0.211",
        "18.4 vs 15.1",
        "41.0% vs 44.0%",
        "Proxy vs judge",
        "52.0–64.0%",
    ):
        assert expected in shown, expected


def test_the_reward_and_what_rl_maximises_stand_side_by_side(tmp_path):
    """A reward that rises while penalties and KL eat more than it gains is no gain of what RL maximises."""
    from synthetic_runs import full_run, write_run

    from rlaif.report.markdown import comparison_markdown
    from rlaif.report.page import render_report
    from rlaif.report.summary import proxy_and_judge, result_rows
    from rlaif.tracking.runs import load_run

    run = load_run(full_run(tmp_path))
    own = {
        "rl/objective": -1.25,
        "rl/reward_scale": "mean 0, standard deviation 1 on 24 references",
        "rl/reward_raw_sd": 0.0932,
    }
    summary = {**run.summary, **own}
    rows = {row.metric: row for row in result_rows(summary, run.history)}
    assert rows["rl/objective"].value == "-1.250" and "maximises" in rows["rl/objective"].label
    assert "maximis" not in rows["rl/reward"].label
    assert rows["rl/reward_scale"].value == "0.093 raw" and "24 references" in rows["rl/reward_scale"].note
    cards = {who: (words, value) for who, words, value in proxy_and_judge(summary, run.history)}
    assert cards["Proxy"][0] == "reward, before penalties and KL"
    assert "what RL maximised" in cards["Objective"][0] and cards["Objective"][1] == "\u22121.250"
    arms = [{"arm": name, **summary} for name in "ab"]
    history = [
        {"step": i, "rl/reward": 0.1 * i, "rl/objective": -0.1 * i, "rl/kl": 0.1 * i} for i in range(9)
    ]
    path = write_run(
        tmp_path, "c", stage="compare", summary={"a/x": 1}, history=history, tables={"arms": arms}
    )
    text = comparison_markdown(load_run(path))
    assert "| RL reward | RL objective |" in text
    page = render_report([load_run(path)], tmp_path / "page.html", title="t").read_text(encoding="utf-8")
    assert "RL objective" in page and "reward that RL maximise" not in page
