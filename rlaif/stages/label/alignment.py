"""How far a labeler agrees with gold preferences, and its biases.

Alignment: the share of pairs with gold on which the labeler prefers the response that gold prefers (AI Labeler
Alignment in Lee et al. 2023, arXiv:2309.00267). Gold 0.5 prefers neither and is left out; a labeler's 0.5 counts half.

It is measured on pairs of the kind that is labelled for training. Constructed pairs, whose worse response was made to
be worse, are easier than those: they check a labeler's competence and are reported beside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from rlaif.records import Judgement, Pair, Preference
from rlaif.stages.common.measures.bins import bin_metrics, confidence_bins, length_bins, verbosity
from rlaif.stages.common.measures.joining import (
    agreement,
    by_pair,
    folded,
    rate_metrics,
    symmetric_calibration,
)
from rlaif.stats import clustered_sign_test, cohen_kappa, reliability_bins


def alignment_report(
    pairs: Sequence[Pair], preferences: Sequence[Preference], judgements: Sequence[Judgement]
) -> dict[str, Any]:
    """Flat metrics `label/*` of a labeler on `pairs`.

    `label/n` counts preferences, `label/unread_rate` is the share of them without a verdict (unparsed, failed, or set
    aside as inconsistent), `label/alignment_n` counts gold pairs with a parsed one; `label/alignment_worst` and
    `_best` count unparsed gold pairs as wrong and as right. `label/gold_source` says whose verdicts gold is; it is
    `constructed` only if there is no other, and else constructed pairs are left to `label/alignment_constructed` and
    `label/alignment_<construction>`. `label/kappa` is Cohen's kappa on the letters a / b. `label/ece` and
    `label/brier` compare p with gold for the preferred response, so that it does not matter which response is called
    a. `label/confidence_<bin>_*` and `label/length_<bin>_*` follow `confidence_bins` and `length_bins`. Lengths are
    characters, tokens are totals over judgements. Keys without data are absent: alignment without gold, position
    metrics without both orders, mass without log-probabilities. Pairs with an empty response (provenance `rule`) have
    labels but no judgements: they count in alignment, not in rates of judgements or positions. Raises ValueError for
    a preference or judgement of an unknown pair.
    """
    pair_of = by_pair(pairs, [*preferences, *judgements])
    report: dict[str, Any] = {"label/n": len(preferences)}
    every = [(pair_of[x.pair_id], x) for x in preferences if pair_of[x.pair_id].gold not in (None, 0.5)]
    report |= _constructed([item for item in every if item[0].gold_source == "constructed"])
    pairs = own_gold(pairs)
    pair_of = by_pair(pairs, preferences)
    gold = [(pair_of[x.pair_id], x) for x in preferences if pair_of[x.pair_id].gold not in (None, 0.5)]
    report |= _alignment("label/alignment", gold) | _agreement_details(gold)
    if gold:
        report["label/gold_source"] = ", ".join(sorted({str(pair.gold_source) for pair, _ in gold}))
    report |= _position(pair_of, preferences, judgements) | _states(preferences, judgements)
    report |= bin_metrics("label/confidence", confidence_bins(pairs, preferences))
    report |= bin_metrics("label/length", length_bins(pairs, preferences)) | verbosity(pairs, preferences)
    gaps = [_length_gap(pair_of[x.pair_id], x.p_a) for x in preferences if x.p_a not in (None, 0.5)]
    if gaps:
        report["label/length_gap"] = float(np.mean(gaps))
    return report


def own_gold(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs, of which constructed ones keep their gold only if no other pair has any."""
    if all(pair.gold_source in (None, "constructed") for pair in pairs):
        return list(pairs)
    return [
        replace(pair, gold=None, gold_source=None) if pair.gold_source == "constructed" else pair
        for pair in pairs
    ]


def _constructed(gold: Sequence[tuple[Pair, Preference]]) -> dict[str, float]:
    """Alignment on constructed pairs, together and by construction."""
    report = _alignment("label/alignment_constructed", gold)
    for construction in sorted({pair.construction for pair, _ in gold if pair.construction}):
        part = [item for item in gold if item[0].construction == construction]
        report |= _alignment(f"label/alignment_{construction}", part)
    return report


