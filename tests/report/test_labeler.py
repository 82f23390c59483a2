"""The page's section on one labeler: every number of the summary and the tables stands in it."""

import re

from synthetic_runs import PATH_SUMMARY, write_run

from rlaif.figures.plots import ForestRow, rates_by_bin
from rlaif.report.page import render_report
from rlaif.report.verdict import verdict
from rlaif.stages.label.section import labeler_section
from rlaif.tracking.runs import find_runs, load_run

SUMMARY = PATH_SUMMARY | {
    "label/kappa": 0.41,
    "label/alignment_worst": 0.75,
    "label/alignment_best": 0.79,
    "label/first_position_rate": 0.64,
    "label/position_p_value": 0.0312,
    "label/ece": 0.083,
    "label/brier": 0.19,
    "label/longer_rate": 0.61,
    "label/gold_longer_rate": 0.5,
    "label/verbosity_gap": 0.11,
    "label/verbosity_gap_ci_low": -0.01,
    "label/verbosity_gap_ci_high": 0.23,
    "label/verbosity_n": 201,
    "label/length_gap": 12.4,
    "label/choice_mass": 0.97,
    "label/failed_rate": 0.0,
    "label/pairs_per_s": 7.5,
    "label/usd": 0.25,
}


def confidence(name, low, high, n, rate, flips):
    row = {
        "bin": name,
        "low": low,
        "high": high,
        "n": n,
        "alignment": rate,
        "flip_n": 100,
        "flip_rate": flips,
    }
    for column, value in (("alignment", rate), ("flip_rate", flips)):
        row |= {f"{column}_ci_{end}": None if value is None else value for end in ("low", "high")}
    return row


TABLES = {
    "label_confidence": [
        confidence("50", 0.0, 0.02, 12, 0.5, 0.42),
        confidence("80", 0.3, 0.5, 0, None, 0.03),
    ],
    "label_length": [
        {"bin": "longer", "n": 90, "alignment": 0.7, "alignment_ci_low": 0.6, "alignment_ci_high": 0.79}
    ],
    "reliability": [{"low": 0.8, "high": 0.9, "n": 9, "mean_predicted": 0.85, "mean_observed": 0.7}],
}


def section(tmp_path, summary=SUMMARY, tables=TABLES):
    return labeler_section([load_run(write_run(tmp_path, "1", summary=summary, tables=tables))], summary)


def test_facts_say_what_the_summary_says(tmp_path):
    facts = {row.metric: (row.value, row.interval, row.note) for row in section(tmp_path).facts}
    assert facts["label/alignment"] == (
        "78.0%",
        "72.0–83.0%",
        "250 gold pairs; 75.0–79.0% if all unread ones were wrong or right",
    )
    assert facts["label/longer_rate"] == ("61.0%", "", "gold: 50.0% of the same 201 pairs")
    assert facts["label/verbosity_gap"][:2] == ("+11.0 points", "−1.0 to +23.0 points")
    assert facts["label/first_position_rate"] == ("64.0%", "", "50% is no bias; binomial p = 0.031")
    assert facts["label/tokens_in"] == ("812,345", "", "401,000 of them from cache")
    assert facts["label/pairs_per_s"][2] == "", "nothing was reused"
    assert facts["label/usd"][0] == "0.250" and facts["label/pairs_per_s"][0] == "7.500"
    assert [row.stage for row in section(tmp_path / "again").facts] == sorted(
        (row.stage for row in section(tmp_path / "more").facts),
        key=["Agreement", "Position", "Calibration", "Length", "Answers", "Cost"].index,
    )


def test_what_is_not_known_has_no_line(tmp_path):
    found = section(tmp_path, {"label/alignment": 0.7, "label/alignment_n": 20}, {})
    assert [(row.metric, row.note) for row in found.facts] == [("label/alignment", "20 gold pairs")]
    assert found.confidence == found.lengths == found.figures == ()
    assert section(tmp_path / "none", {"rm/accuracy": 0.7}, {}) is None


def test_bins_as_text(tmp_path):
    found = section(tmp_path)
    first, last = found.confidence
    assert (first.name, first.n, first.alignment, first.flip_n, first.flip) == (
        "0–0.02",
        "12",
        "50.0%",
        "100",
        "42.0%",
    )
    assert (last.name, last.alignment, last.alignment_range, last.flip) == ("0.3–0.5", "–", "", "3.0%")
    (length,) = found.lengths
    assert (length.name, length.n, length.alignment, length.alignment_range) == (
        "longer",
        "90",
        "70.0%",
        "60.0–79.0%",
    )


def test_the_page_has_tables_and_plots(tmp_path):
    write_run(tmp_path, "1", stage="label", summary=SUMMARY, tables=TABLES)
    text = render_report(find_runs(tmp_path), tmp_path / "r.html", title="t").read_text()
    part = text[text.index("<h2>Labeler</h2>") :]
    part = part[: part.index("</section>")]
    for words in ("By confidence", "By length of the preferred response", "0.3–0.5", "42.0%", "+11.0 points"):
        assert words in part, words
    # By confidence, reliability, by construction.
    assert part.count("<svg") == 3 and 'aria-label="Reliability"' in part
    assert re.search(r'<abbr title="label/verbosity_gap – [^"]*gold_longer_rate', part)
    assert "beats the SFT policy" in text  # there is an evaluation, so that comes first
    alone = verdict({name: value for name, value in SUMMARY.items() if name.startswith("label/")}, {})
    assert alone.sentence == (
        "No policy was judged in this run; its labeler agrees with gold on 78% of 250 pairs (95% CI 72–83%)."
    )


def test_stages_of_one_path_show_the_bins_once(tmp_path):
    for stage in ("label", "rm"):
        write_run(tmp_path, stage, stage=stage, summary=SUMMARY, tables=TABLES)
    found = labeler_section(find_runs(tmp_path), SUMMARY)
    assert len(found.confidence) == 2 and len(found.lengths) == 1


def test_rates_by_bin_draws_each_line_where_it_has_rows():
    lines = {"one": [ForestRow("b", 0.5, 0.4, 0.6)], "two": [], "three": [ForestRow("a", 0.25)]}
    svg = rates_by_bin(["a", "b"], lines, title="t", axis_label="x")
    assert ">one<" in svg and ">three<" in svg and ">two<" not in svg
    assert rates_by_bin(["a"], {"one": []}, title="t", axis_label="x") == ""
