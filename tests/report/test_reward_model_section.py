"""The page's section on one reward model, and the lines of the result table."""

from synthetic_runs import PATH_SUMMARY, write_run

from rlaif.report.page import render_report
from rlaif.report.summary import result_rows
from rlaif.stages.rm.section import reward_model_section
from rlaif.tracking.runs import find_runs, load_run

SUMMARY = PATH_SUMMARY | {
    "rm/n": 240,
    "rm/length_only_accuracy": 0.55,
    "rm/length_only_accuracy_ci_low": 0.5,
    "rm/length_only_accuracy_ci_high": 0.6,
    "rm/length_only_gap": 0.16,
    "rm/length_only_gap_ci_low": 0.08,
    "rm/length_only_gap_ci_high": 0.24,
    "rm/length_only_p_value": 0.0004,
    "rm/ece": 0.12,
    "rm/ece_fitted": 0.04,
    "rm/fitted_temperature": 1.8,
    "rm/disagreement": 0.061,
    "rm/train_pairs": 700,
}


def bin_row(name, n, rate, gold_n=0, gold=None, **edges):
    row = {"bin": name, **edges, "n": n, "accuracy": rate, "gold_n": gold_n, "gold_accuracy": gold}
    for column, value in (("accuracy", rate), ("gold_accuracy", gold)):
        row |= {
            f"{column}_ci_low": value and value - 0.1,
            f"{column}_ci_high": value and value + 0.1,
        }
    return row


def reliability(curve, observed):
    return {
        "curve": curve,
        "low": 0.8,
        "high": 0.9,
        "n": 9,
        "mean_predicted": 0.85,
        "mean_observed": observed,
    }


TABLES = {
    "rm_confidence": [
        bin_row("50", 12, 0.5, 10, 0.6, low=0.0, high=0.02),
        bin_row("80", 90, 0.8, low=0.3, high=0.5),
    ],
    "rm_length": [bin_row("shorter", 40, 0.4), bin_row("longer", 60, 0.9)],
    "rm_disagreement": [bin_row("low", 50, 0.75), bin_row("high", 50, 0.6)],
    "rm_reliability": [reliability("as trained", 0.6), reliability("fitted", 0.8)],
}


def section(tmp_path, summary=SUMMARY, tables=TABLES):
    return reward_model_section([load_run(write_run(tmp_path, "1", summary=summary, tables=tables))], summary)


def test_facts_say_what_the_summary_says(tmp_path):
    facts = {row.metric: (row.value, row.interval, row.note) for row in section(tmp_path).facts}
    assert facts["rm/accuracy"] == ("71.0%", "66.0–76.0%", "240 held-out pairs")
    assert facts["rm/gold_accuracy"][:2] == ("68.0%", "62.0–73.0%")
    assert facts["rm/length_only_accuracy"][:2] == ("55.0%", "50.0–60.0%")
    assert facts["rm/length_only_gap"] == (
        "+16.0 points",
        "+8.0 to +24.0 points",
        "paired test by prompt, p < 0.001",
    )
    assert facts["rm/fitted_temperature"] == ("1.800", "", "above 1: overconfident as trained")
    assert facts["rm/ece_fitted"][0] == "0.040" and facts["rm/disagreement"][0] == "0.061"
    assert "rm/brier" not in facts and "rm/epochs" not in facts, "not measured, no line"


def test_bins_as_text(tmp_path):
    confidence, lengths, halves = section(tmp_path).tables
    first, last = confidence.rows
    assert (first.name, first.n, first.accuracy, first.gold_n, first.gold) == (
        "0–0.02",
        "12",
        "50.0%",
        "10",
        "60.0%",
    )
    assert (last.name, last.accuracy_range, last.gold, last.gold_range) == ("0.3–0.5", "70.0–90.0%", "–", "")
    assert confidence.gold and not lengths.gold, "no gold columns without gold pairs"
    assert [row.name for row in halves.rows] == ["agree more", "agree less"]


def test_what_is_not_known_has_no_section(tmp_path):
    assert section(tmp_path / "none", {"label/alignment": 0.7}, {}) is None
    few = section(tmp_path / "few", {"rm/accuracy": 0.7}, {"rm_length": TABLES["rm_length"]})
    assert [table.title for table in few.tables] == ["By length of the preferred response"]
    assert few.figures == () and [row.metric for row in few.facts] == ["rm/accuracy"]


def test_the_page_has_tables_and_plots(tmp_path):
    write_run(tmp_path, "1", stage="rm", summary=SUMMARY, tables=TABLES)
    text = render_report(find_runs(tmp_path), tmp_path / "r.html", title="t").read_text()
    part = text[text.index("<h2>Reward model</h2>") :]
    part = part[: part.index("</section>")]
    for words in ("By confidence of the label", "Accuracy on gold", "agree less", "+16.0 points", "90.0%"):
        assert words in part, words
    assert part.count("<svg") == 2 and 'aria-label="Reward model: reliability"' in part
    assert ">as trained<" in part and ">fitted<" in part
    assert '<abbr title="rm/length_only_gap – rm/accuracy - rm/length_only_accuracy' in part


def test_the_result_table_puts_length_and_gold_beside_accuracy():
    rows = [row for row in result_rows(SUMMARY) if row.stage == "Reward model"]
    assert [(row.metric, row.value, row.note) for row in rows] == [
        ("rm/accuracy", "71.0%", "240 held-out pairs"),
        ("rm/length_only_accuracy", "55.0%", "against the reward model: p < 0.001"),
        ("rm/gold_accuracy", "68.0%", ""),
    ]
    assert [row.metric for row in result_rows({"rm/accuracy": 0.7})] == ["rm/accuracy"]
