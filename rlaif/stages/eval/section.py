"""What the report says about a comparison of policies, and about a judge that is the labeler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlaif.stages.common.engines import ENGINES
from rlaif.stages.common.rewards.kinds import KINDS
from rlaif.tracking.runs import Scalar, number
from rlaif.tracking.text import p_text, percent, plain


def evaluation_notes(summary: Mapping[str, Scalar]) -> dict[str, str]:
    """The result table's note on the win rate."""
    p, judge = number(summary, "eval/p_value"), summary.get("eval/judge")
    count = number(summary, "eval/n")
    parts = [
        p_text(p) if p is not None else "",
        f"n = {plain(count)}" if count else "",
        f"judge: {judge}" if judge else "",
    ]
    agreed = number(summary, "eval/labeler_agreement")
    shared = "" if agreed is None else f"; the judge agrees with it on {percent(agreed)}"
    proxy = {"eval/labeler_win_rate": f"the proxy, not a judge{shared}"}
    return {"eval/win_rate": ", ".join(filter(None, parts)), **proxy}


_BOUNDS = ("batch_size", "max_unparsed", "min_alignment", "retry")


def same_judge(summary: Mapping[str, Scalar], config: Mapping[str, Any]) -> str | None:
    """A sentence if the judge of one path is its labeler or runs on the labeler's model, else None.

    What this means for the policy depends on the reward: the policy was trained to please the labeler only if the
    labeler's verdicts are behind the reward. None if no policy was judged.
    """
    if number(summary, "eval/win_rate") is None:
        return None
    if _pleases_simulated_people(summary, config):
        return (
            "The judge knows the responses by what the simulated people preferred them for. The policy was trained to "
            "please them, so this win rate is what such labels can give at best, not a verdict of people."
        )
    named, trained = summary.get("label/labeler"), _pleases_labeler(config)
    labeler, judge = _identity(config.get("labeler")), _identity(config.get("judge"))
    if (named and named == summary.get("eval/judge")) or (labeler and labeler == judge):
        if not trained:
            return None
        return (
            "The judge is the labeler itself. The policy was trained to please it, so this win rate shows "
            "that the optimisation worked, not that the responses are better."
        )
    model, engine = config.get("backend"), labeler.get("backend")
    if not engine or engine != judge.get("backend") or not isinstance(model, Mapping):
        return None
    if not trained or (engine in ENGINES and ENGINES[engine].alone):
        return None
    return (
        f"The judge runs on the labeler's model ({model.get('name')}) and shares its biases; "
        "check the win rate with a judge of another family."
    )


def _pleases_labeler(config: Mapping[str, Any]) -> bool:
    """Whether RL's reward comes from the labeler: its own score, or a reward model trained on its labels."""
    reward, rm = config.get("reward"), config.get("rm")
    kind = reward.get("kind") if isinstance(reward, Mapping) else "rm"
    labels = rm.get("labels", "ai") if isinstance(rm, Mapping) else "ai"
    return KINDS.get(str(kind), KINDS["rm"]).pleases_labeler(labels)


def _pleases_simulated_people(summary: Mapping[str, Scalar], config: Mapping[str, Any]) -> bool:
    """Whether the judge is by reference, as the simulated people are whose labels the reward model learnt."""
    rm, judge, reward = config.get("rm"), _identity(config.get("judge")), _identity(config.get("reward"))
    labels = rm.get("labels", "ai") if isinstance(rm, Mapping) else "ai"
    readout = judge.get("readout")
    by_reference = isinstance(readout, Mapping) and readout.get("kind") == "reference"
    learnt = labels != "ai" and labels != "shuffled" and KINDS[str(reward.get("kind", "rm"))].from_labels
    return (
        by_reference
        and learnt
        and "simulated" in (summary.get("rm/gold_source"), summary.get("rl/gold_source"))
    )


def _identity(options: Any) -> dict[str, Any]:
    """What a labeler's verdict depends on: its config without batching and stopping bounds."""
    known = options if isinstance(options, Mapping) else {}
    return {key: value for key, value in known.items() if key not in _BOUNDS}
