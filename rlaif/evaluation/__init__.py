"""Records in, flat `name: number` out: alignment, reward-model accuracy, win rate, text measures."""

from rlaif.evaluation.alarms import Alarm, AlarmLimits, alarms
from rlaif.evaluation.alignment import alignment_items, alignment_report, reliability
from rlaif.evaluation.injection import ATTACKS, CONTROL, attacked, injection_report
from rlaif.evaluation.label_bins import confidence_bins, length_bins
from rlaif.evaluation.reward_bins import (
    disagreement_bins,
    reward_confidence_bins,
    reward_length_bins,
    reward_reliability,
)
from rlaif.evaluation.reward_model import (
    fitted_temperature,
    read_reward_items,
    reward_items,
    reward_report,
)
from rlaif.evaluation.scored_pairs import ScoredPair, scored_pairs
from rlaif.evaluation.text import copy_rate, distinct_ngram_share, rouge_l, text_report
from rlaif.evaluation.win_rate import (
    compare,
    outcome_of,
    text_gains,
    text_items,
    win_rate_items,
    win_rate_report,
)

__all__ = [
    "ATTACKS",
    "CONTROL",
    "Alarm",
    "AlarmLimits",
    "ScoredPair",
    "alarms",
    "alignment_items",
    "alignment_report",
    "attacked",
    "compare",
    "confidence_bins",
    "copy_rate",
    "disagreement_bins",
    "distinct_ngram_share",
    "fitted_temperature",
    "injection_report",
    "length_bins",
    "outcome_of",
    "read_reward_items",
    "reliability",
    "reward_confidence_bins",
    "reward_items",
    "reward_length_bins",
    "reward_reliability",
    "reward_report",
    "rouge_l",
    "scored_pairs",
    "text_gains",
    "text_items",
    "text_report",
    "win_rate_items",
    "win_rate_report",
]
