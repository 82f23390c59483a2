"""A sweep's table against hand-worked numbers: runs as arms, by the engine of every comparison."""

import io
import math

import numpy as np
import pytest
from rich.console import Console
from synthetic_runs import write_run

from rlaif.errors import UserError
from rlaif.report.comparison import arms_verdict, sweep_table, terminal_arms
from rlaif.report.summary import result_table
from rlaif.stats import paired_difference
from rlaif.stats.means import pooled_scatter
from rlaif.study.sweeps import arm_labels, sweep
from rlaif.tracking.runs import find_runs

WIN = "eval/win_rate"


def summary(value, half):
    return {WIN: value, f"{WIN}_ci_low": value - half, f"{WIN}_ci_high": value + half}


def printed(view):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(view)
    return console.export_text()


def items(scores, name=WIN):
    return {
        "items": [{"id": str(i), "prompt_id": str(i), name: float(score)} for i, score in enumerate(scores)]
    }


def right(count, of=100):
    return [1] * count + [0] * (of - count)


def test_labels_hold_only_what_differs(tmp_path):
    for name, words in (("1", ["labeler=cot"]), ("2", ["labeler=detailed"]), ("3", [])):
        write_run(tmp_path, name, summary=summary(0.7, 0.05), overrides=[*words, "rm.lr=1e-5"])
    assert arm_labels(find_runs(tmp_path)) == ["labeler=cot", "labeler=detailed", "default"]


def test_all_pairs_are_tested_on_the_same_items_and_corrected_over_the_table(tmp_path):
    # a is right on 70 of 100 items, b on the first 60 of these, c on the first 66: McNemar of a and b 2 * 0.5^10, of
    # a and c 2 * 0.5^4, of b and c 2 * 0.5^6. Holm over three pairs: 3 * 2 * 0.5^10, 2 * 2 * 0.5^6, 2 * 0.5^4.
    for name, count in (("a", 70), ("b", 60), ("c", 66)):
        scores = items(right(count))
        write_run(
            tmp_path, name, summary=summary(count / 100, 0.09), overrides=[f"labeler={name}"], tables=scores
        )
    found = sweep(find_runs(tmp_path), [WIN])
    assert [row["arm"] for row in found.rows] == ["labeler=a", "labeler=c", "labeler=b"]
    p = {row["arm"]: row["p_holm"] for row in found.rows}
    assert p["labeler=b"] == pytest.approx(6 * 0.5**10, rel=1e-9)
    assert p["labeler=c"] == pytest.approx(2 * 0.5**4, rel=1e-9)
    table = sweep_table(found)
    assert [(row.arm, row.best, row.tied) for row in table.arms] == [
        ("labeler=a", True, False),
        ("labeler=c", False, True),
        ("labeler=b", False, False),
    ]
    assert "on the same 100 test items" in table.caption and "Holm over 3 pairs of arms" in table.caption
    told = arms_verdict(table)
    assert told.tone == "open" and told.sentence.endswith("not told apart from labeler=c.")
    # Mutation check: an uncorrected p would tell b apart by another number, and the best arm's pairs alone by 2 * p.
    assert p["labeler=b"] != pytest.approx(2 * 0.5**10) and p["labeler=b"] != pytest.approx(4 * 0.5**10)


