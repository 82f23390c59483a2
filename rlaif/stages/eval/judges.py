"""The judges of an evaluation: each one's verdicts, the verdict that counts, and how far they agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from rlaif.io import read_jsonl, write_jsonl
from rlaif.io.plain import json_ready
from rlaif.labelers import Labeler
from rlaif.options.job import called
from rlaif.options.read import plain
from rlaif.records import Comparison, Pair, Preference, Sample
from rlaif.stages.common.context import Context
from rlaif.stages.common.labeling import check_unread, cost_metrics, labeler_identity
from rlaif.stages.common.measures.joining import cluster, with_bounds
from rlaif.stages.common.measures.panel import panel
from rlaif.stages.common.measures.win_rate import compare, win_rate_items
from rlaif.stages.common.stage import Row
from rlaif.stages.eval.relatives import party
from rlaif.stats import clustered_sign_test, kappa_interval, proportion_interval
from rlaif.store import Artifact

JUDGES_FILE, AGREEMENT_FILE, VERDICTS_FILE = "judges.jsonl", "judge_agreement.jsonl", "judge_verdicts.jsonl"
Sides = Sequence[tuple[Sample, Sample]]
"""The responses of policy and baseline to each prompt."""


@dataclass(frozen=True)
class Judged:
    """What one judge said: its key, preferences for the policy, verdicts, and what its answers cost."""

    key: str
    preferences: Sequence[Preference]
    comparisons: Sequence[Comparison]
    counters: Mapping[str, float]


@dataclass(frozen=True)
class Judges:
    """The judges at some keys of a job, ready to be asked, and the verdict that counts among theirs."""

    ctx: Context
    labelers: Mapping[str, Labeler]

    @classmethod
    def of(cls, ctx: Context, keys: Sequence[str]) -> Judges:
        """Raises UserError for a judge that cannot be had."""
        return cls(ctx, {key: ctx.labeler(key, ctx.options.seeds.eval, stored=True) for key in keys})

    def ask(self, sides: Sides) -> list[Judged]:
        """All judges on the same responses. Raises UserError above the `max_unparsed` of one of them."""
        pairs, found = [Pair.between(a, b) for a, b in sides], []
        for key, labeler in self.labelers.items():
            judged = labeler.label(pairs)
            check_unread(self.ctx, key, judged.unread, f"the {called(key)}'s judgements")
            verdicts = self._compared(sides, judged.preferences, self.ctx.options.eval.tie_margin)
            found.append(Judged(key, judged.preferences, verdicts, judged.counters))
        return found

    def headline(self, judged: Sequence[Judged], sides: Sides) -> list[Comparison]:
        """The verdicts that count: the first judge's, or those of the panel."""
        options = self.ctx.options
        deciding = [one for one in judged if one.key in options.deciding_keys]
        if len(deciding) == 1:
            return list(deciding[0].comparisons)
        preferences, margin = panel(
            options.eval.panel,
            [Pair.between(a, b) for a, b in sides],
            [one.preferences for one in deciding],
            tie_margin=options.eval.tie_margin,
        )
        return self._compared(sides, preferences, margin)

    def _compared(self, sides: Sides, preferences: Sequence[Preference], margin: float) -> list[Comparison]:
        return compare(
            [Pair.between(a, b) for a, b in sides],
            preferences,
            [(a.tokens, b.tokens) for a, b in sides],
            tie_margin=margin,
            references=[a.reference for a, _ in sides],
        )


def judge_name(ctx: Context) -> str:
    """What reports call whoever decides: the judge, or the panel and its members."""
    names = [ctx.options.named(key) for key in ctx.options.deciding_keys]
    how = ctx.options.eval.panel
    return names[0] if len(names) == 1 else f"panel, {how} of {', '.join(names)}"


def judges_config(ctx: Context, *, every: bool) -> dict[str, Any]:
    """What the verdicts depend on, as entries for digests: of `every` judge, or of those that decide.

    A single judge that decides is the same whether it is `judge` or one of `judges`.
    """
    seed, options = ctx.options.seeds.eval, ctx.options
    keys = options.judge_keys if every else options.deciding_keys
    name = options.named(keys[0]) if options.jury else options.judge.name
    first = {"judge": labeler_identity(ctx, keys[0], seed), "name": name}
    if not options.jury or (not every and len(keys) == 1):
        return first
    members = [[options.named(key), labeler_identity(ctx, key, seed)] for key in keys]
    return {**first, "judges": members, "panel": options.eval.panel}


