"""The labeler's report and the trust gate, as stages write and heed them."""

from __future__ import annotations

from html import unescape
from statistics import fmean
from types import SimpleNamespace

import pytest

from rlaif.errors import UserError
from rlaif.io import read_jsonl
from rlaif.stages.common.labeling import trust_gate
from rlaif.tracking.glossary import unknown

# Constructed pairs alone: easy enough for a rule, and few.
EASY = "people.simulated=never"
GUESSING = ["labeler=scripted", "labeler.scripted.rule=hash", EASY]
BIASED = [*GUESSING, "labeler.scripted.position_bias=1.0"]


def _page(root, record) -> str:
    return (root / "reports" / f"{record.stage}-{record.id}.html").read_text(encoding="utf-8")


def _said(record, who: str) -> list[str]:
    """Texts of the alerts `labeler at chance`, `labeler below chance` or `judge at chance`."""
    return [r["text"] for r in record.alerts if r["title"].startswith(who) and r["title"].endswith("chance")]


def test_the_label_report_is_in_summary_tables_and_page(run, pipeline, warm_root) -> None:
    record = run("stage=label", *BIASED)
    summary, bins = record.summary, record.table("label_confidence")
    assert bins and sum(row["n"] for row in bins) == summary["label/alignment_n"]
    for row in bins:
        for column in ("n", "alignment", "flip_n", "flip_rate", "flip_rate_ci_high"):
            assert summary.get(f"label/confidence_{row['bin']}_{column}") == row[column]
    pairs = summary["label/n"] + summary["label/alignment_constructed_n"]
    assert sum(row["flip_n"] for row in bins) == pairs
    flips = sum(row["flip_n"] * row["flip_rate"] for row in bins) / pairs
    assert flips == pytest.approx(summary["label/same_position_rate"]) and flips > 0.1
    for row in record.table("label_length"):
        assert summary[f"label/length_{row['bin']}_alignment"] == row["alignment"]
    gap = summary["label/longer_rate"] - summary["label/gold_longer_rate"]
    assert summary["label/verbosity_gap"] == pytest.approx(gap)
    assert unknown(summary) == []
    page = _page(warm_root, record)
    for words in (
        "By confidence",
        "By length of the preferred response",
        "verbosity gap",
        'aria-label="Reliability"',
    ):
        assert words in page, words


def test_flips_are_what_the_judgements_say(run, pipeline, warm_root) -> None:
    """From the raw judgements, by pair: does the verdict of ab differ from the verdict of ba?"""
    record = run("stage=label", *BIASED)
    folder = warm_root / "artifacts" / f"label-{record.lineage[0].digest}"
    verdicts: dict[str, dict[str, float]] = {}
    for name in ("judgements.jsonl", "gold_judgements.jsonl"):
        for row in read_jsonl(folder / name):
            verdicts.setdefault(row["pair_id"], {})[row["order"]] = row["p_a"]
    flipped = [float((p["ab"] > 0.5) != (p["ba"] > 0.5)) for p in verdicts.values()]
    bins = record.table("label_confidence")
    assert sum(row["flip_n"] * row["flip_rate"] for row in bins) == pytest.approx(sum(flipped))
    assert 0 < fmean(flipped) < 1


@pytest.mark.parametrize("stage", ["rm", "eval"])
def test_a_labeler_that_may_be_guessing_is_warned_of_everywhere(stage, run, pipeline, warm_root) -> None:
    """In the run that trains on its labels, and again in one that finds everything there."""
    judge = ["judge=scripted", "judge.scripted.rule=hash"] if stage == "eval" else []
    for record in (run(f"stage={stage}", *GUESSING, *judge), run(f"stage={stage}", *GUESSING, *judge)):
        summary = record.summary
        assert summary["label/alignment_ci_low"] < 0.5
        (said,) = _said(record, "labeler")
        assert said == summary["label/warning"]
        assert f"{summary['label/alignment_ci_low']:.3f} to" in said and "labeler scripted" in said
        assert unknown(summary) == []
        assert ("eval/warning" in summary) == (stage == "eval")
        if stage == "eval":
            assert _said(record, "judge") == [summary["eval/warning"]]
            page = unescape(_page(warm_root, record))
            head = page[: page.index("<h2>")]  # what one reads first
            assert summary["label/warning"] in head and summary["eval/warning"] in head


def test_another_judge_is_not_blamed(run, pipeline) -> None:
    record = run("stage=eval", *GUESSING, "judge=scripted", "judge.scripted.rule=overlap")
    assert "label/warning" in record.summary and "eval/warning" not in record.summary


