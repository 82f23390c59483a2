"""Head-to-head comparison of a policy with a baseline, as a judge sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlaif.records import Comparison, Outcome, Pair, Preference, is_empty
from rlaif.stages.common.measures.bins import LENGTHS, length_bin, rate
from rlaif.stages.common.measures.joining import by_pair, with_bounds
from rlaif.stages.common.measures.text import rouge_l
from rlaif.stats import (
    clustered_sign_test,
    length_controlled_win_rate,
    paired_difference,
    proportion_interval,
)

VALUES: Mapping[str, float] = {"win": 1.0, "tie": 0.5, "loss": 0.0}


def outcome_of(p_policy: float | None, *, tie_margin: float, failed: bool = False) -> Outcome:
    """The verdict: a tie if |p - 0.5| is below `tie_margin` (or 0); a missing p is unparsed, or failed if `failed`."""
    if p_policy is None:
        return "failed" if failed else "unparsed"
    if abs(p_policy - 0.5) < tie_margin or p_policy == 0.5:
        return "tie"
    return "win" if p_policy > 0.5 else "loss"


def compare(
    pairs: Sequence[Pair],
    preferences: Sequence[Preference],
    lengths: Sequence[tuple[int, int]],
    *,
    tie_margin: float,
    references: Sequence[str | None] | None = None,
) -> list[Comparison]:
    """One comparison per pair (a = the policy's response, b = the baseline's), in order.

    `lengths[i]` are the token counts of (a, b), `references[i]` is the author's answer. Raises ValueError for a
    pair without a preference, or for columns of different lengths.
    """
    references = [None] * len(pairs) if references is None else references
    sizes = len(pairs), len(lengths), len(references)
    if len(set(sizes)) > 1:
        raise ValueError("{} pairs, {} lengths, {} references do not match".format(*sizes))
    by_pair(pairs, preferences)
    judged = {preference.pair_id: preference for preference in preferences}
    if len(judged) != len(preferences):
        raise ValueError("a pair has more than one preference")
    comparisons = []
    for pair, (policy_tokens, baseline_tokens), reference in zip(pairs, lengths, references, strict=True):
        if pair.id not in judged:
            raise ValueError(f"pair {pair.id!r} has no preference")
        p_policy, failed = judged[pair.id].p_a, judged[pair.id].state == "failed"
        comparisons.append(
            Comparison(
                id=pair.id,
                prompt_id=pair.prompt_id,
                prompt=pair.prompt,
                policy_response=pair.response_a,
                baseline_response=pair.response_b,
                outcome=outcome_of(p_policy, tie_margin=tie_margin, failed=failed),
                p_policy=p_policy,
                policy_tokens=policy_tokens,
                baseline_tokens=baseline_tokens,
                reference=reference,
                group=pair.group,
            )
        )
    return comparisons


def _of(x: Comparison) -> dict[str, Any]:
    """The fields that say what an item is resampled with."""
    group = {} if x.group is None else {"group": x.group}
    return {"id": x.id, "prompt_id": x.prompt_id, **group}


def win_rate_items(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """A row per comparison with a verdict; the mean of `eval/win_rate` is the report's."""
    return [{**_of(x), "eval/win_rate": VALUES[x.outcome]} for x in comparisons if x.outcome in VALUES]