def cost(ctx: Context, asked: Sequence[tuple[str, Mapping[str, float]]]) -> dict[str, float]:
    """What the answers of all judges, given by key with their counters, cost together.

    `eval/usd` only if all prices are known.
    """
    each = [cost_metrics(ctx, key, counters, "eval") for key, counters in asked]
    calls, estimated = (
        math.fsum(counters[name] for _, counters in asked) for name in ("asked", "usage_estimated")
    )
    metrics: dict[str, float] = {"eval/asked_again": sum(int(own["asked_again"]) for _, own in asked)}
    if all("eval/usd" in one for one in each):
        metrics["eval/usd"] = math.fsum(one["eval/usd"] for one in each)
    return metrics | ({"eval/usage_estimated": estimated / calls} if estimated else {})


def write_judges(ctx: Context, folder: Path, judged: Sequence[Judged]) -> dict[str, float]:
    """Writes the tables of several judges; returns their metrics. Nothing if there is only `judge`."""
    if not ctx.options.jury:
        return {}
    rows, agreement = [_judge_row(ctx, one) for one in judged], _agreement_rows(ctx, judged)
    write_jsonl(folder / JUDGES_FILE, map(json_ready, rows))
    write_jsonl(folder / AGREEMENT_FILE, map(json_ready, agreement))
    write_jsonl(folder / VERDICTS_FILE, _verdict_rows(ctx, judged))
    metrics: dict[str, float] = {"eval/judges": len(rows)}
    for row in rows:
        name = row["judge"]
        for end in ("", "_ci_low", "_ci_high"):
            metrics[f"eval/win_rate_by_{name}{end}"] = row[f"win_rate{end}"]
    kappas = [row["kappa"] for row in agreement if not math.isnan(row["kappa"])]
    agreed = [row["agreement"] for row in agreement if row["n"]]
    metrics |= {"eval/judge_agreement": fmean(agreed)} if agreed else {}
    return metrics | ({"eval/judge_kappa": fmean(kappas)} if kappas else {})


def _judge_row(ctx: Context, judged: Judged) -> Row:
    key, items = judged.key, win_rate_items(judged.comparisons)
    values, prompts = [row["eval/win_rate"] for row in items], [cluster(row) for row in items]
    own, price = party(plain(ctx.options.asked(key)), plain(ctx.options.engine_at(key))), ctx.price(key)
    tokens = {name: judged.counters[name] for name in ("tokens_in", "tokens_out", "tokens_cached")}
    return {
        "judge": ctx.options.named(key),
        "model": own.model,
        "family": own.family,
        "decides": key in ctx.options.deciding_keys,
        **with_bounds("win_rate", proportion_interval(values, prompts)),
        "p": clustered_sign_test([value - 0.5 for value in values], prompts),
        "n": len(items),
        "unread_rate": 1 - len(items) / max(1, len(judged.comparisons)),
        "usd": None if price is None else price.usd(*tokens.values()),
        **tokens,
    }


def _agreement_rows(ctx: Context, judged: Sequence[Judged]) -> list[Row]:
    """Raw agreement and Cohen's kappa of win, tie and loss, of every two judges on the pairs that both could read."""
    rows = []
    for one, two in combinations(judged, 2):
        first, second = ({row["id"]: row for row in win_rate_items(own.comparisons)} for own in (one, two))
        both = [name for name in first if name in second]
        x, y = ([own[name]["eval/win_rate"] for name in both] for own in (first, second))
        prompts = [cluster(first[name]) for name in both]
        same = [float(a == b) for a, b in zip(x, y, strict=True)]
        kappa = kappa_interval(x, y, prompts, seed=ctx.options.seeds.eval)
        rows.append(
            {
                "first": ctx.options.named(one.key),
                "second": ctx.options.named(two.key),
                **with_bounds("agreement", proportion_interval(same, prompts)),
                **with_bounds("kappa", kappa),
                "n": len(both),
            }
        )
    return rows


def _verdict_rows(ctx: Context, judged: Sequence[Judged]) -> list[Row]:
    """A row per judge and comparison that it could read: 1 a win of the policy, 0.5 a tie, 0 a loss."""
    rows = []
    for one in judged:
        for row in win_rate_items(one.comparisons):
            value = row.pop("eval/win_rate")
            rows.append({**row, "judge": ctx.options.named(one.key), "value": value})
    return rows


def judge_tables(evaluation: Artifact) -> dict[str, list[Row]]:
    """The tables `judges` and `judge_agreement` of an evaluation by several judges; none of one by `judge`."""
    found = {
        "judges": _rows(evaluation, JUDGES_FILE),
        "judge_agreement": _rows(evaluation, AGREEMENT_FILE),
    }
    return {name: rows for name, rows in found.items() if rows}


def read_verdicts(evaluation: Artifact) -> list[Row]:
    """Each judge's verdicts in an evaluation by several; empty for one by `judge`."""
    return _rows(evaluation, VERDICTS_FILE)


def _rows(evaluation: Artifact, file: str) -> list[Row]:
    return list(read_jsonl(evaluation.file(file))) if file in evaluation.manifest["files"] else []
