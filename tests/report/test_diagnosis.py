"""The rules of the diagnosis on invented arms: each fault is found in its part, and only there."""

from __future__ import annotations

from html import unescape
from statistics import NormalDist, fmean, stdev

import numpy as np
import pytest
from synthetic_runs import write_run

from rlaif.report.markdown import comparison_markdown
from rlaif.report.page import render_report
from rlaif.study.diagnosis import PARTS, ROLES, control_row, diagnose
from rlaif.study.diagnosis_table import diagnosis_table, diagnosis_verdict, terminal_diagnosis
from rlaif.tracking.runs import load_run

N = 120
SUMMARY = {
    "eval/eos_rate_baseline": 0.95,
    "eval/n": N,
    "rm/gold_accuracy": 0.7,
    "rm/gold_accuracy_ci_low": 0.6,
    "rm/gold_accuracy_ci_high": 0.8,
    "eval/reward_gain": 0.5,
    "eval/reward_gain_ci_low": 0.4,
    "eval/reward_gain_ci_high": 0.6,
    "eval/win_rate": 0.65,
    "eval/win_rate_ci_low": 0.58,
    "eval/win_rate_ci_high": 0.72,
}


def _arm(gain=0.0, *, longer=0.0, win=0.5, elsewhere=0.1, seed=0, noise=0.02) -> list[dict]:
    """Rows whose ROUGE-L differs by much from prompt to prompt, and by little between the two policies."""
    rng = np.random.default_rng(seed)
    base = np.random.default_rng(9).uniform(0.1, 0.6, N)
    rows = []
    for i in range(N):
        rows.append(
            {
                "id": f"x{i}",
                "prompt_id": f"x{i}",
                "eval/rouge_l_policy": base[i] + gain + noise * rng.normal(),
                "eval/rouge_l_baseline": base[i],
                "eval/rouge_l_elsewhere": base[i] - 0.35 + elsewhere + 0.1 * rng.normal(),
                "eval/length_policy": 12 + longer + rng.normal(),
                "eval/length_baseline": 12,
                "eval/win_rate": float(rng.uniform() < win),
            }
        )
    return rows


HEALTHY = {
    "real": _arm(0.02, longer=3, win=0.75, seed=1),
    "oracle": _arm(0.03, seed=2),
    "random": _arm(0.0, seed=3),
    "length": _arm(-0.02, longer=15, win=0.5, seed=4),
}


def _rows(summary=None, **arms) -> list[dict]:
    own = {"real": SUMMARY | (summary or {})}
    items = {role: [arms.get(role, HEALTHY[role])] for role in ROLES}
    return [check.row() for check in diagnose({**dict.fromkeys(ROLES, {}), **own}, items)]


def _states(rows) -> dict[str, str]:
    return {row["question"]: row["state"] for row in rows}


def test_a_healthy_path_is_cleared() -> None:
    rows = _rows()
    assert {row["state"] for row in rows} == {"yes"} and [row["part"] for row in rows] == sorted(
        (row["part"] for row in rows), key=PARTS.index
    )
    verdict = diagnosis_verdict(rows)
    assert verdict.tone == "win" and verdict.sentence.startswith("None of the three")