def subset_rows(pairs: Sequence[Pair], preferences: Sequence[Preference]) -> list[dict[str, Any]]:
    """A row per subset of the data set, by name: alignment with its interval; empty without subsets.

    `alignment` is over the `n` pairs of the subset that were read, `alignment_worst` counts the others as wrong.
    """
    pair_of = by_pair(pairs, preferences)
    parts: dict[str, list[tuple[Pair, Preference]]] = {}
    for x in preferences:
        pair = pair_of[x.pair_id]
        if pair.subset is not None and pair.gold not in (None, 0.5):
            parts.setdefault(pair.subset, []).append((pair, x))
    measured = {name: _alignment("alignment", part) for name, part in sorted(parts.items())}
    return [
        {
            "subset": name,
            "pairs": len(parts[name]),
            "n": found["alignment_n"],
            **{key: value for key, value in found.items() if key not in ("alignment_n", "alignment_best")},
        }
        for name, found in measured.items()
    ]


def alignment_items(pairs: Sequence[Pair], preferences: Sequence[Preference]) -> list[dict[str, Any]]:
    """A row per pair with gold; the mean of `label/alignment`, over those that could be read, is the report's.

    `label/alignment_worst` and `label/alignment_half` cover every pair: an unread one counts as wrong, or as half. So
    labelers are compared on the same pairs, and none gains by abstaining. Constructed pairs have
    `label/alignment_constructed` instead, unless there are no others.
    """
    own = {pair.id for pair in own_gold(pairs) if pair.gold is not None}
    pair_of = by_pair(pairs, preferences)
    return [
        {
            "id": pair.id,
            "prompt_id": pair.prompt_id,
            **({} if pair.group is None else {"group": pair.group}),
            **({} if pair.subset is None else {"subset": pair.subset}),
            "construction": pair.construction,
            "p_a": x.p_a,
            "gold": pair.gold,
            **(_scores(x.p_a, pair.gold) if pair.id in own else _constructed_score(x.p_a, pair.gold)),
        }
        for x, pair in ((x, pair_of[x.pair_id]) for x in preferences)
        if pair.gold not in (None, 0.5)
    ]


def asking_items(
    pairs: Sequence[Pair], preferences: Sequence[Preference], judgements: Sequence[Judgement]
) -> list[dict[str, Any]]:
    """A row per pair that the labeler was shown: the tokens of all its calls, and whether it favoured a position.

    The mean of `label/same_position_rate`, over the pairs whose two orders could be read, is the report's.
    """
    pair_of = by_pair(pairs, preferences)
    tokens: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for call in judgements:
        if call.provenance != "rule":
            tokens[call.pair_id][0] += call.tokens_in
            tokens[call.pair_id][1] += call.tokens_out
    same = _same_position(preferences)
    return [
        {
            "id": name,
            "prompt_id": pair_of[name].prompt_id,
            **({} if pair_of[name].group is None else {"group": pair_of[name].group}),
            "tokens_in": read,
            "tokens_out": written,
            **({"label/same_position_rate": float(same[name] != 0)} if name in same else {}),
        }
        for name, (read, written) in tokens.items()
    ]


def _same_position(preferences: Sequence[Preference]) -> dict[str, float]:
    """By pair whose two orders were read: 1 if both prefer what is shown first, -1 what is shown second, else 0."""
    both = [(x.pair_id, x.p_ab, 1 - x.p_ba) for x in preferences if x.p_ab is not None and x.p_ba is not None]
    return {key: float(np.sign(ab - 0.5)) if (ab - 0.5) * (ba - 0.5) > 0 else 0.0 for key, ab, ba in both}


def _constructed_score(p_a: float | None, gold: float | None) -> dict[str, float]:
    return {} if p_a is None else {"label/alignment_constructed": agreement(p_a, gold)}


def _scores(p_a: float | None, gold: float | None) -> dict[str, float]:
    if p_a is None:
        return {"label/alignment_worst": 0.0, "label/alignment_half": 0.5}
    right = agreement(p_a, gold)
    return {"label/alignment": right, "label/alignment_worst": right, "label/alignment_half": right}


