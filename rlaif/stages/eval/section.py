"""What the report says about a comparison of policies, and about judges that are relatives of the labeler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlaif.stages.common.rewards.kinds import KINDS
from rlaif.stages.eval.relatives import Party, judges_of, labeler_of, pleases_labeler, relation
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


def same_judge(summary: Mapping[str, Scalar], config: Mapping[str, Any]) -> str | None:
    """Sentences on the judges of one path that are its labeler, run on the labeler's model or are of its family.

    What this means for the policy depends on the reward: the policy was trained to please the labeler only if the
    labeler's verdicts are behind the reward. None if no policy was judged, or no judge is a relative.
    """
    if number(summary, "eval/win_rate") is None:
        return None
    judges, labeler = judges_of(config), labeler_of(config)
    deciding = list(judges) if _panel(config) else list(judges)[:1]
    found = []
    if any(_pleases_simulated_people(summary, config, judges[name]) for name in deciding):
        if "" in judges:
            return _PEOPLE.format(who="The judge")
        found.append(_PEOPLE.format(who="A judge that decides"))
    if not pleases_labeler(config):
        return " ".join(found) or None
    related = {name: relation(own, labeler) for name, own in judges.items()}
    named = summary.get("label/labeler")
    if "" in judges and named and named == summary.get("eval/judge"):
        related[""] = "self"
    others = [name for name, how in related.items() if how is None]
    for name, how in related.items():
        if how is not None:
            told = _who(name, deciding), _rate(name, deciding), _elsewhere(others)
            found.append(_SENTENCES[how](judges[name], labeler, *told))
    return " ".join(found) or None


_PEOPLE = (
    "{who} knows the responses by what the simulated people preferred them for. The policy was trained to "
    "please them, so this win rate is what such labels can give at best, not a verdict of people."
)
_SENTENCES: Mapping[str, Callable[[Party, Party, str, str, str], str]] = {
    "self": lambda judge, labeler, who, rate, elsewhere: (
        f"{who} is the labeler itself. The policy was trained to please it, so {rate} shows "
        "that the optimisation worked, not that the responses are better."
    ),
    "model": lambda judge, labeler, who, rate, elsewhere: (
        f"{who} runs on the labeler's model ({labeler.model}) and shares its biases; {elsewhere}."
    ),
    "family": lambda judge, labeler, who, rate, elsewhere: (
        f"{who} ({judge.model}) is of the labeler's family ({judge.family}: {labeler.model}) and may favour what it "
        f"favours; {elsewhere}."
    ),
}


def _panel(config: Mapping[str, Any]) -> bool:
    options = config.get("eval")
    return isinstance(options, Mapping) and options.get("panel", "none") != "none"


def _who(name: str, deciding: Sequence[str]) -> str:
    if not name:
        return "The judge"
    return f"The judge {name} of the panel" if name in deciding and len(deciding) > 1 else f"The judge {name}"


def _rate(name: str, deciding: Sequence[str]) -> str:
    if name not in deciding:
        return "its win rate"
    return "this win rate" if len(deciding) == 1 else "its part of this win rate"


def _elsewhere(others: Sequence[str]) -> str:
    if not others:
        return "check the win rate with a judge of another family"
    return f"compare its win rate with that of {', '.join(others)}"


def _pleases_simulated_people(summary: Mapping[str, Scalar], config: Mapping[str, Any], judge: Party) -> bool:
    """Whether the judge is by reference, as the simulated people are whose labels the reward model learnt."""
    rm, reward, readout = config.get("rm"), config.get("reward"), judge.settings.get("readout")
    labels = rm.get("labels", "ai") if isinstance(rm, Mapping) else "ai"
    kind = str(reward.get("kind", "rm")) if isinstance(reward, Mapping) else "rm"
    by_reference = isinstance(readout, Mapping) and readout.get("kind") == "reference"
    learnt = labels != "ai" and labels != "shuffled" and KINDS[kind].from_labels
    return (
        by_reference
        and learnt
        and "simulated" in (summary.get("rm/gold_source"), summary.get("rl/gold_source"))
    )
