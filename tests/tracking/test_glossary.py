"""The glossary describes every metric completely, and no name by accident."""

from __future__ import annotations

import pytest

from rlaif.tracking.glossary import describe, entries, unknown

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
rm/length_only_accuracy sft/loss sft/val_loss sft/rows_per_s rl/loss rl/value_loss rl/approx_kl
rl/explained_variance rl/copy_rate rl/distinct_3 rl/reward_val rl/seconds_rollout
rl/seconds_update eval/wins eval/losses eval/ties eval/unparsed eval/unparsed_rate eval/win_rate_worst
eval/win_rate_best eval/length_policy eval/length_baseline eval/rouge_l_policy eval/rouge_l_policy_ci_low
eval/rouge_l_policy_ci_high eval/rouge_l_baseline eval/rouge_l_baseline_ci_low
eval/rouge_l_baseline_ci_high eval/copy_rate_policy eval/copy_rate_baseline eval/reward_policy
eval/reward_baseline eval/kl eval/eos_rate_policy eval/eos_rate_baseline eval/distinct_3_policy
eval/distinct_3_baseline sample/n sample/identical_dropped sample/redrawn sample/mean_tokens
sample/eos_rate sft/seconds rm/seconds sample/samples_per_s
""".split()  # noqa: SIM905


def test_every_entry_is_complete() -> None:
    assert len(entries()) > 90
    for entry in entries().values():
        for text in (entry.formula, entry.unit, entry.range):
            assert isinstance(text, str) and text.strip(), entry


def test_all_kept_names_are_described() -> None:
    assert len(KEPT) == len(set(KEPT)) == 95
    assert unknown(KEPT) == []


def test_unknown_lists_each_once_sorted() -> None:
    assert unknown(["rm/z", "rm/loss", "rm/a", "rm/z"]) == ["rm/a", "rm/z"]


@pytest.mark.parametrize(
    "name", ["rm", "rm/", "/seconds", "a/b/seconds", "rm/Loss", "label/alignment_", "eval/win_rate2"]
)
def test_near_misses_are_unknown(name: str) -> None:
    assert describe(name) is None


def test_exact_names_win_over_patterns() -> None:
    best = describe("label/alignment_best")
    assert best is not None and best.name == "label/alignment_best"
    construction = describe("label/alignment_truncation")
    assert construction is not None and construction.name == "label/alignment_*"
    seconds = describe("rm/seconds")
    assert seconds is not None and (seconds.name, seconds.unit) == ("*/seconds", "s")
    exact = describe("rl/samples_per_s")
    assert exact is not None and exact.name == "rl/samples_per_s"
