"""Which samples people should read, chosen by rules: where two verdicts disagree most, or a text has changed most.

The first rows of a file, or a hand-picked dozen, show what one hopes to see. A rule shows what it finds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlaif.records import Comparison, Judgement, Pair, Preference
from rlaif.stages.common.measures.markers import markers_of
from rlaif.stages.common.measures.refusals import Refusals
from rlaif.stages.common.measures.text import words_changed

PER_RULE = 4  # samples shown by each rule

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Two responses to a prompt, and the verdicts on them: probabilities that the `first` is the better one.

    `verdicts` are by who gave them: `judge`, `labeler`, `gold`; `margin` is the reward of the first less that of the
    second. `finished` says whether each response ended by itself (None: not known). `reference` is the author's own
    answer, `rationale` what the labeler wrote before its verdict. `marks` are the markers of the two responses.
    """

    id: str
    prompt: str
    first: str
    second: str
    verdicts: Mapping[str, float]
    margin: float | None = None
    finished: tuple[bool | None, bool | None] = (None, None)
    reference: str | None = None
    rationale: str = ""
    origin: str = ""
    marks: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


@dataclass(frozen=True)
class Rule:
    """Samples with the highest `score`; those that have none (None) are not shown by it."""

    name: str
    why: str
    score: Callable[[Case], float | None]


def _between(one: str, other: str) -> Callable[[Case], float | None]:
    """How far apart two verdicts are, if they name different responses."""

    def score(case: Case) -> float | None:
        p, q = case.verdicts.get(one), case.verdicts.get(other)
        if p is None or q is None or (p - 0.5) * (q - 0.5) >= 0:
            return None
        return abs(p - q)

    return score


def _against_reward(case: Case) -> float | None:
    """The reward's margin, if the judge decides against it."""
    p = case.verdicts.get("judge")
    if p is None or case.margin is None or (p - 0.5) * case.margin >= 0:
        return None
    return abs(case.margin)


def _newly_marked(case: Case) -> float | None:
    """How many markers the first response has that the second has not."""
    first, second = case.marks
    return len(set(first) - set(second)) or None


def _changed(case: Case) -> float | None:
    return words_changed(case.first, case.second) or None


# A rule for two judges would read their verdicts by name, as in _between("judge", "second judge").
POLICY_RULES = (
    Rule(
        "Reward against judge",
        "the judge prefers the response with the lower reward; the largest differences in reward",
        _against_reward,
    ),
    Rule(
        "Labeler against judge",
        "labeler and judge prefer different responses; their probabilities are furthest apart",
        _between("labeler", "judge"),
    ),
    Rule(
        "Marked",
        "markers that the policy's response bears and the baseline's does not; the most of them",
        _newly_marked,
    ),
    Rule(
        "Most changed",
        "the most words to insert, delete or replace between the baseline's response and the policy's",
        _changed,
    ),
)
"""By which comparisons of a policy with a baseline are chosen; the policy's response is the first."""

LABEL_RULES = (
    Rule(
        "Labeler against gold",
        "labeler and gold label prefer different responses; their probabilities are furthest apart",
        _between("labeler", "gold"),
    ),
)
"""By which labelled pairs are chosen."""


def chosen(cases: Sequence[Case], rules: Sequence[Rule], count: int) -> list[tuple[Rule, list[Case]]]:
    """For each rule that the data permit its `count` cases of highest score, equal ones by id.

    No case is chosen twice: the rule that comes first has it.
    """
    taken: set[str] = set()
    found = []
    for rule in rules:
        scored = [(score, case) for case in cases if (score := rule.score(case)) is not None]
        left = [(-score, case.id, case) for score, case in scored if case.id not in taken]
        own = [case for _, _, case in sorted(left, key=lambda one: one[:2])[:count]]
        taken |= {case.id for case in own}
        if own:
            found.append((rule, own))
    return found


def reading_rows(cases: Sequence[Case], rules: Sequence[Rule], heads: tuple[str, str]) -> list[Row]:
    """A row per chosen case, ready to be shown; `heads` say whose responses the two are."""
    return [
        {
            "rule": rule.name,
            "why": rule.why,
            "id": case.id,
            "prompt": case.prompt,
            "heads": list(heads),
            "responses": [case.first, case.second],
            "marks": [list(own) for own in case.marks],
            "reference": case.reference,
            "origin": case.origin,
            "verdicts": dict(case.verdicts),
            "margin": case.margin,
            "rationale": case.rationale,
        }
        for rule, own in chosen(cases, rules, PER_RULE)
        for case in own
    ]


def marked(case: Case, refusals: Refusals) -> Case:
    """The case with the markers of its responses."""
    sides = zip((case.first, case.second), case.finished, strict=True)
    first, second = (markers_of(text, case.prompt, refusals, finished=ended) for text, ended in sides)
    return replace(case, marks=(first, second))


def policy_cases(
    comparisons: Sequence[Comparison], facts: Mapping[str, Row], refusals: Refusals
) -> list[Case]:
    """Comparisons as cases, with what `facts` know of each by its id."""
    cases = []
    for row in comparisons:
        own = facts.get(row.id, {})
        verdicts = {"judge": row.p_policy, "labeler": own.get("p_labeler")}
        rewards = own.get("rewards")
        cases.append(
            Case(
                row.id,
                row.prompt,
                row.policy_response,
                row.baseline_response,
                {name: p for name, p in verdicts.items() if p is not None},
                None if rewards is None else rewards[0] - rewards[1],
                tuple(own.get("finished", (None, None))),
                row.reference,
                own.get("rationale", ""),
            )
        )
    return [marked(case, refusals) for case in cases]


def label_cases(
    pairs: Sequence[Pair],
    preferences: Sequence[Preference],
    rationales: Mapping[str, str],
    refusals: Refusals,
) -> list[Case]:
    """Pairs with a gold label and a readable preference as cases."""
    by_id = {row.pair_id: row.p_a for row in preferences}
    cases = [
        Case(
            pair.id,
            pair.prompt,
            pair.response_a,
            pair.response_b,
            {"labeler": p_a, "gold": pair.gold},
            reference=pair.reference,
            rationale=rationales.get(pair.id, ""),
            origin=" ".join(filter(None, (pair.gold_source, pair.construction, pair.subset))),
        )
        for pair in pairs
        if pair.gold is not None and (p_a := by_id.get(pair.id)) is not None
    ]
    return [marked(case, refusals) for case in cases]


def rationale_texts(judgements: Sequence[Judgement]) -> dict[str, str]:
    """What a labeler with chain of thought wrote on each pair, by order; for one without there is nothing to read."""
    found: dict[str, list[str]] = {}
    for row in judgements:
        if row.provenance != "rule" and row.text:
            shown = "as shown here" if row.order == "ab" else "in the other order"
            found.setdefault(row.pair_id, []).append(f"({shown}) {row.text}")
    return {pair_id: "\n".join(texts) for pair_id, texts in found.items()}
