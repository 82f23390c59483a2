"""Is it the SFT, the RL or the reward? Fixed rules on what an experiment's four arms measured.

Beside the real reward, RL maximises one that is known to be sound (the oracle: ROUGE-L against references),
one with nothing to learn (random) and one of length alone. Every check is a number with a 95% interval over
the same held-out prompts, and a rule that says what the interval means. Nothing is concluded from a control that did
not work (the length arm did not get longer, the random arm moved).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal

from rlaif.stats import Interval, paired_test, wilson_interval
from rlaif.study.controls import (
    STILL_KL,
    STILL_LENGTH,
    STILL_ROUGE,
    Control,
    length_control,
    random_control,
    within,
)
from rlaif.study.items import SeedScores, common_items, seed_scores, seed_table
from rlaif.tracking.runs import Row, Scalar, interval, number
from rlaif.tracking.text import is_percent, percent, points, signed

ROLES = ("real", "oracle", "random", "length")
PARTS = ("SFT", "RL", "reward")
ENDS = 0.5  # share of SFT responses that must at least end by themselves

State = Literal["yes", "no", "failed", "open"]
Unit = Literal["share", "points", "number"]
Items = Sequence[Sequence[Row]]
Summary = Mapping[str, Scalar]


@dataclass(frozen=True)
class Check:
    """One question with what was measured: `yes` or `no` if the interval decides, else `open`.

    `failed`: the control that the answer would rest on did not work; `measured` and `found` are then those of the
    control. `unit` says how numbers are written: a share, or a difference of shares (points) or of numbers.
    """

    part: str
    question: str
    measured: str
    unit: Unit
    rule: str
    state: State
    found: Interval | None
    advice: str

    def row(self) -> dict[str, Any]:
        """The check as a row of a run's table."""
        numbers = {"value": "estimate", "ci_low": "low", "ci_high": "high", "n": "n"}
        values = {name: getattr(self.found, field, None) for name, field in numbers.items()}
        words = ("part", "question", "measured", "unit", "rule", "state", "advice")
        return {name: getattr(self, name) for name in words} | values


def diagnose(summaries: Mapping[str, Summary], items: Mapping[str, Items]) -> list[Check]:
    """The checks, each part after those that it builds on.

    By role (`ROLES`): the arm's summary, and its rows of single prompts (one table per seed).
    """
    return [
        *_sft_checks(summaries["real"], items["real"]),
        *_rl_checks(summaries["random"], items),
        *_reward_checks(summaries["real"], items),
    ]


def _sft_checks(summary: Summary, items: Items) -> list[Check]:
    ends, own = _ends(summary), _gain(items, "eval/rouge_l_baseline", "eval/rouge_l_elsewhere")
    return [
        Check(
            "SFT",
            "Do its responses end by themselves?",
            "SFT responses that end with EOS",
            "share",
            f"interval above {ENDS:.0%}",
            _beside(ends, ENDS),
            ends,
            "train longer (sft.num_epochs) or allow longer responses (task.max_response_tokens)",
        ),
        Check(
            "SFT",
            "Do they answer their own prompt?",
            "SFT's ROUGE-L against its own reference, minus that against the next prompt's",
            "number",
            "interval above 0",
            _beside(own, 0.0),
            own,
            "train on more rows or longer (sft.num_rows, sft.num_epochs), or take a larger model",
        ),
    ]


def _rl_checks(summary: Summary, items: Mapping[str, Items]) -> list[Check]:
    oracle = _gain(items["oracle"], *_ROUGE)
    return [
        Check(
            "RL",
            "Does it raise a sound reward?",
            "oracle arm: ROUGE-L, policy minus SFT",
            "number",
            "interval above 0",
            _beside(oracle, 0.0),
            oracle,
            "more iterations (rl.num_prompts, rl.num_epochs), another rl.lr, a lower rl.beta; look at rl/kl, "
            "rl/entropy and the alarms of that arm",
        ),
        _still_check(summary, items["random"]),
    ]


def _still_check(summary: Summary, items: Items) -> Check:
    """A random reward that moves KL or length is not a control; one that moves only ROUGE-L says no."""
    control, rouge = arm_control("random", summary, items), _gain(items, *_ROUGE)
    state: State = within(rouge, STILL_ROUGE)
    measured, found = "random arm: ROUGE-L, policy minus SFT", rouge
    if control.state == "failed" or (control.state == "open" and state == "yes"):
        state, measured, found = control.state, f"random arm: {control.measured}", control.found
    return Check(
        "RL",
        "Does it stand still if there is nothing to learn?",
        measured,
        "number",
        f"length within {STILL_LENGTH:.0%} of SFT's, KL at most {STILL_KL:g}, ROUGE-L within {STILL_ROUGE:g}",
        state,
        found,
        "lower rl.lr or raise rl.beta; penalties such as rl.missing_eos_penalty move a policy under any reward: "
        "they must be off in this arm",
    )


def arm_control(role: str, summary: Summary, items: Items) -> Control:
    """Whether an arm (its summary, its rows of single prompts) worked as a control: `length` or `random`."""
    longer = _gain(items, *_LENGTH)
    if role == "length":
        return length_control(longer)
    return random_control(longer, _mean(items, _LENGTH[1]), number(summary, "rl/kl"))