def reliability(pairs: Sequence[Pair], preferences: Sequence[Preference]) -> list[dict[str, Any]]:
    """Bins of confidence against how often it was right: what `label/ece` is computed from."""
    rows = [row for row in alignment_items(own_gold(pairs), preferences) if row["p_a"] is not None]
    bins = reliability_bins(*folded([row["p_a"] for row in rows], [row["gold"] for row in rows]))
    return [asdict(one) for one in bins]


def _length_gap(pair: Pair, p_a: float | None) -> float:
    gap = len(pair.response_a) - len(pair.response_b)
    return gap if p_a is not None and p_a > 0.5 else -gap


def _alignment(name: str, gold: Sequence[tuple[Pair, Preference]]) -> dict[str, float]:
    if not gold:
        return {}
    scored = [(pair.cluster, agreement(x.p_a, pair.gold)) for pair, x in gold if x.p_a is not None]
    right = sum(value for _, value in scored)
    return {
        **rate_metrics(name, scored),
        f"{name}_n": len(scored),
        f"{name}_worst": right / len(gold),
        f"{name}_best": (right + len(gold) - len(scored)) / len(gold),
    }


def _agreement_details(gold: Sequence[tuple[Pair, Preference]]) -> dict[str, float]:
    parsed = [(x.p_a, pair.gold) for pair, x in gold if x.p_a is not None and pair.gold is not None]
    if not parsed:
        return {}
    ece, brier = symmetric_calibration([p for p, _ in parsed], [y for _, y in parsed])
    report = {"label/ece": ece, "label/brier": brier}
    decided = [(p > 0.5, y > 0.5) for p, y in parsed if p != 0.5]
    if decided:
        report["label/kappa"] = cohen_kappa([x for x, _ in decided], [y for _, y in decided])
    return report


def _first_preferred(p_a: float, order: str) -> float:
    """1 if the first displayed response is preferred, 0 if the second, 0.5 if neither."""
    p_first = p_a if order == "ab" else 1 - p_a
    return float(np.sign(p_first - 0.5) + 1) / 2


def _position(
    pair_of: Mapping[str, Pair], preferences: Sequence[Preference], judgements: Sequence[Judgement]
) -> dict[str, float]:
    """Position bias (Lee et al. 2023): how often, in which direction, and whether it may be chance.

    With both orders of a pair, the p-value tests whether same-position pairs favour one side (consistent ones
    cannot); with one order per pair, it tests all decided pairs. It is a sign test with one vote per prompt.
    """
    preferences = [x for x in preferences if x.provenance != "rule"]  # empty responses were shown to no one
    parsed = [x for x in judgements if x.state == "ok" and x.provenance != "rule"]
    if len({x.order for x in parsed}) < 2:
        return {}
    first = [_first_preferred(x.p_a, x.order) for x in parsed if x.p_a is not None]
    report = {"label/first_position_rate": float(np.mean(first))}
    both = _same_position(preferences)
    if both:
        votes = [(key, vote) for key, vote in both.items() if vote]
        shown = [(pair_of[key].cluster, float(vote != 0)) for key, vote in both.items()]
        report |= rate_metrics("label/same_position_rate", shown)
    else:
        votes = [(x.pair_id, np.sign(x.p_ab - 0.5)) for x in preferences if x.p_ab is not None]
        votes += [(x.pair_id, np.sign(0.5 - x.p_ba)) for x in preferences if x.p_ba is not None]
    report["label/position_p_value"] = clustered_sign_test(
        [vote for _, vote in votes], [pair_of[key].cluster for key, _ in votes]
    )
    return report


def _states(preferences: Sequence[Preference], judgements: Sequence[Judgement]) -> dict[str, float]:
    report: dict[str, float] = {}
    if preferences:
        decided = sum(x.provenance == "rule" for x in preferences)
        report["label/empty_rate"] = decided / len(preferences)
        report["label/unread_rate"] = sum(x.p_a is None for x in preferences) / len(preferences)
    states = [x.state for x in (judgements or preferences) if x.provenance != "rule"]
    for state in ("unparsed", "failed"):
        if states:
            report[f"label/{state}_rate"] = states.count(state) / len(states)
    mass = [x.mass for x in judgements if x.mass is not None]
    if mass:
        report["label/choice_mass"] = float(np.mean(mass))
    for name in ("tokens_in", "tokens_out", "tokens_cached"):
        report[f"label/{name}"] = sum(getattr(x, name) for x in judgements)
    return report
