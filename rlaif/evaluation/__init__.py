"""Records in, flat `name: number` out: alignment, reward-model accuracy, win rate, text measures."""

from rlaif.evaluation.alignment import alignment_items, alignment_report, reliability
from rlaif.evaluation.injection import ATTACKS, CONTROL, attacked, injection_report
from rlaif.evaluation.label_bins import confidence_bins, length_bins
from rlaif.evaluation.reward_model import reward_items, reward_report
from rlaif.evaluation.text import copy_rate, distinct_ngram_share, rouge_l, text_report
from rlaif.evaluation.win_rate import compare, outcome_of, win_rate_items, win_rate_report

__all__ = [
    "ATTACKS",
    "CONTROL",
    "alignment_items",
    "alignment_report",
    "attacked",
    "compare",
    "confidence_bins",
    "copy_rate",
    "distinct_ngram_share",
    "length_bins",
    "injection_report",
    "outcome_of",
    "reliability",
    "reward_items",
    "reward_report",
    "rouge_l",
    "text_report",
    "win_rate_items",
    "win_rate_report",
]