def test_seeds_are_grouped_and_their_scatter_widens_the_interval(tmp_path):
    for seed, value in enumerate((0.60, 0.62, 0.67)):
        run = {**summary(value, 0.0392), "rl/kl": 4.0}
        write_run(tmp_path, f"{seed}", summary=run, overrides=["labeler=cot", f"seed={seed}"])
    write_run(tmp_path, "9", summary=summary(0.5, 0.0392), overrides=["labeler=base", "seeds.rm=1"])
    found = sweep(find_runs(tmp_path), [WIN, "rl/kl"])
    row, other = found.rows
    assert (row["arm"], row["seeds"], len(found.arms["labeler=cot"])) == ("labeler=cot", 3, 3)
    # mean 1.89/3 = 0.63; items: 0.0392^2 = 1.53664e-3; seeds: squares .0009 + .0001 + .0016 = .0026, /2 = .0013;
    # t with 2 degrees of freedom 4.302653: 4.302653^2 * .0013/3 = 8.02221e-3.
    assert row[WIN] == pytest.approx(0.63, abs=1e-12)
    assert row[f"{WIN}_ci_high"] - row[WIN] == pytest.approx(0.00955885**0.5, abs=2e-5)
    assert row[WIN] - row[f"{WIN}_ci_low"] == pytest.approx(0.00955885**0.5, abs=2e-5)
    assert row["rl/kl"] == 4.0 and "rl/kl_ci_low" not in row
    assert other[f"{WIN}_ci_high"] == pytest.approx(0.5392)


def test_seeds_are_paired_by_seed_and_not_by_the_order_of_their_runs(tmp_path):
    """Each seed has a level of its own, which arms share: paired, b beats a in every item of every seed."""
    levels = {"0": 20, "1": 50, "2": 80}
    for arm, order, more in (("a", "012", 0), ("b", "120", 6)):
        for place, seed in enumerate(order):
            count = levels[seed] + more
            words, name = [f"labeler={arm}", f"seed={seed}"], f"{arm}{place}"
            write_run(
                tmp_path,
                name,
                summary=summary(count / 100, 0.09),
                overrides=words,
                tables=items(right(count)),
            )
    found = sweep(find_runs(tmp_path), [WIN])
    assert [run.overrides[1] for run in found.arms["labeler=b"]] == ["seed=0", "seed=1", "seed=2"]
    (test,) = found.tests
    table = np.array([[float(i < levels[seed]) for i in range(100)] for seed in "012"])
    better = np.array([[float(i < levels[seed] + 6) for i in range(100)] for seed in "012"])
    expected = paired_difference(better, table, range(100), scatter=pooled_scatter([better, table]))
    assert test["p"] == pytest.approx(expected[1]) and test["difference"] == pytest.approx(0.06)
    swapped = paired_difference(better[[1, 2, 0]], table, range(100), scatter=pooled_scatter([better, table]))
    assert test["p"] < swapped[1] / 2, "by the order of runs it would be another test"


def test_a_seed_that_ran_twice_counts_once_and_the_later_one(tmp_path):
    write_run(tmp_path, "20260101", summary=summary(0.5, 0.05), overrides=["labeler=cot", "seed=0"])
    write_run(tmp_path, "20260102", summary=summary(0.6, 0.05), overrides=["labeler=cot", "seed=0"])
    found = sweep(find_runs(tmp_path), [WIN])
    assert found.rows[0][WIN] == 0.6 and len(found.arms["default"]) == 1
    assert "1 other run(s) of the same arm and seed left out." in sweep_table(found).caption


def test_a_run_that_has_not_finished_changes_no_mean_and_no_test(tmp_path):
    """Beside a finished seed of its arm, in the place of one, and as the only run of an arm."""
    for arm, count in (("a", 40), ("b", 60)):
        words = [f"labeler={arm}", "seed=0"]
        write_run(
            tmp_path,
            f"1{arm}",
            summary=summary(count / 100, 0.09),
            overrides=words,
            tables=items(right(count)),
        )
    before = sweep(find_runs(tmp_path), [WIN])
    for name, words, state in (
        ("2", ["labeler=a", "seed=0"], "running"),
        ("3", ["labeler=a", "seed=-1"], "running"),
        ("4", ["labeler=c", "seed=0"], "failed"),
    ):
        write_run(tmp_path, name, overrides=words, state=state)
    after = sweep(find_runs(tmp_path, state=None), [WIN])
    assert after.tests == before.tests and after.tests[0]["n"] == 100
    assert after.rows[:2] == before.rows and after.rows[2]["arm"] == "labeler=c"
    assert [run.id for run in after.arms["labeler=a"]] == ["1a", "3"], "what has finished comes first"
    assert after.notes == (
        "1 other run(s) of the same arm and seed left out.",
        "3 run(s) that have not finished have no part in means and tests.",
    )


