"""Two runs' difference: settings, lineage, metrics, paired tests by hand, and what is said of them."""

from __future__ import annotations

import re

import pytest
from markupsafe import escape
from synthetic_runs import ATTACK, CONFIG, CREATED, full_run, write_run
from test_page import Page

from rlaif.io.lineage import ArtifactKey, LineageRow
from rlaif.report.diff.ancestry import ancestry
from rlaif.report.diff.difference import difference, sample_pairs
from rlaif.report.diff.page import difference_title, render_difference, terminal_difference
from rlaif.report.diff.settings import Changed, changed
from rlaif.report.web.assets import policy, script
from rlaif.tracking.runs import load_run

WIN, SAME, ROUGE = "eval/win_rate", "label/same_position_rate", "eval/rouge_l_policy"


def test_keys_that_differ_and_keys_that_only_one_has():
    a = {"rl": {"lr": 1, "beta": 0.1}, "x": None, "same": [1, 2], "paths": {"root": "a"}}
    b = {"rl": {"lr": 2, "beta": 0.1}, "x": False, "same": [1, 2], "new": "yes", "paths": {"root": "b"}}
    assert changed(a, b, ("paths",)) == (
        Changed("new", "–", "yes"),
        Changed("rl.lr", "1", "2"),
        Changed("x", "null", "false"),
    )
    assert changed(b, a)[0] == Changed("new", "yes", "–")


def row(kind: str, digest: str, *parents: LineageRow, seed: int = 0, **config: object) -> LineageRow:
    """An artifact as the store records it."""
    keys = tuple(ArtifactKey(parent.kind, parent.digest) for parent in parents)
    return LineageRow(kind, digest, keys, seed, {}, CREATED, 1, 1, False, config, 1, "data")


SFT = row("sft", "5f")
PAIRS = row("sample", "5a", SFT)
ONE, OTHER = row("label", "1a", PAIRS, cot=False), row("label", "1b", PAIRS, cot=True)
RM, RM_OTHER = row("rm", "4a", ONE, SFT, lr=1), row("rm", "4b", OTHER, SFT, lr=1)
RL, RL_OTHER = row("rl", "ba", RM, SFT, beta=0.1), row("rl", "bb", RM_OTHER, SFT, beta=0.2, seed=1)


def test_the_difference_begins_where_all_ancestors_are_shared():
    found = ancestry([RL, RM, SFT, PAIRS, ONE], [RL_OTHER, RM_OTHER, SFT, PAIRS, OTHER])
    assert [one.kind for one in found.shared] == ["sft", "sample"]
    told = [(one.kind, one.first, [key.key for key in one.keys], one.parents) for one in found.differing]
    assert told == [
        ("label", True, ["cot"], ()),
        ("rm", False, [], ("label",)),
        ("rl", False, ["beta", "seed"], ("rm",)),
    ]
    assert found.differing[0].keys == (Changed("cot", "false", "true"),)
    assert found.shares("sft") and not found.shares("rm") and not found.shares("eval")


def test_what_only_one_has_and_what_cannot_be_paired_is_told():
    found = ancestry([RL, RM, SFT, PAIRS, ONE], [row("rl", "d0", ONE, SFT), SFT, PAIRS, ONE])
    told = {one.kind: (one.a, one.b, one.first, one.note, one.parents) for one in found.differing}
    assert told["rm"] == ("4a", "–", True, "only A has it", ())
    assert told["rl"] == ("ba", "d0", False, "", ("label", "rm"))
    several = ancestry([ONE, row("label", "1c", PAIRS), PAIRS], [OTHER, PAIRS])
    assert {one.note for one in several.differing} == {"which of this kind belongs to which is not recorded"}
    assert [(one.a, one.b) for one in several.differing] == [("1a", "–"), ("1c", "–"), ("–", "1b")]


def test_an_older_lineage_says_that_it_does_not_know_why():
    old = [LineageRow("label", digest, (), 0) for digest in ("1a", "1b")]
    (one,) = ancestry(old[:1], old[1:]).differing
    assert one.keys == () and "older version" in one.note