FAULTS = [
    # (fault, the question that it answers with no or leaves open, state, part to blame)
    ({"summary": {"eval/eos_rate_baseline": 0.2}}, "Do its responses end by themselves?", "no", "SFT"),
    ({"summary": {"eval/eos_rate_baseline": 0.52}}, "Do its responses end by themselves?", "open", "SFT"),
    ({"real": _arm(0.02, win=0.75, elsewhere=0.6)}, "Do they answer their own prompt?", "no", "SFT"),
    ({"real": _arm(0.02, win=0.75, elsewhere=0.35)}, "Do they answer their own prompt?", "open", "SFT"),
    ({"oracle": _arm(-0.03)}, "Does it raise a sound reward?", "no", "RL"),
    ({"oracle": _arm(0.0, noise=0.0)}, "Does it raise a sound reward?", "open", "RL"),
    ({"random": _arm(-0.03)}, "Does it stand still if there is nothing to learn?", "no", "RL"),
    ({"random": _arm(0.03)}, "Does it stand still if there is nothing to learn?", "no", "RL"),
    (
        {"summary": {"rm/gold_accuracy_ci_low": 0.3, "rm/gold_accuracy_ci_high": 0.45}},
        "Does the reward model know the better response?",
        "no",
        "reward",
    ),
    (
        {"summary": {"eval/reward_gain_ci_low": -0.1}},
        "Does RL raise it?",
        "open",
        "reward",
    ),
    ({"real": _arm(-0.03, win=0.75)}, "Does the held-out measure follow?", "no", "reward"),
    (
        {"length": _arm(longer=15, win=0.98, seed=4)},
        "Is its gain more than length?",
        "no",
        "reward",
    ),
    (
        {"length": _arm(longer=15, win=0.75, seed=4)},
        "Is its gain more than length?",
        "open",
        "reward",
    ),
    (
        {"summary": {"eval/win_rate_ci_low": 0.49}},
        "Is its gain more than length?",
        "open",
        "reward",
    ),
]


@pytest.mark.parametrize(("fault", "question", "state", "part"), FAULTS)
def test_a_fault_is_found_in_its_part_alone(fault, question, state, part) -> None:
    rows = _rows(**fault)
    assert {name: s for name, s in _states(rows).items() if s != "yes"} == {question: state}
    verdict = diagnosis_verdict(rows)
    assert verdict.tone == ("loss" if state == "no" else "open")
    lead = {"no": f"It is the {part}.", "open": f"Nothing is surely wrong; look at the {part} first."}[state]
    assert verdict.sentence.startswith(lead) and question in verdict.sentence


def test_without_gold_pairs_of_its_own_a_reward_model_is_as_good_as_its_labels() -> None:
    bounds = {"_ci_low": 0.6, "_ci_high": 0.8, "": 0.7}
    names = ("label/alignment", "rm/accuracy")
    known = {"rm/gold_accuracy": None} | {f"{n}{end}": value for n in names for end, value in bounds.items()}
    labeler, learnt = "Does the labeler know the better response?", "Has the reward model learnt its labels?"
    states = _states(_rows(known))
    assert states[labeler] == states[learnt] == "yes" and len(states) == 9
    wrong = _states(_rows(known | {"label/alignment_ci_high": 0.4, "label/alignment_ci_low": 0.3}))
    assert (wrong[labeler], wrong[learnt]) == ("no", "yes")
    unknown = _states(_rows({"rm/gold_accuracy": None}))  # direct RLAIF has neither
    assert (unknown[labeler], unknown[learnt]) == ("open", "open")


FAILED = "The control failed, so nothing is concluded from it."
MORE, STILL = "Is its gain more than length?", "Does it stand still if there is nothing to learn?"
CONTROLS = [
    # (what the control did, the question, its state, what is shown instead)
    (
        {"length": _arm(longer=-2, win=0.46, seed=4)},
        MORE,
        "failed",
        "\u22122",
    ),  # the published run's: shorter
    ({"length": _arm(longer=0, win=0.46, seed=4)}, MORE, "failed", "length arm: length"),
    ({"random": _arm(longer=-3.5, seed=3)}, STILL, "failed", "\u22123.5"),
    ({"random": _arm(longer=3.5, seed=3)}, STILL, "failed", "random arm: length"),
    ({"kl": 0.76}, STILL, "failed", "KL from the reference"),
    ({"kl": 0.4}, STILL, "yes", ""),
    (
        {"random": _arm(longer=0.6, seed=3)},
        STILL,
        "yes",
        "",
    ),  # surely, and surely within a tenth of 12 tokens
]


