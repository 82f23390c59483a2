"""What an experiment's arms say about its claim: the effect, the verdict and its sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from rlaif.stages.eval.round_robin import meeting_values
from rlaif.stats import mean_interval
from rlaif.stats.effects.contrast import Decision, Effect, contrast, decide, from_interval
from rlaif.stats.intervals import Interval
from rlaif.study.claims.claim import Claim, CostOptions
from rlaif.study.items import common_items, seed_scores, seed_table, tested_metric
from rlaif.study.verdict import Tone, Verdict
from rlaif.tracking.runs import Row, Scalar, interval, number
from rlaif.tracking.text import FORMATS, is_percent, metric_label, metric_value, p_text

Unit = Literal["points", "number", "signed"]
Side = Literal["for", "against"]
Items = Mapping[str, Sequence[Sequence[Row]]]
Meetings = Sequence[Sequence[dict[str, Any]]]
Summaries = Mapping[str, Mapping[str, Scalar]]
CLAIM = "claim"
"""The run's table with the claim's row."""
TOKENS_IN, TOKENS_OUT = "tokens_in", "tokens_out"
"""Columns of a labeler's items: what it read and wrote for a pair, in all orders and steps."""


def claim_row(claim: Claim, items: Items, summaries: Summaries, meetings: Meetings) -> dict[str, Any]:
    """The claim with its effect and verdict, as a row of a run's table; undecided if its arms lack what it is about.

    The effect is measured where all of its arms have a verdict that could be read. It decides the claim only if that
    holds with every other verdict counted against the effect, and with every one counted for it: nothing is decided by
    what a labeler or judge abstains from.
    """
    effect = _effect(claim, items, summaries, meetings)
    if effect is None:
        return _row(claim, "undecided", f"Undecided: nothing was measured of {measured(claim)}.")
    decision, note = decide(effect, claim.relation, claim.smallest), ""
    if decision.state != "undecided":
        bounds = [_effect(claim, items, summaries, meetings, unread=side) for side in ("against", "for")]
        states = {decide(one, claim.relation, claim.smallest).state for one in bounds if one is not None}
        if states - {decision.state}:
            note = f" It would be {decision.state}, were it not for the verdicts that could not be read."
            decision = replace(decision, state="undecided")
    found = effect.interval()
    numbers = {
        "effect": found.estimate,
        "ci_low": found.low,
        "ci_high": found.high,
        "p_value": decision.p_value,
        "detectable": effect.detectable(claim.relation),
        "n": effect.n,
        "seeds": effect.seeds,
    }
    return _row(claim, decision.state, _sentence(claim, effect, decision) + note) | numbers


def unmet_row(claim: Claim, needs: Sequence[str]) -> dict[str, Any]:
    """The row of a claim that nothing was run for."""
    return _row(claim, "undecided", f"Undecided: needs {' and '.join(needs)}.")


def claim_summary(row: Row) -> dict[str, Any]:
    """The summary's part of a claim's row."""
    found = {
        "claim/id": row["id"],
        "claim/verdict": row["verdict"],
        "claim/sentence": row["sentence"],
        "claim/effect": row.get("effect"),
        "claim/effect_ci_low": row.get("ci_low"),
        "claim/effect_ci_high": row.get("ci_high"),
        "claim/p_value": row.get("p_value"),
        "claim/smallest": row["smallest"],
        "claim/detectable": row.get("detectable"),
        "claim/n": row.get("n"),
        "claim/seeds": row.get("seeds"),
    }
    return {name: value for name, value in found.items() if value is not None}


def claim_verdict(row: Row) -> Verdict:
    """The claim's sentence as what a page says first."""
    tones: Mapping[str, Tone] = {"supported": "win", "contradicted": "loss", "undecided": "open"}
    return Verdict(str(row["sentence"]), tones[row["verdict"]])


def measured(claim: Claim) -> str:
    """What the effect is, in words: `label/alignment: cot minus base`."""
    effect = claim.effect
    if effect.kind == "cost":
        return f"how many times dearer a person's label is than {effect.cost.arm}'s, minus {effect.against:g}"
    if effect.kind == "meeting":
        return f"win rate of {effect.meeting[0]} over {effect.meeting[1]}, minus 50%"
    terms = [_term(name, weight) for name, weight in effect.weights.items()]
    terms += [f"minus {metric_value(effect.metric, effect.against)}"] if effect.against else []
    return f"{metric_label(effect.metric)}: {' '.join(terms).removeprefix('plus ')}"


def _term(name: str, weight: float) -> str:
    factor = "" if abs(weight) == 1 else f"{abs(weight):g} "
    return f"{'minus' if weight < 0 else 'plus'} {factor}{name}"


def _row(claim: Claim, state: str, sentence: str) -> dict[str, Any]:
    words = {
        name: getattr(claim, name) for name in ("id", "title", "hypothesis", "paper", "relation", "smallest")
    }
    return {**words, "measured": measured(claim), "unit": unit(claim), "verdict": state, "sentence": sentence}