def items(metric: str, values: list[float], prompts: list[str] | None = None) -> list[dict[str, object]]:
    return [
        {"id": f"{metric}{i}", "prompt_id": prompts[i] if prompts else f"p{i}", metric: value}
        for i, value in enumerate(values)
    ]


def two_runs(root, a, b, *, stages=("eval", "eval"), **more):
    """Runs of `{metric: values of items}`, whose summaries are the means; `more`: what `write_run` gets, by run."""
    runs = []
    for place, (stage, own) in enumerate(zip(stages, (a, b), strict=True)):
        rows = [one for metric, values in own.items() for one in items(metric, values)]
        summary = {metric: sum(values) / len(values) for metric, values in own.items()}
        kept = {key: value[place] for key, value in more.items()}
        tables = {"items": rows} | kept.pop("tables", {})
        path = write_run(root, f"2026010{place + 1}-x", stage=stage, summary=summary, tables=tables, **kept)
        runs.append(load_run(path))
    return runs


# Of 20 items, one is won by A alone and nine by B alone: the exact p is 2 * (1 + 10) / 2**10.
LOSING, WINNING = [1.0] * 6 + [0.0] * 14, [0.0] + [1.0] * 14 + [0.0] * 5
P = 2 * (1 + 10) / 2**10


def test_the_paired_test_by_hand_with_holm_over_the_metrics(tmp_path):
    """Two metrics: twice the p of the smaller one, which still decides; the other one does not differ at all."""
    a, b = two_runs(tmp_path, {WIN: LOSING, SAME: [1.0] * 20}, {WIN: WINNING, SAME: [1.0] * 20})
    found = difference(a, b)
    tests = {test.metric: test for test in found.tests.rows}
    win = tests[WIN]
    assert (win.n, win.a_ahead, win.b_ahead, win.difference) == (20, 1, 9, pytest.approx(0.4))
    assert win.p == pytest.approx(P) and win.p_holm == pytest.approx(2 * P) and win.outcome == "B better"
    assert tests[SAME].p_holm == 1 and tests[SAME].outcome == "undecided"
    assert found.verdict.sentence.startswith("B has the better win rate: B less A is +40.0 points (")
    assert "Holm over 2 tested metrics" in found.verdict.sentence and found.verdict.tone == "win"
    assert any("One run of each" in warning for warning in found.verdict.warnings)


def test_a_third_metric_makes_it_undecided_and_nothing_is_called_better(tmp_path):
    more = {SAME: [1.0] * 20, ROUGE: [0.25] * 20}
    found = difference(*two_runs(tmp_path, {WIN: LOSING, **more}, {WIN: WINNING, **more}))
    assert {test.metric: test.p_holm for test in found.tests.rows}[WIN] == pytest.approx(3 * P)
    assert [test.outcome for test in found.tests.rows] == ["undecided"] * 3
    assert "not told apart at 5%" in found.verdict.sentence and found.verdict.tone == "open"
    terminal = " ".join(str(getattr(part, "title", None) or part) for part in terminal_difference(found))
    assert "better" not in found.verdict.sentence and "Paired tests" in terminal


def test_a_difference_has_the_unit_of_its_metric(tmp_path):
    summaries = {
        "a": {WIN: 0.5, "rl/seconds": 282.4, "rl/kl": 1.5},
        "b": {WIN: 0.625, "rl/seconds": 84.2, "rl/kl": 1.0},
    }
    a, b = (load_run(write_run(tmp_path, name, summary=own)) for name, own in summaries.items())
    assert {row.metric: row.difference for row in difference(a, b).metrics} == {
        WIN: "+12.5 points",
        "rl/seconds": "−3 min 18 s",
        "rl/kl": "−0.500",
    }