@pytest.mark.parametrize(("did", "question", "state", "shown"), CONTROLS)
def test_nothing_is_concluded_from_a_control_that_did_not_do_its_work(did, question, state, shown) -> None:
    summaries = dict.fromkeys(ROLES, {}) | {"real": SUMMARY, "random": {"rl/kl": did.pop("kl", 0.1)}}
    items = {role: [did.get(role, HEALTHY[role])] for role in ROLES}
    rows = [check.row() for check in diagnose(summaries, items)]
    others = {name: s for name, s in _states(rows).items() if s != "yes"}
    assert others == ({question: state} if state != "yes" else {})
    table = diagnosis_table(rows)
    assert table.verdict.sentence.startswith(
        "None of the three" if state == "yes" else f"{FAILED} {question}"
    )
    assert table.verdict.tone == ("win" if state == "yes" else "open") and shown in table.verdict.sentence
    answers = [row[5] for row in table.rows if row[1] == question]
    assert answers == ["the control failed" if state == "failed" else "yes"]


def test_a_control_of_too_few_prompts_is_undecided() -> None:
    """Not significantly moved is not "stayed"."""
    rows = _rows(
        random=[row | {"eval/length_policy": 12 + 9 * (-1) ** i} for i, row in enumerate(HEALTHY["random"])]
    )
    assert _states(rows)[STILL] == "open"
    assert diagnosis_verdict(rows).sentence.startswith("Nothing is surely wrong; look at the RL first.")
    rouge = [
        row | {"eval/rouge_l_policy": 0.4 * (i % 2), "eval/rouge_l_baseline": 0.2}
        for i, row in enumerate(HEALTHY["random"])
    ]
    assert _states(_rows(random=rouge))[STILL] == "open"


def test_what_is_wrong_without_the_control_is_said_before_it() -> None:
    rows = _rows(length=_arm(longer=-2, seed=4), real=_arm(-0.03, longer=3, win=0.75))
    sentence = diagnosis_verdict(rows).sentence
    assert (
        sentence.startswith("It is the reward. Does the held-out measure follow? No") and FAILED in sentence
    )
    rows = _rows(random=_arm(longer=-3.5, seed=3), real=_arm(-0.03, longer=3, win=0.75))
    assert diagnosis_verdict(rows).sentence.startswith(FAILED), "RL stands before the reward"


def test_a_gain_with_a_few_more_tokens_is_not_one_without() -> None:
    """The real arm's +0.5 tokens are no proof of none: only the length control can tell."""
    wide = [row | {"eval/length_policy": 12.5 + 12 * (-1) ** i} for i, row in enumerate(HEALTHY["real"])]
    assert _states(_rows(real=wide, length=_arm(longer=-2, win=0.4, seed=4)))[MORE] == "failed"
    assert _states(_rows(real=wide))[MORE] == "yes"


@pytest.mark.parametrize(
    ("kind", "longer", "kl", "state"),
    [
        ("length", 6.9, 2.0, "yes"),
        ("length", 0.0, 2.0, "failed"),
        ("length", -2.0, 2.0, "failed"),
        ("random", 0.0, 0.1, "yes"),
        ("random", -2.0, 0.1, "failed"),
        ("random", 0.0, 0.9, "failed"),
    ],
)
def test_a_comparison_says_what_its_control_did(kind, longer, kl, state, tmp_path) -> None:
    row = control_row("longer", kind, {"rl/kl": kl}, [_arm(longer=longer, seed=6)])
    assert (row["arm"], row["state"]) == ("longer", state)
    arms = [{"arm": name, "eval/win_rate": 0.6} for name in ("likelihood", "longer")]
    duel = {
        "first": "likelihood",
        "second": "longer",
        "win_rate": 0.7,
        "ci_low": 0.6,
        "ci_high": 0.8,
        "p": 0.001,
    }
    tables = {"arms": arms, "verdicts": [duel], "controls": [row]}
    record = load_run(write_run(tmp_path, "d", stage="compare", summary={"a": 1}, tables=tables))
    page = unescape(render_report([record], tmp_path / "page.html", title="t").read_text(encoding="utf-8"))
    top = page[: page.index("<h2>")]
    assert ("The control failed: longer is a control, but" in top) is (state == "failed")
    assert ("likelihood wins" in top) is (state == "yes")
    assert f"Control longer: {row['sentence']}." in page and row["sentence"] in comparison_markdown(record)