def unit(claim: Claim) -> Unit:
    """How the effect is written: as a difference of shares or of numbers."""
    kind = claim.effect.kind
    return (
        "points" if kind == "meeting" or (kind == "weights" and is_percent(claim.effect.metric)) else "signed"
    )


def _value(claim: Claim, value: float) -> str:
    return FORMATS[unit(claim)].value(value)


def _effect(
    claim: Claim, items: Items, summaries: Summaries, meetings: Meetings, unread: Side | None = None
) -> Effect | None:
    """The effect where all arms were read or, with `unread`, with all other verdicts counted to that side of it."""
    effect = claim.effect
    if effect.kind == "cost":
        return _cheaper(effect.cost, items[effect.cost.arm], effect.against)
    if effect.kind == "meeting":
        first, second = effect.meeting
        fill = None if unread is None else float(unread == "for")
        values, clusters = meeting_values(meetings, first, second, unread=fill)
        return _contrast({first: values}, {first: 1.0}, clusters, 0.5, outcomes=True)
    metric, weights = effect.metric, {name: float(weight) for name, weight in effect.weights.items()}
    own: Items = {name: items[name] for name in weights}
    if unread is not None and is_percent(metric):
        own = _filled(own, weights, metric, unread)
    scores = {name: seed_scores(tables, metric) for name, tables in own.items()}
    shared = common_items(scores) if all(scores.values()) else []
    if not shared:
        return _summarised(metric, weights, items, summaries, effect.against)
    keys, clusters = [key for key, _ in shared], [prompt for _, prompt in shared]
    tables = {name: seed_table(one, keys) for name, one in scores.items()}
    return _contrast(
        tables, weights, clusters, effect.against, outcomes=None if is_percent(metric) else False
    )


def _filled(items: Items, weights: Mapping[str, float], metric: str, unread: Side) -> Items:
    """The arms' rows, with the outcomes of `metric` that an arm lacks, of items that any was asked about, made up."""
    asked = {
        str(row["id"]): row
        for tables in items.values()
        for rows in tables
        for row in rows
        if metric in row or tested_metric(metric) in row
    }
    filled: dict[str, list[list[Row]]] = {}
    for name, tables in items.items():
        value = float((weights[name] > 0) == (unread == "for"))
        filled[name] = []
        for rows in tables:
            read = {str(row["id"]): row for row in rows if number(row, metric) is not None}
            filled[name].append([read.get(key, {**row, metric: value}) for key, row in asked.items()])
    return filled


def _contrast(
    tables: Mapping[str, np.ndarray],
    weights: Mapping[str, float],
    clusters: Sequence[str],
    against: float,
    *,
    outcomes: bool | None,
) -> Effect | None:
    if len(set(clusters)) < 2:
        return None
    found = contrast(tables, weights, clusters, null=against, outcomes=outcomes)
    return found if found.error.variance else None


def _summarised(
    metric: str, weights: Mapping[str, float], items: Items, summaries: Summaries, against: float
) -> Effect | None:
    """The effect of one arm's metric that no single item has, such as a fitted one: by its summary's interval."""
    if list(weights.values()) != [1.0]:
        return None
    (arm,) = weights
    found = interval(summaries[arm], metric)
    if found is None or math.isnan(found.low):
        return None
    known = replace(found, n=int(number(summaries[arm], "eval/n") or 0))
    return from_interval(known, null=against, seeds=len(items[arm]))


def _cheaper(cost: CostOptions, tables: Sequence[Sequence[Row]], against: float) -> Effect | None:
    """How many times cheaper, minus `against`: the interval is that of the mean price, turned into one of the ratio."""
    rows = [row for row in tables[0] if TOKENS_IN in row]
    if len({row["prompt_id"] for row in rows}) < 2:
        return None
    prices = [(cost.usd_in * row[TOKENS_IN] + cost.usd_out * row[TOKENS_OUT]) / 1e6 for row in rows]
    found = mean_interval(prices, [str(row.get("group") or row["prompt_id"]) for row in rows])
    if found.low <= 0:
        return None
    low, high = (cost.person / price for price in (found.high, found.low))
    ratio = Interval(cost.person / found.estimate, low, high, found.n)
    return from_interval(ratio, null=against)


def _sentence(claim: Claim, effect: Effect, decision: Decision) -> str:
    found, written = effect.interval(), FORMATS[unit(claim)]
    over = f"{effect.n:,} items" + (f" and {effect.seeds} seeds" if effect.seeds > 1 else ", one seed")
    shown = f"{written.value(found.estimate)} (95% CI {written.range(found.low, found.high)}; {over})"
    lead = f"{decision.state.capitalize()}: {measured(claim)} is {shown}, {p_text(decision.p_value)}"
    size = _value(claim, claim.smallest).removeprefix("+")
    if decision.state == "undecided":
        reach = _value(claim, effect.detectable(claim.relation)).removeprefix("+")
        what = f"equality within {reach}" if claim.relation == "equal" else f"an effect of {reach}"
        return f"{lead}. This much data would have shown {what} four times in five."
    return f"{lead}, but smaller than the {size} of interest." if decision.small else f"{lead}."