def _knowledge_checks(summary: Summary) -> list[Check]:
    """What the reward knows of gold: the reward model's accuracy or, without gold pairs of its own, its labels'."""
    better = (
        "better or more labels (labeler=, sample.num_prompts): experiments=rm_label_quality, rm_label_count"
    )
    longer = "train it longer or on more pairs (rm.num_epochs, rm.lr, sample.num_prompts)"
    known = "know the better response?"
    asked = (
        ("rm/gold_accuracy", f"Does the reward model {known}", "its accuracy on gold", better),
        ("label/alignment", f"Does the labeler {known}", "its alignment with gold", better),
        ("rm/accuracy", "Has the reward model learnt its labels?", "its accuracy on held-out ones", longer),
    )
    chosen = asked[:1] if interval(summary, "rm/gold_accuracy") else asked[1:]
    return [
        Check("reward", question, measured, "share", "interval above 50%", _beside(found, 0.5), found, advice)
        for name, question, measured, advice in chosen
        for found in [interval(summary, name)]
    ]


def _reward_checks(summary: Summary, items: Mapping[str, Items]) -> list[Check]:
    raised, follows = interval(summary, "eval/reward_gain"), _gain(items["real"], *_ROUGE)
    return [
        *_knowledge_checks(summary),
        Check(
            "reward",
            "Does RL raise it?",
            "real arm: its own reward, policy minus SFT",
            "number",
            "interval above 0",
            _beside(raised, 0.0),
            raised,
            "if the oracle arm does rise, this reward is hard to learn from: more iterations, a lower rl.beta",
        ),
        Check(
            "reward",
            "Does the held-out measure follow?",
            "real arm: ROUGE-L, policy minus SFT",
            "number",
            "interval above 0",
            _beside(follows, 0.0),
            follows,
            "the reward pays for something else: another labeler, reward=ensemble, a higher rl.beta, and "
            "rl.track to see where the two part",
        ),
        _length_check(summary, items),
    ]


def control_row(name: str, kind: str, summary: Summary, items: Items) -> dict[str, Any]:
    """A control arm of a comparison (`length` or `random`), as a row of a run's table."""
    control = arm_control(kind, summary, items)
    return {"arm": name, "control": kind, "state": control.state, "sentence": control.sentence}


def _length_check(summary: Summary, items: Mapping[str, Items]) -> Check:
    """Without a gain there is nothing to explain; a gain without longer responses is not length.

    Otherwise the arm that is rewarded for length shows what length alone wins, if its responses did get longer.
    """
    beyond = _paired(*(seed_scores(items[role], "eval/win_rate") for role in ("real", "length")))
    check = Check(
        "reward",
        "Is its gain more than length?",
        "win rate over SFT: real arm minus length arm",
        "points",
        f"win rate above 50%, and either responses that are not longer (at most {STILL_LENGTH:.0%}), or an interval "
        "above 0 and a length arm that did get longer",
        _beside(beyond, 0.0),
        beyond,
        "set rl.length_penalty, or label pairs of similar length; without a gain there is nothing to explain",
    )
    won, control = interval(summary, "eval/win_rate"), arm_control("length", {}, items["length"])
    if won is None or won.low <= 0.5:
        return replace(check, state="open")
    if _no_longer(items["real"]):
        return replace(check, state="yes")
    if control.state == "yes":
        return check
    return replace(
        check,
        measured=f"length arm: {control.measured}",
        unit="number",
        state=control.state,
        found=control.found,
        advice="let the length arm learn longer (rl.num_prompts, rl.num_epochs) or freer (a lower rl.beta)",
    )


def _no_longer(items: Items) -> bool:
    """Whether responses are surely not longer by more than the bound, nor longer beyond noise."""
    longer, start = _gain(items, *_LENGTH), _mean(items, _LENGTH[1])
    if longer is None or start is None:
        return False
    return longer.low <= 0 and longer.high <= STILL_LENGTH * start


_ROUGE = ("eval/rouge_l_policy", "eval/rouge_l_baseline")
_LENGTH = ("eval/length_policy", "eval/length_baseline")


def _ends(summary: Summary) -> Interval | None:
    rate, judged = number(summary, "eval/eos_rate_baseline"), number(summary, "eval/n")
    if rate is None or judged is None:
        return None
    lost = sum(number(summary, f"eval/{state}") or 0.0 for state in ("unparsed", "failed"))
    count = round(judged + lost)
    return wilson_interval(rate * count, count)


def _gain(items: Items, mine: str, other: str) -> Interval | None:
    """One metric minus another on the same prompts (and seeds)."""
    outcomes = None if is_percent(mine) else False
    return _paired(seed_scores(items, mine), seed_scores(items, other), outcomes=outcomes)


def _mean(items: Items, name: str) -> float | None:
    """One metric over all prompts (and seeds); None if none has it."""
    scores = [score for _, own in seed_scores(items, name).values() for score in own]
    return fmean(scores) if scores else None


def _paired(x: SeedScores, y: SeedScores, *, outcomes: bool | None = None) -> Interval | None:
    shared = common_items({"x": x, "y": y}) if x and y else []
    if not shared:
        return None
    keys, prompts = [key for key, _ in shared], [prompt for _, prompt in shared]
    first, second = (seed_table(scores, keys) for scores in (x, y))
    return paired_test(first, second, prompts, outcomes=outcomes)[0]


def _beside(found: Interval | None, bound: float) -> State:
    """Whether the interval is above (`yes`) or below (`no`) the bound; `open` if it contains the bound."""
    if found is None or math.isnan(found.low):
        return "open"
    return "yes" if found.low > bound else "no" if found.high < bound else "open"


WRITTEN: Mapping[str, Callable[[float], str]] = {"share": percent, "points": points, "number": signed}
