"""All statistics of the harness: intervals, paired tests, agreement, calibration, length control."""

from rlaif.stats.agreement import (
    ReliabilityBin,
    brier_score,
    cohen_kappa,
    expected_calibration_error,
    kappa_interval,
    reliability_bins,
)
from rlaif.stats.arms import PairedTest, arm_interval, paired_test, paired_tests, tied_groups
from rlaif.stats.calibration import fit_temperature
from rlaif.stats.intervals import Interval, wilson_interval
from rlaif.stats.length_control import length_controlled_win_rate
from rlaif.stats.means import mean_interval, paired_difference, proportion_interval
from rlaif.stats.significance import ALPHA, binomial_test, clustered_sign_test, holm, mcnemar_test, sign_test
from rlaif.stats.strengths import Strengths, bradley_terry
from rlaif.stats.trends import linear_trend

__all__ = [
    "ALPHA",
    "Interval",
    "PairedTest",
    "ReliabilityBin",
    "Strengths",
    "arm_interval",
    "binomial_test",
    "bradley_terry",
    "brier_score",
    "clustered_sign_test",
    "cohen_kappa",
    "expected_calibration_error",
    "fit_temperature",
    "holm",
    "kappa_interval",
    "length_controlled_win_rate",
    "linear_trend",
    "mcnemar_test",
    "mean_interval",
    "paired_difference",
    "paired_test",
    "paired_tests",
    "proportion_interval",
    "reliability_bins",
    "sign_test",
    "tied_groups",
    "wilson_interval",
]