def test_a_labeler_above_chance_is_not_warned_of(run, pipeline) -> None:
    # Four gold prompts, as the profile has, prove nothing of any labeler.
    record = run("stage=rm", "labeler=scripted", "task.gold_pairs_per_construction=16", EASY)
    assert record.summary["label/alignment_ci_low"] >= 0.5, (
        "the rule must be good for this test to say anything"
    )
    assert "label/warning" not in record.summary and _said(record, "labeler") == []


@pytest.mark.parametrize("stage", ["rm", "rl", "eval"])
def test_min_alignment_stops_every_later_stage(stage, run, pipeline, warm_root) -> None:
    run("stage=rm", *GUESSING)  # labels and reward model are there: no way round the bound
    before = {folder.name for folder in (warm_root / "artifacts").iterdir()}
    with pytest.raises(UserError) as caught:
        run(f"stage={stage}", *GUESSING, "labeler.min_alignment=0.95")
    said = str(caught.value)
    assert (
        "labeler.min_alignment=0.95" in said
        and "alignment is" in said
        and "16 constructed gold pairs" in said
    )
    assert {folder.name for folder in (warm_root / "artifacts").iterdir()} == before
    assert run("stage=label", *GUESSING, "labeler.min_alignment=0.95").state == "finished"


def _arm(name: str, overrides: list[str]) -> str:
    return f"+arms.{name}=[{','.join(repr(override) for override in overrides)}]"


def test_min_alignment_stops_a_comparison(run, pipeline) -> None:
    with pytest.raises(UserError, match="min_alignment=0.95"):
        run("experiments=labelers", _arm("guess", GUESSING), "labeler.min_alignment=0.95")


class Job:
    """A context as far as the gate looks at it."""

    run = None

    def __init__(self, bound: float | None) -> None:
        self.options = SimpleNamespace(labeler=SimpleNamespace(name="base", min_alignment=bound))


def measured(estimate: float, low: float, high: float) -> dict[str, float]:
    names = ("label/alignment", "label/alignment_ci_low", "label/alignment_ci_high", "label/alignment_n")
    return dict(zip(names, (estimate, low, high, 50), strict=True))


def test_the_gate_at_its_edges() -> None:
    assert trust_gate(Job(None), measured(0.6, 0.5, 0.7)) == {}
    assert "guessing" in trust_gate(Job(None), measured(0.6, 0.4999, 0.7))["label/warning"]
    assert "prefers the worse" in trust_gate(Job(None), measured(0.3, 0.2, 0.49))["label/warning"]
    assert trust_gate(Job(0.6), measured(0.6, 0.5, 0.7)) == {}
    with pytest.raises(UserError, match="alignment is 0.599"):
        trust_gate(Job(0.6), measured(0.599, 0.5, 0.7))
    # A bound that nothing can be held against stops too, instead of passing in silence.
    assert trust_gate(Job(None), {}) == trust_gate(Job(None), {"label/alignment": None}) == {}
    with pytest.raises(UserError, match="min_alignment=0.6 cannot be checked"):
        trust_gate(Job(0.6), {"label/alignment": None})


def test_labelers_of_a_comparison_are_tested_pair_by_pair(run, pipeline, warm_root, capsys) -> None:
    arms = {
        "guess": GUESSING,
        "overlap": ["labeler=scripted"],
        "again": ["labeler=scripted", "rm.lr=0.001"],
    }
    record = run("experiments=labelers", EASY, *(_arm(name, overrides) for name, overrides in arms.items()))
    ranking, tests = record.table("labelers"), record.table("labeler_tests")
    assert {row["labeler"] for row in ranking} == {"likelihood", "base", "guess", "overlap, again"}
    assert len(tests) == 6
    own = {"overlap, again": "overlap"}
    for row in ranking:
        name = own.get(row["labeler"], row["labeler"])
        assert row["label/alignment_worst"] == pytest.approx(record.summary[f"{name}/label/alignment_worst"])
        assert row["n"] == 16
    assert record.summary["guess/label/warning"] in _said(record, "labeler")
    assert "overlap/label/warning" in record.summary, "14 of 16 pairs right, but of four prompts alone"
    shown, page = capsys.readouterr().out, _page(warm_root, record)
    assert "Labelers" in shown and "overlap, again" in shown
    assert "Labelers on the same gold pairs" in page and "Every pair of labelers (6)" in page


def test_a_sweep_compares_its_labelers(run, pipeline, warm_root, capsys) -> None:
    for rule in ("hash", "overlap"):
        run("stage=rm", "labeler=scripted", f"labeler.scripted.rule={rule}", EASY, group="two-rules")
    shown = " ".join(capsys.readouterr().out.split())
    assert "On the same 16 gold pairs" in shown
    page = (warm_root / "reports" / "sweep-two-rules.html").read_text(encoding="utf-8")
    assert "Labelers on the same gold pairs" in page
