"""stage=label: the labeler's preferences on the training pairs, and its alignment on the gold pairs."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from rlaif.backends.openai.backend import OpenAIBackend
from rlaif.data.encode import Cuts
from rlaif.io import read_jsonl, read_records, write_jsonl, write_records
from rlaif.labelers import LabelResult
from rlaif.records import Judgement, Pair, Preference
from rlaif.stages.common.context import Context
from rlaif.stages.common.labeling import (
    PREFERENCES_FILE,
    check_unread,
    cost_metrics,
    filler_pairs,
    labeler_identity,
    labeling_work,
)
from rlaif.stages.common.limits import cut_metrics
from rlaif.stages.common.measures.bins import confidence_bins, length_bins
from rlaif.stages.common.measures.reading import LABEL_RULES, label_cases, rationale_texts, reading_rows
from rlaif.stages.common.measures.refusals import REFUSALS_FILE, Refusals
from rlaif.stages.common.people import need_references, people_identity, with_gold
from rlaif.stages.common.sources import PAIRS_FILE, source
from rlaif.stages.common.stage import Parents, Row, Stage, Work
from rlaif.stages.label.alignment import (
    alignment_items,
    alignment_report,
    asking_items,
    own_gold,
    reliability,
    subset_rows,
)
from rlaif.store import finished_folder

logger = logging.getLogger(__name__)
JUDGEMENTS_FILE = "judgements.jsonl"
GOLD_FILE = "gold_preferences.jsonl"
GOLD_JUDGEMENTS_FILE = "gold_judgements.jsonl"
VERDICTS_FILE = "gold.jsonl"  # what alignment is measured against: a pair's id, gold and its source


def _build(ctx: Context, folder: Path, parents: Parents) -> dict[str, Any]:
    labeler = ctx.labeler("labeler", ctx.options.seeds.label, stored=True)
    earlier = (folder / JUDGEMENTS_FILE).exists() or finished_folder(folder).exists()
    pairs = with_gold(ctx, read_records(parents["sample"].file(PAIRS_FILE), Pair))
    cuts = Cuts()
    gold_pairs = ctx.encoder.fitting(_gold_pairs(ctx), cuts=cuts)
    started = time.perf_counter()
    both = _independent(ctx, [*pairs, *gold_pairs])
    result = labeler.label(both)  # in one call, so that a bound that stops it counts everything to be judged
    seconds = time.perf_counter() - started
    _write(folder, result, {pair.id for pair in gold_pairs})
    write_jsonl(folder / VERDICTS_FILE, _verdicts(both))
    report: dict[str, Any] = alignment_report(both, result.preferences, result.judgements)
    report |= cost_metrics(ctx, "labeler", result.counters, "label")
    report["label/reused"] = result.counters["reused"]
    # If the same labels were made before, everything not reused is asked again: calls that failed then.
    report["label/asked_again"] = result.counters["asked" if earlier else "asked_again"]
    report["label/pairs_per_s"] = len(both) / seconds if result.counters["asked"] else 0.0
    report["label/n"] = len(pairs)
    report |= cut_metrics(ctx, "label", cuts, "gold pairs", shown_whole=True)
    said = labeler.backend.said() if isinstance(labeler.backend, OpenAIBackend) else None
    if said is not None:
        report["label/server"] = said
    if ctx.options.labeler.retry is not None:
        logger.info("labeler.retry: %d answers were asked again", report["label/asked_again"])
    check_unread(ctx, "labeler", result.unread, "the labeler's judgements")
    return report


def _gold_pairs(ctx: Context) -> Sequence[Pair]:
    """Pairs that are labelled for their gold alone. A judge by reference knows what constructed pairs are made of."""
    by_reference = ctx.options.labeler.readout.kind == "reference"
    return [pair for pair in ctx.task.gold_pairs if not (by_reference and pair.gold_source == "constructed")]


def _independent(ctx: Context, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs, without the verdicts of simulated people if the labeler is one of them."""
    if ctx.options.labeler.readout.kind != "reference":
        return list(pairs)
    return [replace(p, gold=None, gold_source=None) if p.gold_source == "simulated" else p for p in pairs]


def _verdicts(pairs: Sequence[Pair]) -> list[Row]:
    return [{"pair_id": p.id, "gold": p.gold, "source": p.gold_source} for p in pairs if p.gold is not None]