def win_rate_by_length(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The win rate where the policy's response is shorter than the baseline's, of similar length, or longer.

    A row (`bin`, `n`, `win_rate` with its interval) for each that occurs; lengths in tokens, similar ones within a
    tenth of the longer. A judge that likes length shows as a rate that rises from row to row.
    """
    found: dict[str, list[tuple[str, float]]] = {}
    for x in comparisons:
        if x.outcome in VALUES:
            name = length_bin(x.policy_tokens, x.baseline_tokens)
            found.setdefault(name, []).append((x.cluster, VALUES[x.outcome]))
    return [{"bin": name} | rate("n", "win_rate", found[name]) for name in LENGTHS if name in found]


def text_items(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """A row per comparison: token counts and, with a reference, ROUGE-L of both responses.

    `eval/rouge_l_elsewhere` compares the baseline's response with the next prompt's reference: it is what an answer
    gets that has nothing to do with its prompt.
    """
    rows = []
    for x, other in zip(comparisons, [*comparisons[1:], *comparisons[:1]], strict=True):
        row: dict[str, Any] = {
            **_of(x),
            "eval/length_policy": x.policy_tokens,
            "eval/length_baseline": x.baseline_tokens,
        }
        if x.reference is not None:
            row["eval/rouge_l_policy"] = rouge_l(x.policy_response, x.reference)
            row["eval/rouge_l_baseline"] = rouge_l(x.baseline_response, x.reference)
        if other.reference is not None:
            row["eval/rouge_l_elsewhere"] = rouge_l(x.baseline_response, other.reference)
        rows.append(row)
    return rows


def text_gains(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """`eval/rouge_l_gain` and `eval/length_gain`: policy minus baseline on the same prompts, with intervals."""
    rows, report = text_items(comparisons), dict[str, float]()
    clusters = [x.cluster for x in comparisons]
    for name in ("rouge_l", "length"):
        sides = f"eval/{name}_policy", f"eval/{name}_baseline"
        both = [
            (row[sides[0]], row[sides[1]], cluster)
            for row, cluster in zip(rows, clusters, strict=True)
            if all(side in row for side in sides)
        ]
        if both:
            mine, theirs, prompts = zip(*both, strict=True)
            gain, _ = paired_difference(mine, theirs, prompts, outcomes=False)
            report |= with_bounds(f"eval/{name}_gain", gain)
    return report


def win_rate_report(comparisons: Sequence[Comparison], *, seed: int) -> dict[str, float]:
    """Flat metrics `eval/*` of a head-to-head; win rate = (wins + ties / 2) / n over parsed verdicts.

    `eval/p_value` is the exact sign test of wins against losses with one vote per prompt or conversation.
    `eval/win_rate_worst` and `_best` count unparsed and failed comparisons as losses and as wins. `eval/win_rate_lc`
    is the win rate at equal length (NaN if it cannot be fitted), fitted like AlpacaEval's: to the judge's preferences
    in [0, 1], not to the verdicts that they round to. Lengths are mean token counts.
    """
    parsed = [x for x in comparisons if x.outcome in VALUES]
    states = [x.outcome for x in comparisons]
    values, prompts = [VALUES[x.outcome] for x in parsed], [x.cluster for x in parsed]
    policy_tokens, baseline_tokens = [x.policy_tokens for x in parsed], [x.baseline_tokens for x in parsed]
    preferences = [x.p_policy for x in parsed if x.p_policy is not None]  # every parsed one has it
    controlled = length_controlled_win_rate(preferences, policy_tokens, baseline_tokens, prompts, seed=seed)
    report: dict[str, float] = {
        "eval/n": len(parsed),
        **with_bounds("eval/win_rate", proportion_interval(values, prompts)),
        "eval/p_value": clustered_sign_test([value - 0.5 for value in values], prompts),
        "eval/wins": values.count(1.0),
        "eval/losses": values.count(0.0),
        "eval/ties": values.count(0.5),
        "eval/unparsed": states.count("unparsed"),
        "eval/failed": states.count("failed"),
        **with_bounds("eval/win_rate_lc", controlled),
    }
    if comparisons:
        total, lost = len(comparisons), len(comparisons) - len(parsed)
        report["eval/unparsed_rate"] = states.count("unparsed") / total
        report["eval/failed_rate"] = states.count("failed") / total
        report["eval/win_rate_worst"] = sum(values) / total
        report["eval/win_rate_best"] = (sum(values) + lost) / total
        report["eval/empty_rate_policy"] = sum(is_empty(x.policy_response) for x in comparisons) / total
        report["eval/empty_rate_baseline"] = sum(is_empty(x.baseline_response) for x in comparisons) / total
        report["eval/length_policy"] = float(np.mean([x.policy_tokens for x in comparisons]))
        report["eval/length_baseline"] = float(np.mean([x.baseline_tokens for x in comparisons]))
    return report