def test_seeds_that_have_no_part_in_a_number_are_told(tmp_path):
    """Arms share one seed of three, and one run lacks the metric: a mean of what there is, said so."""
    for arm, seeds in (("a", "01"), ("b", "12")):
        for seed in seeds:
            own = {} if (arm, seed) == ("b", "2") else summary(0.6, 0.05)
            words = [f"labeler={arm}", f"+seed={seed}" if arm == "b" else f"seed={seed}"]
            write_run(tmp_path, f"{arm}{seed}", summary=own, overrides=words, tables=items(right(60)))
    found = sweep(find_runs(tmp_path), [WIN])
    assert [row[WIN] for row in found.rows] == [0.6, 0.6] and found.tests[0]["seeds"] == 1
    caption = sweep_table(found).caption
    assert "1 run(s) without win rate have no part in its means." in caption
    assert "Tested on 1 of up to 2 seeds: those that all arms have, or one of each." in caption
    assert "left out" not in caption


def test_without_test_items_arms_are_ranked_and_nothing_is_said_to_be_better(tmp_path):
    write_run(tmp_path, "1", summary={"sft/val_loss": 0.5}, overrides=["sft.lr=1"])
    write_run(tmp_path, "2", summary={"sft/val_loss": 0.4}, overrides=["sft.lr=2"])
    table = sweep_table(sweep(find_runs(tmp_path), ["sft/val_loss"]))
    assert [row.arm for row in table.arms] == ["sft.lr=2", "sft.lr=1"], "lower is better for losses"
    assert not any(row.best or row.tied for row in table.arms) and "not tested" in table.caption
    told = arms_verdict(table)
    assert told.tone == "open" and told.sentence.endswith("whether the difference is real was not tested.")


def test_the_test_knows_which_direction_is_better(tmp_path):
    copy = "eval/copy_rate_policy"
    for name, count in (("a", 70), ("b", 60)):
        scores = items(right(count), copy)
        write_run(tmp_path, name, summary={copy: count / 100}, overrides=[f"rl.lr={name}"], tables=scores)
    found = sweep(find_runs(tmp_path), [copy])
    best, other = found.rows
    assert best["arm"] == "rl.lr=b" and best["best"] and other["p_holm"] == pytest.approx(2 * 0.5**10)
    (test,) = found.tests
    assert (test["first"], test["ahead"]) == ("rl.lr=b", 10)
    assert test["difference"] == pytest.approx(-0.1), "as the metric is, whichever direction is better"
    assert test["difference_ci_low"] < -0.1 < test["difference_ci_high"] < 0


def test_missing_values_rank_last_and_empty_input_is_refused(tmp_path):
    write_run(tmp_path, "1", summary={}, overrides=["rm.lr=1"])
    write_run(tmp_path, "2", summary=summary(0.5, 0.1), overrides=["rm.lr=2"])
    runs = find_runs(tmp_path)
    table = sweep_table(sweep(runs, [WIN]))
    assert [row.arm for row in table.arms] == ["rm.lr=2", "rm.lr=1"]
    assert table.arms[1].cells[0][0] == "–" and not table.arms[1].tied
    with pytest.raises(UserError, match="no run has the metric rm/ece"):
        sweep(runs, ["rm/ece"])
    with pytest.raises(UserError, match="nothing to compare"):
        sweep([], [WIN])


def test_the_terminal_prints_labels_that_look_like_markup(tmp_path):
    write_run(tmp_path, "1", summary=summary(0.7, 0.01), overrides=["labeler.x=[red]"])
    write_run(tmp_path, "2", summary=summary(0.5, 0.01), overrides=["labeler.x=[blue]"])
    (view,) = terminal_arms(sweep_table(sweep(find_runs(tmp_path), [WIN])))
    shown = printed(view)
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
    words, value = cards["Proxy"]
    assert words.startswith("reward, before penalties and KL; 95% interval ") and " " not in value
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