@pytest.mark.parametrize("swapped", [False, True])
def test_the_difference_is_b_less_a_and_less_can_be_better(tmp_path, swapped):
    values = [{SAME: WINNING}, {SAME: LOSING}][:: -1 if swapped else 1]
    (test,) = difference(*two_runs(tmp_path, *values)).tests.rows
    sign = 1 if swapped else -1
    assert test.difference == pytest.approx(sign * 0.4) and test.low < test.difference < test.high
    assert (test.low > 0) == swapped and (test.high < 0) != swapped
    assert test.better == ("A" if swapped else "B")
    assert (test.a_ahead, test.b_ahead) == ((9, 1) if swapped else (1, 9)), (
        "ahead is better, which is lower here"
    )
    assert test.p_holm == pytest.approx(P)


def test_items_of_one_prompt_stay_together(tmp_path):
    """Ten items of two prompts are two pieces of evidence: all ten are won, and nothing is decided."""
    runs = []
    for name, value in (("a", 0.0), ("b", 1.0)):
        rows = items(WIN, [value] * 10, ["p", "q"] * 5)
        runs.append(
            load_run(write_run(tmp_path, name, stage="eval", summary={WIN: value}, tables={"items": rows}))
        )
    (test,) = difference(*runs).tests.rows
    assert test.b_ahead == 10 and test.mcnemar == pytest.approx(2 / 2**10)
    assert test.p > 0.05 and test.outcome == "undecided"


def test_values_that_do_not_measure_the_same_are_never_better(tmp_path):
    judges = [CONFIG | {"judge": {"name": name}} for name in ("base", "cot")]
    found = difference(*two_runs(tmp_path, {WIN: LOSING}, {WIN: WINNING}, config=judges))
    (test,) = found.tests.rows
    assert test.significant and test.better == "" and test.outcome == "differs"
    assert test.caution == "by different judges"
    assert "neither is called better" in found.verdict.sentence and found.verdict.tone == "open"


def test_what_an_evaluation_was_made_from_tells_whether_the_judges_differ(tmp_path):
    """A batch size of the judge is in the configuration, but changes no verdict."""
    sizes = [CONFIG | {"judge": {"name": "base", "batch_size": size}} for size in (8, 16)]
    lineage = [
        [row("eval", digest, SFT, judge={"name": "base"}, eval=n), SFT] for n, digest in enumerate("ab")
    ]
    (test,) = difference(
        *two_runs(tmp_path, {WIN: LOSING}, {WIN: WINNING}, config=sizes, lineage=lineage)
    ).tests.rows
    assert test.caution == "" and test.better == "B"


def test_other_baselines_labels_and_responses_are_named(tmp_path):
    other = row("sft", "50")
    lineage = [
        [ONE, PAIRS, SFT],
        [row("label", "1d", row("sample", "5d", other)), row("sample", "5d", other), other],
    ]
    values = {WIN: LOSING, "rm/accuracy": LOSING, "rm/gold_accuracy": LOSING, ROUGE: [0.5] * 20}
    found = difference(*two_runs(tmp_path, values, values, lineage=lineage))
    assert {test.metric: test.caution for test in found.tests.rows} == {
        WIN: "over different baselines",
        "rm/accuracy": "on different responses to the same prompts; each against its own labels",
        "rm/gold_accuracy": "on different responses to the same prompts",
        ROUGE: "",
    }


def test_a_shared_artifact_is_no_test_and_too_few_shared_items_are_none(tmp_path):
    lineage = [[RM, ONE, PAIRS, SFT], [row("rm", "4c", ONE, SFT), ONE, PAIRS, SFT]]
    a, b = {SAME: LOSING, "rm/accuracy": LOSING}, {SAME: LOSING, "rm/accuracy": WINNING[:8]}
    found = difference(*two_runs(tmp_path, a, b, lineage=lineage))
    assert [test.metric for test in found.tests.rows] == ["rm/accuracy"] and found.tests.rows[0].n == 8
    assert found.tests.untested == {
        "measured on an artifact that both runs share": ["label same position rate"]
    }
    apart = [{"items": [one | {"id": f"{one['id']}{run}"} for one in items(WIN, LOSING)]} for run in "ab"]
    found = difference(*two_runs(tmp_path / "apart", {WIN: LOSING}, {WIN: LOSING}, tables=apart))
    assert found.tests.rows == () and list(found.tests.untested) == [
        "the runs share less than half of the test items"
    ]
    assert found.verdict.sentence.startswith("No metric of the two runs was tested: the runs share less")