def _measured(ctx: Context, built: Parents) -> tuple[list[Pair], list[Preference]]:
    """Every labelled pair, with the gold that its alignment was measured against, and the preferences."""
    label = built["label"]
    gold = {row["pair_id"]: (row["gold"], row["source"]) for row in read_jsonl(label.file(VERDICTS_FILE))}
    every = [*read_records(built["sample"].file(PAIRS_FILE), Pair), *ctx.task.gold_pairs]
    pairs = [
        replace(pair, gold=value, gold_source=origin)
        for pair in every
        for value, origin in [gold.get(pair.id, (None, None))]
    ]
    files = (PREFERENCES_FILE, GOLD_FILE)
    return pairs, [row for file in files for row in read_records(label.file(file), Preference)]


def _write(folder: Path, result: LabelResult, gold_ids: set[str]) -> None:
    for file, gold_file, records in (
        (PREFERENCES_FILE, GOLD_FILE, result.preferences),
        (JUDGEMENTS_FILE, GOLD_JUDGEMENTS_FILE, result.judgements),
    ):
        write_records(folder / file, [r for r in records if r.pair_id not in gold_ids])
        write_records(folder / gold_file, [r for r in records if r.pair_id in gold_ids])


def _judgement_rows(ctx: Context, built: Parents) -> list[Row]:
    """`report.samples` judgements with the pairs they are about, for reading."""
    pairs = {p.id: p for p in read_records(built["sample"].file(PAIRS_FILE), Pair)}
    rows = islice(read_jsonl(built["label"].file(JUDGEMENTS_FILE)), ctx.options.report.samples)
    shown = ((pairs[row["pair_id"]], row) for row in rows)
    return [
        {"prompt": pair.prompt, "response_a": pair.response_a, "response_b": pair.response_b, **row}
        for pair, row in shown
    ]


def _reading(ctx: Context, built: Parents, pairs: list[Pair], preferences: list[Preference]) -> list[Row]:
    """Labelled pairs that rules choose for reading, with the labeler's rationales if it wrote any."""
    files = (JUDGEMENTS_FILE, GOLD_JUDGEMENTS_FILE) if ctx.options.labeler.cot else ()
    judgements = [row for file in files for row in read_records(built["label"].file(file), Judgement)]
    refusals = Refusals.load(ctx.templates.place(REFUSALS_FILE))
    cases = label_cases(pairs, preferences, rationale_texts(judgements), refusals)
    return reading_rows(cases, LABEL_RULES, ("Response a", "Response b"))


def _config(ctx: Context) -> dict[str, Any]:
    identity = labeler_identity(ctx, "labeler", ctx.options.seeds.label)
    return {
        "labeler": identity,
        "max_unparsed": ctx.options.labeler.max_unparsed,
        "encoding": ctx.encoding,
        **people_identity(ctx),
    }


def _work(ctx: Context) -> Work:
    options = ctx.options.sample
    pairs: list[Pair] = list(_gold_pairs(ctx))
    if source(ctx) == "dataset":
        pairs += ctx.task.pairs[: options.num_prompts]
    else:
        prompts = ctx.task.train[-options.num_prompts :]
        pairs += filler_pairs(ctx, [p for p in prompts for _ in range(options.num_samples)])
    return labeling_work(ctx, "labeler", ctx.options.seeds.label, pairs)


def _check(ctx: Context) -> None:
    """Options and templates are read, and rejected, when the labeler is created."""
    need_references(ctx, "labeler")
    labeler_identity(ctx, "labeler", ctx.options.seeds.label)


def _items(ctx: Context, built: Parents) -> list[Row]:
    """Rows per pair: what `label/alignment` and its relatives are the means of, and what the labeler was asked."""
    pairs, preferences = _measured(ctx, built)
    files = (JUDGEMENTS_FILE, GOLD_JUDGEMENTS_FILE)
    calls = [call for file in files for call in read_records(built["label"].file(file), Judgement)]
    found: dict[str, Row] = {}
    for row in (*alignment_items(pairs, preferences), *asking_items(pairs, preferences, calls)):
        found[row["id"]] = found.get(row["id"], {}) | row
    return list(found.values())


def _tables(ctx: Context, built: Parents) -> dict[str, list[Row]]:
    """Judgements to read, alignment by subset, the reliability diagram, and rates by confidence and length."""
    pairs, preferences = _measured(ctx, built)
    return {
        "judgements": _judgement_rows(ctx, built),
        "reading_labels": _reading(ctx, built, pairs, preferences),
        "label_subsets": subset_rows(pairs, preferences),
        "reliability": reliability(pairs, preferences),
        "label_confidence": confidence_bins(own_gold(pairs), preferences),
        "label_length": length_bins(own_gold(pairs), preferences),
    }


STAGE = Stage(
    "label",
    6,
    "label",
    lambda ctx: ("sample",),
    _config,
    _build,
    _work,
    _check,
    again=lambda ctx: ctx.options.labeler.retry is not None,
    items=_items,
    tables=_tables,
)
