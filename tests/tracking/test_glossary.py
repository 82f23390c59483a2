"""The registry describes every metric completely, and no name by accident."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from rlaif.report.data import data_section
from rlaif.report.summary import result_rows
from rlaif.tracking.glossary import FILE, describe, entries, names, read_registry, registry, unknown
from rlaif.tracking.text import is_percent, lower_is_better, metric_label, metric_range, metric_value

# The names that must stay, and those that the stages add.
KEPT = """
label/n label/alignment label/alignment_ci_low label/alignment_ci_high label/same_position_rate
label/first_position_rate label/unparsed_rate label/choice_mass label/ece label/brier label/length_gap
label/tokens_in label/tokens_out label/tokens_cached label/usd label/pairs_per_s label/reused rm/accuracy
rm/accuracy_ci_low rm/accuracy_ci_high rm/gold_accuracy rm/ece rm/length_correlation rm/pairs_per_s
rl/reward rl/kl rl/entropy rl/clip_fraction rl/ratio_first rl/response_length rl/eos_rate
rl/samples_per_s eval/win_rate eval/win_rate_ci_low eval/win_rate_ci_high eval/p_value eval/win_rate_lc
eval/win_rate_lc_ci_low eval/win_rate_lc_ci_high eval/judge eval/n label/alignment_truncation label/kappa
label/alignment_worst label/alignment_best label/position_p_value label/failed_rate rm/brier rm/n rm/loss
rm/length_only_accuracy sft/loss sft/val_loss sft/lr rm/lr rl/lr rl/loss rl/value_loss rl/approx_kl
rl/explained_variance rl/copy_rate rl/distinct_3 rl/seconds_rollout
rl/seconds_update eval/wins eval/losses eval/ties eval/unparsed eval/unparsed_rate eval/win_rate_worst
eval/win_rate_best eval/length_policy eval/length_baseline eval/rouge_l_policy eval/rouge_l_policy_ci_low
eval/rouge_l_policy_ci_high eval/rouge_l_baseline eval/rouge_l_baseline_ci_low
eval/rouge_l_baseline_ci_high eval/copy_rate_policy eval/copy_rate_baseline eval/reward_policy
eval/reward_baseline eval/kl eval/eos_rate_policy eval/eos_rate_baseline eval/distinct_3_policy
eval/distinct_3_baseline sample/n sample/identical_dropped sample/redrawn sample/mean_tokens
sample/eos_rate sft/seconds rm/seconds
""".split()  # noqa: SIM905


def test_every_entry_is_complete() -> None:
    assert len(entries()) > 90
    for entry in entries().values():
        for text in (entry.label, entry.formula, entry.unit, entry.range):
            assert isinstance(text, str) and text.strip(), entry
        assert (entry.unit == "text") == (entry.format == "text"), entry
        assert entry.format != "duration" or entry.unit == "s", entry


def test_all_kept_names_are_described() -> None:
    assert len(KEPT) == len(set(KEPT)) == 95
    assert unknown(KEPT) == []


def test_unknown_lists_each_once_sorted() -> None:
    assert unknown(["rm/z", "rm/loss", "rm/a", "rm/z"]) == ["rm/a", "rm/z"]


@pytest.mark.parametrize(
    "name",
    [
        "rm",
        "rm/",
        "/seconds",
        "a/b/seconds",
        "rm/Loss",
        "label/alignment_",
        "eval/win_rate2",
        "rm/ece_ci_low",  # has no interval
        "rm/accuracy_ci_middle",
        "arm/rm/accurracy",
    ],
)
def test_near_misses_are_unknown(name: str) -> None:
    assert describe(name) is None


def test_exact_names_win_over_patterns() -> None:
    best = describe("label/alignment_best")
    assert best is not None and best.name == "label/alignment_best"
    construction = describe("label/alignment_truncation")
    assert construction is not None and construction.name == "label/alignment_*"
    assert construction.label == "labeler alignment on truncation"
    count = describe("label/alignment_near_copy_n")
    assert count is not None and (count.name, count.format) == ("label/alignment_*_n", "number")
    seconds = describe("rm/seconds")
    assert seconds is not None and (seconds.name, seconds.unit) == ("rm/seconds", "s")
    exact = describe("rl/samples_per_s")
    assert exact is not None and exact.name == "rl/samples_per_s"


def test_what_hangs_on_a_metric_is_as_the_metric() -> None:
    """Ends of its interval, of a pattern's too, and the metric of an arm."""
    low, high = describe("label/length_shorter_alignment_ci_low"), describe("rm/length_only_gap_ci_high")
    assert low is not None and (low.unit, low.format, low.better) == ("fraction", "percent", "up")
    assert low.formula.startswith("lower end of the 95% interval of label/length_shorter_alignment")
    assert high is not None and high.format == "points" and "Student's t" in high.formula
    arm = describe("rm.n=8, labeler=a/b/rm/accuracy_ci_high")
    assert arm is not None and (arm.name, arm.format) == ("rm/accuracy_ci_high", "percent")
    assert arm.label == "rm.n=8, labeler=a/b: RM accuracy, upper end"


