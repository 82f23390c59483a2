"""The verdict of several judges on one pair: the mean of their preferences, or their majority."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlaif.records import Pair, ParseState, Preference
from rlaif.stages.common.measures.win_rate import VALUES, outcome_of


def mean_preference(preferences: Sequence[float | None]) -> float | None:
    """The mean of the judges' preferences for the policy, of those that could be read; None if none could."""
    read = [p for p in preferences if p is not None]
    return math.fsum(read) / len(read) if read else None


def vote(preferences: Sequence[float | None], *, tie_margin: float) -> float | None:
    """The policy's share of the judges' verdicts, a tie being half a vote; None if no verdict could be read.

    Above 0.5 the majority is for the policy; `tie_margin` is that of each judge's own verdict.
    """
    outcomes = [outcome_of(p, tie_margin=tie_margin) for p in preferences if p is not None]
    return math.fsum(VALUES[outcome] for outcome in outcomes) / len(outcomes) if outcomes else None


def panel(
    how: str, pairs: Sequence[Pair], judges: Sequence[Sequence[Preference]], *, tie_margin: float
) -> tuple[list[Preference], float]:
    """The panel's preference for each pair, in order, and the margin within which it is a tie.

    `judges[j]` has the preferences of one judge, in any order; `how` is `mean` or `vote`. A majority is one by any
    lead, so the margin of votes is 0. A pair that no judge could read is failed if every call failed, else unparsed.
    Raises ValueError for a pair without a preference of each judge.
    """
    by_judge = [{own.pair_id: own for own in given} for given in judges]
    found = []
    for pair in pairs:
        if any(pair.id not in given for given in by_judge):
            raise ValueError(f"a judge has no preference for pair {pair.id!r}")
        own = [given[pair.id] for given in by_judge]
        values = [one.p_a for one in own]
        p_a = vote(values, tie_margin=tie_margin) if how == "vote" else mean_preference(values)
        failed = all(one.state == "failed" for one in own)
        state: ParseState = "ok" if p_a is not None else "failed" if failed else "unparsed"
        samples = sum(one.samples for one in own)
        found.append(Preference(pair.id, p_a, None, None, samples, state, own[0].provenance))
    return found, 0.0 if how == "vote" else tie_margin
