"""What a claim makes of its arms' items, meetings and prices, by hand; and the ledger's page from run directories."""

from __future__ import annotations

import math
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from synthetic_runs import ATTACK, write_run

from rlaif.errors import UserError
from rlaif.options.read import read
from rlaif.report.ledger.entries import ledger_entries
from rlaif.report.ledger.page import headline, ledger_markdown, ledger_page
from rlaif.study.claims.claim import Claim, check_arms
from rlaif.study.claims.measure import CLAIM, claim_row, claim_summary, unmet_row
from rlaif.study.claims.scatter import known_scatter, scatter_rows
from rlaif.tracking.runs import find_runs

WORDS = {"id": "C5", "title": "a title", "hypothesis": "a hypothesis", "paper": "+1.4 points"}
ALIGNMENT = {"metric": "label/alignment", "weights": {"cot": 1, "base": -1}}


def _claim(effect: dict[str, Any], **changes: Any) -> Claim:
    return read(Claim, WORDS | {"effect": effect, "relation": "greater", "smallest": 0.02} | changes, "claim")


def _items(values: list[float], name: str = "label/alignment", **more: Any) -> list[dict[str, Any]]:
    return [{"id": f"i{i}", "prompt_id": f"p{i}", name: value, **more} for i, value in enumerate(values)]


def test_a_difference_of_arms_is_paired_by_item() -> None:
    """Of 40 pairs 24 are right under both, 10 under cot alone, 1 under base alone: +9/40."""
    cot, base = [1.0] * 24 + [1.0] * 10 + [0.0] * 6, [1.0] * 24 + [0.0] * 10 + [1.0] + [0.0] * 5
    row = claim_row(_claim(ALIGNMENT), {"cot": [_items(cot)], "base": [_items(base)]}, {}, [])
    assert row["effect"] == pytest.approx(9 / 40) and row["n"] == 40 and row["seeds"] == 1
    assert row["ci_low"] > 0 and row["verdict"] == "supported" and row["unit"] == "points"
    assert row["measured"] == "labeler alignment: cot minus base"
    assert row["sentence"].startswith(
        "Supported: labeler alignment: cot minus base is +22.5 points (95% CI +"
    )
    swapped = claim_row(_claim(ALIGNMENT), {"base": [_items(cot)], "cot": [_items(base)]}, {}, [])
    assert swapped["effect"] == pytest.approx(-9 / 40) and swapped["verdict"] == "contradicted"


def test_what_a_labeler_abstains_from_decides_nothing() -> None:
    """Of 60 pairs base gets half right. cot is right about all that it reads: of 56 its lead stands if it is wrong
    about the rest, of 31 it does not.
    """
    asked = [{**row, "label/alignment_worst": row["label/alignment"]} for row in _items([1.0, 0.0] * 30)]

    def cot(read: int) -> list[dict[str, Any]]:
        right = [{**row, "label/alignment": 1.0} for row in asked[:read]]
        return right + [{key: row[key] for key in row if key != "label/alignment"} for row in asked[read:]]

    few, many = (claim_row(_claim(ALIGNMENT), {"base": [asked], "cot": [cot(n)]}, {}, []) for n in (31, 56))
    assert few["effect"] == pytest.approx(15 / 31) and few["n"] == 31
    assert few["verdict"] == "undecided" and many["verdict"] == "supported"
    assert few["sentence"].endswith(
        "It would be supported, were it not for the verdicts that could not be read."
    )
    back = _claim({"metric": "label/alignment", "weights": {"base": 1, "cot": -1}})
    rows = {"base": [asked], "cot": [cot(31)]}
    assert claim_row(back, rows, {}, [])["verdict"] == "undecided", "nor against it"


def test_each_arms_unread_pairs_are_counted_to_the_same_side_of_the_effect() -> None:
    """Read by both: 44 pairs, cot alone right on 14. Against it: its own 8 wrong, where base is right, and base's 8
    right, where cot is: (14 - 8) / 60. Both wrong would be 14 / 60, which is above 0.
    """
    cot, base = [1.0] * 22 + [0.0] * 30 + [1.0] * 8, [1.0] * 8 + [0.0] * 52
    asked = [_items(values, "label/alignment_worst") for values in (cot, base)]
    read = [_items(cot)[8:], _items(base)[:52]]
    items = {name: [[*own, *all_]] for name, own, all_ in zip(("cot", "base"), read, asked, strict=True)}
    row = claim_row(_claim(ALIGNMENT), items, {}, [])
    assert row["effect"] == pytest.approx(14 / 44) and row["ci_low"] > 0 and row["verdict"] == "undecided"


