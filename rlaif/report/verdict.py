"""What the numbers say, in one plain sentence, and reasons to doubt it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlaif.figures.rows import LENGTH, ROUGE, both_sides
from rlaif.ops import algorithm_title
from rlaif.stages.eval.section import same_judge
from rlaif.stats import ALPHA, Interval
from rlaif.study.verdict import Tone, Verdict
from rlaif.tracking.runs import Scalar, interval, number
from rlaif.tracking.text import EN_DASH, p_text, percent, plain, signed

_UNPARSED = 0.05
# The reward's rise on prompts not used in training: the evaluation's, else the reward model's own held-out ones.
_HELD_OUT_RISE = ("eval/reward_gain", "rl/reward_held_out_gain")


def verdict(summary: Mapping[str, Scalar], config: Mapping[str, Any]) -> Verdict:
    """The verdict on one path (policy against its baseline)."""
    tone = _tone(summary)
    sentence = " ".join(filter(None, (_judged(summary, config, tone), _held_out(summary))))
    return Verdict(sentence, tone, tuple(_warnings(summary, config, tone)))


def _tone(summary: Mapping[str, Scalar]) -> Tone:
    if number(summary, "eval/win_rate") is None:
        return "none"
    found, p = interval(summary, "eval/win_rate"), number(summary, "eval/p_value")
    if found is None or (p is not None and p >= ALPHA):
        return "open"
    return "win" if found.low > 0.5 else "loss" if found.high < 0.5 else "open"


def _policy_name(config: Mapping[str, Any]) -> str:
    rl = config.get("rl")
    name = rl.get("algorithm") or rl.get("name") if isinstance(rl, Mapping) else rl
    loss = rl.get("loss") if isinstance(rl, Mapping) else None
    return f"{algorithm_title(str(name).split('_')[0].lower(), str(loss)) or 'RL'} policy"


def _judged(summary: Mapping[str, Scalar], config: Mapping[str, Any], tone: Tone) -> str:
    if tone == "none":
        return f"No policy was judged in this run{_labelled(summary)}."
    policy, baseline = _policy_name(config), summary.get("eval/baseline") or "SFT policy"
    win, count = number(summary, "eval/win_rate"), number(summary, "eval/n")
    prompts = f" of {plain(count)} prompts" if count else " of the prompts"
    rate = f"{percent(win, 0)}{prompts}{_evidence(summary)}"
    judge = f"the judge ({summary['eval/judge']})" if summary.get("eval/judge") else "the judge"
    if tone == "win":
        return f"The {policy} beats the {baseline}: {judge} prefers it in {rate}."
    if tone == "loss":
        return f"The {policy} loses to the {baseline}: {judge} prefers it in only {rate}."
    preferred = f"{judge} prefers the {policy} to the {baseline} in {rate}"
    found = interval(summary, "eval/win_rate")
    if found is None:
        return f"Not decided: {preferred}, and no interval was recorded."
    if found.low <= 0.5 <= found.high:
        return f"No clear difference: {preferred}; 50%, which means no difference, is within the interval."
    return (
        f"No clear difference: {preferred}; the interval excludes 50%, but the test is not significant at 5%."
    )


def _labelled(summary: Mapping[str, Scalar]) -> str:
    """What there is to say about a run that ends before any policy."""
    found, count = interval(summary, "label/alignment"), number(summary, "label/alignment_n")
    if found is None or count is None:
        return ""
    rate = percent(found.estimate, 0)
    gold = "simulated people" if summary.get("label/gold_source") == "simulated" else "gold"
    return f"; its labeler agrees with {gold} on {rate} of {plain(count)} pairs ({_bounds(found)})"


def _evidence(summary: Mapping[str, Scalar]) -> str:
    found, p = interval(summary, "eval/win_rate"), number(summary, "eval/p_value")
    parts = [*([_bounds(found)] if found else []), *([] if p is None else [p_text(p)])]
    return f" ({', '.join(parts)})" if parts else ""


def _bounds(found: Interval) -> str:
    return f"95% CI {100 * found.low:.0f}{EN_DASH}{100 * found.high:.0f}%"


def _held_out(summary: Mapping[str, Scalar]) -> str:
    policy, baseline = both_sides(summary, ROUGE)
    if policy is None or baseline is None:
        return ""
    gain = interval(summary, "eval/rouge_l_gain")
    order = f"{policy:.3f} against {baseline:.3f} for the baseline"
    if gain is None:
        return f"Held-out ROUGE-L: {order}; the difference has no interval."
    moves = "rises" if gain.low > 0 else "falls" if gain.high < 0 else "does not clearly move"
    shown = f"a difference of {signed(gain.estimate)} (95% CI {signed(gain.low)} to {signed(gain.high)})"
    return f"Held-out ROUGE-L {moves}: {order}, {shown}."


def _warnings(summary: Mapping[str, Scalar], config: Mapping[str, Any], tone: Tone) -> list[str]:
    found = [*_stage_warnings(summary), same_judge(summary, config)]
    found += [_over_optimised(summary, tone), _length(summary, tone)]
    unparsed = number(summary, "eval/unparsed_rate")
    if unparsed is not None and unparsed > _UNPARSED:
        found.append(
            f"{percent(unparsed)} of the judge's answers could not be parsed and count for neither side."
        )
    return [sentence for sentence in found if sentence]


_WARNING = "/warning"
_SOURCES = ("label", "rl", "eval", "judge", "safety")


def _stage_warnings(summary: Mapping[str, Scalar]) -> list[str]:
    """The stages' warnings, each after the arms of a comparison that it is about."""
    arms: dict[str, list[str]] = {}
    for name, sentence in summary.items():
        if not name.endswith(_WARNING) or not sentence:
            continue
        arm, _, source = name.removesuffix(_WARNING).rpartition("/")
        if source in _SOURCES:
            arms.setdefault(str(sentence), []).append(arm)
    return [
        f"{', '.join(named)}: {sentence}" if (named := [arm for arm in own if arm]) else sentence
        for sentence, own in arms.items()
    ]


def _over_optimised(summary: Mapping[str, Scalar], tone: Tone) -> str | None:
    """Warns if the reward surely rose on prompts that RL did not train on, but the judge does not see it."""
    rise = next((found for name in _HELD_OUT_RISE if (found := interval(summary, name)) is not None), None)
    if rise is None or rise.low <= 0 or tone not in ("open", "loss"):
        return None
    judge = "prefers the baseline" if tone == "loss" else "sees no clear gain"
    return (
        f"Sign of over-optimisation: on held-out prompts the reward rose by {signed(rise.estimate)} (95% CI "
        f"{signed(rise.low)} to {signed(rise.high)}), but the judge {judge}."
    )


def _length(summary: Mapping[str, Scalar], tone: Tone) -> str | None:
    controlled = interval(summary, "eval/win_rate_lc")
    if tone != "win" or controlled is None or controlled.low > 0.5:
        return None
    policy, baseline = both_sides(summary, LENGTH)
    lengths = f" (length {plain(policy)} against {plain(baseline)})" if policy and baseline else ""
    return (
        f"The lead may be due to length{lengths}: with length controlled the win rate is "
        f"{percent(controlled.estimate, 0)}, and its interval is not above 50%."
    )