# Each was wrong while names were guessed at: (name, 0.92 in its format, which direction is better).
WRITTEN = [
    ("eval/copy_rate_policy", "92.0%", "down"),
    ("eval/eos_rate_policy", "92.0%", "up"),
    ("eval/distinct_3_policy", "92.0%", "up"),
    ("eval/empty_rate_policy", "92.0%", "down"),
    ("eval/win_rate_worst", "92.0%", "up"),
    ("label/alignment_n", "0.920", "none"),
    ("label/usage_estimated", "92.0%", "none"),
    ("label/unread_rate", "92.0%", "down"),
    ("rm/length_only_gap", "+92.0 points", "up"),
    ("label/verbosity_gap", "+92.0 points", "none"),  # 0 is best
    ("label/length_gap", "+0.920", "none"),
    ("label/first_position_rate", "92.0%", "none"),  # 50% is best
    ("label/longer_rate", "92.0%", "none"),
    ("rm/length_correlation", "0.920", "none"),
    ("rl/loss", "0.920", "none"),  # of a surrogate: its value says nothing
    ("rl/kl_loss", "0.920", "none"),
    ("rl/value_loss", "0.920", "down"),
    ("eval/rouge_l_gain", "+0.920", "up"),
    ("rl/seconds_update", "0.9 s", "down"),
    ("rm/brier", "0.920", "down"),
    ("rm/accuracy", "92.0%", "up"),
]


@pytest.mark.parametrize(("name", "text", "better"), WRITTEN)
def test_format_and_direction_are_the_registrys(name: str, text: str, better: str) -> None:
    metric = describe(name)
    assert metric is not None and metric.better == better
    assert metric_value(name, 0.92) == text
    assert lower_is_better(name) == (better == "down")
    assert is_percent(name) == text.endswith(("%", "points"))


def test_values_intervals_and_labels() -> None:
    assert metric_range("rm/accuracy", 0.57, 0.69) == "57.0–69.0%"
    assert metric_range("an arm/rm/length_only_gap", -0.01, 0.23) == "−1.0 to +23.0 points"
    assert metric_range("eval/reward_gain", -0.5, 0.25) == "−0.500 to +0.250"
    assert metric_range("rm/ece", 0.1, 0.2) == "0.100 to 0.200"
    assert metric_value("rm/accuracy", None) == metric_value("rm/accuracy", math.nan) == "–"
    assert metric_value("rm.n", 100) == "100" and metric_label("rm.n") == "rm.n"
    assert metric_label("label/kappa") == "label kappa" and metric_label("label/kappa", "labelers") == "kappa"


def test_what_is_ranked_has_a_direction() -> None:
    """The first column of an ablation table, and every metric that may be it."""
    firsts = [names("ablation", group)[0] for group in ("sft", "label", "rm", "rl", "eval")]
    for name in [*firsts, *names("page_ranked_by"), *names("page_rates")]:
        metric = describe(name)
        assert metric is not None and metric.better != "none", name


def test_the_tables_hold_metrics_of_the_registry_once() -> None:
    for name, shown in registry().tables.items():
        places = [(one.group, one.name) for one in shown]
        assert len(places) == len(set(places)) > 0, name
        assert all(one.label for one in shown) and {one.name for one in shown} <= set(entries())


def test_texts_cut_alike_show_on_the_page() -> None:
    """`rm/equal_dropped` was looked for under the names of other stages, and never shown."""
    section = data_section({"rm/equal_dropped": 3, "data/rows_read": 9, "data/dropped": 0})
    assert section is not None
    assert [(row.metric, row.value) for row in section.facts] == [
        ("data/rows_read", "9"),
        ("rm/equal_dropped", "3"),
    ]


def test_shares_of_both_policies_are_written_as_shares() -> None:
    rows = {
        row.metric: row
        for row in result_rows({"eval/copy_rate_policy": 0.92, "eval/copy_rate_baseline": 0.5})
    }
    assert rows["eval/copy_rate_policy"].value == "92.0% vs 50.0%"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("format: percent", "format: share"), "format: share; write one of number, percent"),
        (("better: up", "better: higher"), "better: higher; write one of up, down, none"),
        (
            ("    sft: [sft/val_loss]", "    sft: [sft/vall_loss]"),
            "table ablation has sft/vall_loss, which is none of",
        ),
    ],
)
def test_a_slip_in_the_file_is_named(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    file = tmp_path / "glossary.yaml"
    text = FILE.read_text(encoding="utf-8")
    assert change[0] in text
    file.write_text(text.replace(*change, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=sentence):
        read_registry(file)


def test_wandb_sweeps_go_the_registrys_way() -> None:
    files = [
        yaml.safe_load(file.read_text()) for file in (FILE.parents[2] / "sweeps" / "wandb").glob("*.yaml")
    ]
    goals = [sweep["metric"] for sweep in files if sweep["method"] != "grid" or "metric" in sweep]
    assert len(goals) >= 4  # a grid may go without
    for goal in goals:
        metric = describe(goal["name"])
        assert metric is not None and {"up": "maximize", "down": "minimize"}[metric.better] == goal["goal"]