def test_meetings_that_a_judge_abstains_from_decide_nothing() -> None:
    def met(read: int) -> list[dict[str, Any]]:
        return [
            {"id": f"i{i}", "prompt_id": f"p{i}", "first": first, "second": second, "value": 1.0}
            for first, second in (("x", "y"), ("x", "SFT"), ("y", "SFT"))
            for i in range(40)
            if second == "SFT" or i < read
        ]

    rows = [claim_row(_claim({"meeting": ["x", "y"]}), {}, {}, [met(read)]) for read in (40, 20)]
    assert [row["verdict"] for row in rows] == ["supported", "undecided"] and rows[1]["n"] == 20
    other = claim_row(_claim({"meeting": ["y", "x"]}), {}, {}, [met(20)])
    assert other["verdict"] == "undecided"


def test_four_arms_with_seeds_add_up() -> None:
    weights = {"people_all": 1, "people_few": -1, "ai_all": -1, "ai_few": 1}
    claim = _claim({"metric": "rm/gold_accuracy", "weights": weights})
    arms = {
        "people_all": [1, 1, 1, 0],
        "people_few": [1, 0, 0, 0],
        "ai_all": [1, 1, 0, 0],
        "ai_few": [1, 0, 0, 0],
    }
    items = {arm: [_items(own, "rm/gold_accuracy")] * 2 for arm, own in arms.items()}
    row = claim_row(claim, items, {}, [])
    assert row["effect"] == pytest.approx((3 - 1 - (2 - 1)) / 4) and row["seeds"] == 2
    assert row["measured"] == "RM gold accuracy: people_all minus people_few minus ai_all plus ai_few"


def test_a_meeting_is_read_from_either_side() -> None:
    def met(first: str, second: str, values: list[float]) -> list[dict[str, Any]]:
        return [
            {"id": f"i{i}", "prompt_id": f"p{i}", "first": first, "second": second, "value": value}
            for i, value in enumerate(values)
        ]

    rows = [*met("x", "y", [1, 1, 0.5, 1, 1, 1]), *met("x", "SFT", [0] * 6), *met("y", "SFT", [1] * 6)]
    there = claim_row(_claim({"meeting": ["x", "y"]}), {}, {}, [rows])
    back = claim_row(_claim({"meeting": ["y", "x"]}), {}, {}, [rows])
    assert there["effect"] == pytest.approx(5.5 / 6 - 0.5) == -back["effect"]
    assert there["measured"] == "win rate of x over y, minus 50%" and there["unit"] == "points"


def test_a_fitted_metric_goes_by_its_interval() -> None:
    claim = _claim({"metric": "eval/win_rate_lc", "weights": {"rlaif": 1}, "against": 0.5})
    summary = {"eval/win_rate_lc": 0.6, "eval/win_rate_lc_ci_low": 0.52, "eval/win_rate_lc_ci_high": 0.68}
    row = claim_row(claim, {"rlaif": [[]] * 3}, {"rlaif": summary | {"eval/n": 90}}, [])
    assert (row["effect"], row["ci_low"], row["ci_high"]) == pytest.approx((0.1, 0.02, 0.18))
    assert row["verdict"] == "supported" and (row["n"], row["seeds"]) == (90, 3)
    assert row["measured"].endswith(": rlaif minus 50.0%")
    assert row["p_value"] == pytest.approx(2 * stats.norm.sf(0.1 / (0.08 / 1.959964)), rel=1e-4)


def test_a_price_is_counted_in_tokens() -> None:
    """1,000 and 3,000 tokens read, 100 written each: 0.036 and 0.096 dollars, on average a tenth of 0.66."""
    cost = {"arm": "ai", "usd_in": 30.0, "usd_out": 60.0, "person": 1.32}
    claim = _claim({"cost": cost, "against": 10}, smallest=0)
    rows = [
        {"id": f"i{i}", "prompt_id": f"p{i}", "tokens_in": read_, "tokens_out": 100}
        for i, read_ in enumerate([1000, 3000] * 30)
    ]
    row = claim_row(claim, {"ai": [rows]}, {}, [])
    assert (
        row["effect"] == pytest.approx(20 - 10) and row["verdict"] == "supported" and row["unit"] == "signed"
    )
    half = stats.t.ppf(0.975, 59) * 0.03 * math.sqrt(60 / 59) / math.sqrt(60)
    assert row["ci_high"] - row["ci_low"] == pytest.approx(1.32 / (0.066 - half) - 1.32 / (0.066 + half))
    dearer = claim_row(
        _claim({"cost": cost | {"person": 0.33}, "against": 10}, smallest=0), {"ai": [rows]}, {}, []
    )
    assert dearer["effect"] == pytest.approx(5 - 10) and dearer["verdict"] == "contradicted"