def test_no_longer_responses_cannot_owe_their_gain_to_length() -> None:
    rows = _rows(real=_arm(0.02, longer=-2, win=0.75, seed=1), length=_arm(longer=15, win=0.98, seed=4))
    assert _states(rows)["Is its gain more than length?"] == "yes"


def test_what_is_surely_wrong_comes_first_then_what_stands_lowest() -> None:
    rows = _rows({"eval/eos_rate_baseline": 0.52}, oracle=_arm(-0.03), real=_arm(-0.03, win=0.75))
    assert diagnosis_verdict(rows).sentence.startswith("It is the RL.")
    rows = _rows({"eval/eos_rate_baseline": 0.1}, oracle=_arm(-0.03))
    assert diagnosis_verdict(rows).sentence.startswith("It is the SFT.")


def test_intervals_are_paired_over_prompts() -> None:
    (row,) = [r for r in _rows() if r["question"] == "Does it raise a sound reward?"]
    gains = [r["eval/rouge_l_policy"] - r["eval/rouge_l_baseline"] for r in HEALTHY["oracle"]]
    half = NormalDist().inv_cdf(0.975) * stdev(gains) / N**0.5
    assert row["value"] == pytest.approx(fmean(gains)) and row["n"] == N
    assert row["ci_low"] == pytest.approx(fmean(gains) - half, abs=0.1 * half)
    assert row["ci_high"] == pytest.approx(fmean(gains) + half, abs=0.1 * half)
    # Mutation: without pairing the spread between prompts would drown the gain.
    policy = [r["eval/rouge_l_policy"] for r in HEALTHY["oracle"]]
    assert 1.96 * (2 * stdev(policy) ** 2 / N) ** 0.5 > fmean(gains)


def test_seeds_widen_the_interval() -> None:
    """Two seeds that disagree: one more source of variance, so that the gain is no longer sure."""
    items = {role: [HEALTHY[role]] * 2 for role in ROLES}
    items["oracle"] = [_arm(0.06, seed=2), _arm(0.001, seed=5)]
    checks = diagnose(dict.fromkeys(ROLES, SUMMARY), items)
    states = _states([check.row() for check in checks])
    assert states["Does it raise a sound reward?"] == "open"
    assert states["Do they answer their own prompt?"] == "yes"


def test_without_references_or_a_judge_nothing_is_claimed() -> None:
    bare = [{"id": "x", "prompt_id": "x", "eval/length_policy": 3, "eval/length_baseline": 3}]
    checks = diagnose(dict.fromkeys(ROLES, {}), dict.fromkeys(ROLES, [bare]))
    assert {check.state for check in checks} == {"open"}
    table = diagnosis_table([check.row() for check in checks])
    assert {row[3] for row in table.rows} == {"not measured"} and {row[5] for row in table.rows} == {
        "not shown"
    }
    assert diagnosis_table([]) is None


def test_the_page_the_markdown_and_the_terminal_show_it(tmp_path) -> None:
    rows = _rows(oracle=_arm(-0.03))
    arms = [{"arm": role, "eval/win_rate": 0.6} for role in ROLES]
    path = write_run(
        tmp_path, "d", stage="compare", summary={"a": 1}, tables={"diagnosis": rows, "arms": arms}
    )
    record = load_run(path)
    page = render_report([record], tmp_path / "page.html", title="t").read_text(encoding="utf-8")
    assert "It is the RL." in page[: page.index("<h2>")]
    assert "Is it the SFT, the RL or the reward?" in page and page.count("Does it raise a sound reward") >= 2
    text = comparison_markdown(record)
    assert "## Diagnosis" in text and "It is the RL." in text and "| oracle" in text
    view = terminal_diagnosis(diagnosis_table(rows))
    assert view.row_count == len(rows) and "It is the RL." in str(view.caption)
