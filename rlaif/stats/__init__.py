"""All statistics of the harness: intervals, paired tests, agreement, calibration, length control."""

from rlaif.stats.agreement import (
    ReliabilityBin,
    brier_score,
    cohen_kappa,
    expected_calibration_error,
    reliability_bins,
)
from rlaif.stats.arms import (
    ArmComparison,
    PairedTest,
    arm_interval,
    paired_tests,
    statistically_tied,
    tied_groups,
)
from rlaif.stats.calibration import fit_temperature
from rlaif.stats.crossed import crossed_difference, crossed_interval
from rlaif.stats.intervals import (
    Interval,
    cluster_bootstrap_interval,
    proportion_interval,
    wilson_interval,
)
from rlaif.stats.length_control import length_controlled_win_rate
from rlaif.stats.significance import binomial_test, holm, mcnemar_test, paired_bootstrap, sign_test

__all__ = [
    "ArmComparison",
    "Interval",
    "PairedTest",
    "ReliabilityBin",
    "arm_interval",
    "binomial_test",
    "brier_score",
    "cluster_bootstrap_interval",
    "cohen_kappa",
    "crossed_difference",
    "crossed_interval",
    "expected_calibration_error",
    "fit_temperature",
    "holm",
    "length_controlled_win_rate",
    "mcnemar_test",
    "paired_bootstrap",
    "paired_tests",
    "proportion_interval",
    "reliability_bins",
    "sign_test",
    "statistically_tied",
    "tied_groups",
    "wilson_interval",
]