def test_arms_without_the_metric_decide_nothing() -> None:
    row = claim_row(
        _claim(ALIGNMENT), {"cot": [_items([1.0, 0.0])], "base": [[]]}, {"cot": {}, "base": {}}, []
    )
    assert (
        row["verdict"] == "undecided"
        and "nothing was measured of labeler alignment: cot minus base" in row["sentence"]
    )
    assert set(claim_summary(row)) == {"claim/id", "claim/verdict", "claim/sentence", "claim/smallest"}


def test_an_undecided_claim_says_what_could_have_been_found() -> None:
    values = [1.0, 0.0] * 20
    row = claim_row(_claim(ALIGNMENT), {"cot": [_items(values)], "base": [_items(values[::-1])]}, {}, [])
    assert row["verdict"] == "undecided" and row["detectable"] > 0.2
    assert (
        row["sentence"].endswith("points four times in five.")
        and "would have shown an effect of" in row["sentence"]
    )
    same = claim_row(
        _claim(ALIGNMENT, relation="equal"), {"cot": [_items(values)], "base": [_items(values[::-1])]}, {}, []
    )
    assert "would have shown equality within" in same["sentence"]


@pytest.mark.parametrize(
    "effect, words",
    [
        ({"metric": "label/alignment"}, "claim.effect needs metric and weights, or meeting, or cost"),
        ({"weights": {"a": 1}}, "claim.effect needs metric and weights, or meeting, or cost"),
        (ALIGNMENT | {"meeting": ["a", "b"]}, "claim.effect needs metric and weights, or meeting, or cost"),
        (ALIGNMENT | {"wieghts": 1}, "claim.effect.wieghts"),
    ],
)
def test_an_effect_is_of_one_kind(effect: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_arms(_claim(effect), ["cot", "base"])


def test_a_claim_is_about_the_experiments_arms() -> None:
    with pytest.raises(UserError, match="claim.effect: base is not an arm: write one of cot"):
        check_arms(_claim(ALIGNMENT), ["cot"])


def _run(root: Path, name: str, row: dict[str, Any]) -> None:
    write_run(root, name, stage="compare", summary=claim_summary(row), tables={CLAIM: [row]})


def test_the_ledger_has_the_latest_run_of_each_claim(tmp_path: Path) -> None:
    wins, losses = [1.0] * 40, [0.0] * 40
    supported = claim_row(_claim(ALIGNMENT), {"cot": [_items(wins)], "base": [_items(losses)]}, {}, [])
    undecided = claim_row(_claim(ALIGNMENT), {"cot": [_items(wins)], "base": [_items(wins)]}, {}, [])
    other = _claim(ALIGNMENT, id="C10", title=ATTACK, relation="equal")
    _run(tmp_path, "20260101T000000Z-a", undecided)
    _run(tmp_path, "20260101T000001Z-b", unmet_row(other, ["a larger labeler (ledger.large_labeler)"]))
    _run(tmp_path, "20260101T000002Z-c", supported)
    entries = ledger_entries(find_runs(tmp_path))
    assert [(entry.id, entry.verdict) for entry in entries] == [("C5", "supported"), ("C10", "undecided")]
    assert headline(entries) == (
        "2 claims: 1 supported, 0 contradicted, 1 undecided. "
        "1 of 1 verdicts holds after Holm's correction over this page."
    )
    page, text = ledger_page(entries), ledger_markdown(entries)
    assert ATTACK not in page and ATTACK in unescape(page)
    for entry in entries:
        assert entry.sentence in unescape(page)
    assert "| **supported** |" in text and "needs a larger labeler (ledger.large_labeler)" in text


def test_a_trial_or_an_unmet_run_takes_no_results_place(tmp_path: Path) -> None:
    row = claim_row(_claim(ALIGNMENT), {"cot": [_items([1.0] * 40)], "base": [_items([0.0] * 40)]}, {}, [])
    unmet, tiny = unmet_row(_claim(ALIGNMENT), ["a labeler"]), {"models": {"tiny": True}}
    for index, (own, config) in enumerate([(unmet, {}), (row, tiny), (row, {}), (unmet, {}), (row, tiny)]):
        write_run(tmp_path, f"r{index}", stage="compare", config=config, tables={CLAIM: [own]})
    runs = find_runs(tmp_path)
    found = [ledger_entries(runs[:count])[0] for count in range(1, 6)]
    assert [entry.verdict for entry in found] == ["undecided", "undecided", *["supported"] * 3]
    assert not any("random" in entry.size for entry in found)
    assert "random" in ledger_entries(runs[1:2])[0].size


def test_holm_is_over_the_decided_claims_of_the_page(tmp_path: Path) -> None:
    """Two verdicts with p of 0.03: each holds alone, neither over the page."""
    row = claim_row(_claim(ALIGNMENT), {"cot": [_items([1.0] * 9)], "base": [_items([0.0] * 9)]}, {}, [])
    for index in (1, 2):
        _run(tmp_path, f"20260101T00000{index}Z-x", row | {"id": f"C{index}", "p_value": 0.03})
    entries = ledger_entries(find_runs(tmp_path))
    assert [entry.p_holm for entry in entries] == ["p = 0.060"] * 2 and not any(
        entry.firm for entry in entries
    )


def test_scatter_is_kept_for_pairs_of_arms_and_against_chance() -> None:
    items = {
        "x": [_items([1.0, 0.0, 1.0, 1.0], "eval/win_rate")],
        "y": [_items([0.0, 0.0, 1.0, 1.0], "eval/win_rate")],
    }
    rows = scatter_rows(items, ["eval/win_rate", "rm/gold_accuracy"])
    assert [(row["kind"], row["metric"]) for row in rows] == [
        ("arms", "eval/win_rate"),
        ("alone", "eval/win_rate"),
        ("alone", "eval/win_rate"),
    ]
    assert rows[0]["items"] == pytest.approx(0.25) and rows[1]["items"] == pytest.approx(0.25)
    assert math.isnan(rows[0]["seeds"])


def test_what_arms_or_seeds_share_has_no_scatter() -> None:
    """Two arms with one labeler, and seeds of RL, which no label depends on."""
    labels = [_items([1.0, 0.0, 1.0, 0.0], "label/alignment_worst")] * 2
    rows = scatter_rows({"x": labels, "y": labels}, ["label/alignment"])
    assert [row["kind"] for row in rows] == ["alone", "alone"]
    assert all(row["seed_freedom"] == 0 and row["items"] == pytest.approx(1 / 3) for row in rows)


def test_scatter_of_finished_runs_is_pooled(tmp_path: Path) -> None:
    """A comparison's table, and the items of a single path, which compare a policy with its baseline."""
    items = {
        name: [_items(own, "eval/win_rate") for own in seeds]
        for name, seeds in {"x": ([1, 0, 1, 1], [1, 1, 1, 0]), "y": ([0, 0, 1, 1], [0, 0, 0, 1])}.items()
    }
    write_run(tmp_path, "a", stage="compare", tables={"scatter": scatter_rows(items, ["eval/win_rate"])})
    write_run(tmp_path, "again", stage="compare", tables={"scatter": scatter_rows(items, ["eval/win_rate"])})
    write_run(tmp_path, "b", stage="eval", tables={"items": _items([1, 0, 0, 1], "eval/win_rate")})
    found = known_scatter(find_runs(tmp_path), "eval/win_rate")
    assert {kind: count for kind, (_, count) in found.items()} == {"arms": 1, "alone": 3}
    assert found["alone"][0].seed_freedom == 2 and found["arms"][0].seed_freedom == 1
    assert known_scatter(find_runs(tmp_path), "rm/gold_accuracy") == {}


def test_a_ledgers_command_runs_that_claim_alone(tmp_path: Path) -> None:
    row = unmet_row(_claim(ALIGNMENT), ["a labeler"])
    words = [
        "experiments=c05_cot",
        "sweeps=ledger",
        "paths.root=/a/b",
        "labeler.readout={kind: text}",
        "demo.size=small",
    ]
    tables = {CLAIM: [row]}
    write_run(tmp_path, "x", stage="compare", summary={}, overrides=[*words, "size=small"], tables=tables)
    (entry,) = ledger_entries(find_runs(tmp_path))
    assert entry.command == (
        "python train.py experiments=c05_cot 'labeler.readout={kind: text}' demo.size=small"
    )