def test_without_items_nothing_is_tested_and_the_numbers_stand_side_by_side(tmp_path):
    a, b = (
        load_run(write_run(tmp_path, name, stage="eval", summary=summary))
        for name, summary in (
            ("a", {WIN: 0.5, f"{WIN}_ci_low": 0.4, f"{WIN}_ci_high": 0.6, "eval/p_value": 0.5, "rl/kl": 1.0}),
            ("b", {WIN: 0.75, "eval/p_value": 0.01, "eval/n": 3, "eval/judge": "cot"}),
        )
    )
    found = difference(a, b)
    told = {one.metric: (one.a, one.a_range, one.b, one.b_range, one.difference) for one in found.metrics}
    assert told == {
        WIN: ("50.0%", "40.0–60.0%", "75.0%", "", "+25.0 points"),
        "eval/p_value": ("0.500", "", "0.010", "", "–"),
    }
    assert found.alone == (["rl/kl"], ["eval/n", "eval/judge"])
    assert found.verdict.sentence.endswith("A and B recorded no single test items.")
    assert found.verdict.tone == "none"


def test_what_else_differs_is_a_caution(tmp_path):
    seeds = [CONFIG | {"seed": seed} for seed in (0, 1)]
    a, b = two_runs(tmp_path, {WIN: LOSING}, {WIN: WINNING}, config=seeds, state=["finished", "running"])
    warnings = " ".join(difference(a, b).verdict.warnings)
    assert "differ in seeds alone" in warnings and "One run of each" not in warnings
    assert "B has not finished: its state is running" in warnings
    other = [CONFIG | {"task": {"path": path}} for path in "ab"]
    a, b = two_runs(tmp_path / "more", {WIN: [1.0]}, {WIN: [1.0]}, config=other, stages=("eval", "pipeline"))
    meta = b.path / "meta.json"
    meta.write_text(meta.read_text().replace('"torch": "', '"torch": "9'))
    warnings = " ".join(difference(a, load_run(b.path)).verdict.warnings)
    assert "A is a run of eval and B one of pipeline" in warnings
    assert "Not the same code or libraries: torch." in warnings and "(task: path)" in warnings


def test_samples_of_the_same_prompts_stand_side_by_side_those_that_differ_first():
    a = [{"id": str(i), "prompt": f"p{i}", "policy": f"a{i}", "outcome": "win"} for i in range(4)]
    b = [{"id": str(i), "prompt": f"p{i}", "policy": f"b{i}", "outcome": "win"} for i in (3, 1, 0)]
    b[0]["outcome"] = "loss"
    b[1]["prompt"] = "another prompt of the same id"
    found = sample_pairs(a, b)
    assert [(one.prompt, one.a["policy"], one.b["policy"]) for one in found] == [
        ("p3", "a3", "b3"),
        ("p0", "a0", "b0"),
    ]


def test_the_page_is_one_file_with_everything_escaped(tmp_path):
    a = load_run(full_run(tmp_path, "20260101-a"))
    b = load_run(full_run(tmp_path, "20260102-b", eval_win_rate=0.7))
    found = difference(a, b)
    text = render_difference(found, tmp_path / "diff.html", title=difference_title(a, b)).read_text()
    page = Page(text)
    assert (
        page.open == [] and page.tags.count("script") == text.count("<script") == 1 and "img" not in page.tags
    )
    assert f"<script>{script()}</script>" in text and f'content="{escape(policy())}"' in text
    assert page.references == [] and not re.search(r"@import|url\(", text)
    assert ATTACK not in text and "&lt;script&gt;" in text
    words = " ".join(" ".join(page.words).split())
    assert "20260101-a (A) and pipeline 20260102-b (B)" in words
    assert "63.0%" in words and "70.0%" in words and "+7.0 points" in words
    assert "The same in both" in words and "Samples of the same prompts" in words
    assert "No metric of the two runs was tested" in words and "is better" not in words
