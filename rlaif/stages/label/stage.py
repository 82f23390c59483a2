"""stage=label: the labeler's preferences on the training pairs, and its alignment on the gold pairs."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from rlaif.backends.openai.backend import OpenAIBackend
from rlaif.data.encode import Cuts
from rlaif.io import read_jsonl, read_records, write_records
from rlaif.labelers import LabelResult
from rlaif.records import Pair, Preference
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
from rlaif.stages.common.sources import PAIRS_FILE, source
from rlaif.stages.common.stage import Parents, Row, Stage, Work
from rlaif.stages.label.alignment import alignment_items, alignment_report, reliability
from rlaif.store import Artifact, finished_folder

logger = logging.getLogger(__name__)
JUDGEMENTS_FILE = "judgements.jsonl"
GOLD_FILE = "gold_preferences.jsonl"
GOLD_JUDGEMENTS_FILE = "gold_judgements.jsonl"


def _build(ctx: Context, folder: Path, parents: Parents) -> dict[str, Any]:
    labeler = ctx.labeler("labeler", ctx.options.seeds.label, stored=True)
    earlier = (folder / JUDGEMENTS_FILE).exists() or finished_folder(folder).exists()
    pairs = _training_pairs(parents["sample"])
    cuts = Cuts()
    gold_pairs = ctx.encoder.fitting(ctx.task.gold_pairs, cuts=cuts)
    started = time.perf_counter()
    both = [*pairs, *gold_pairs]
    result = labeler.label(both)  # in one call, so that a bound that stops it counts everything to be judged
    seconds = time.perf_counter() - started
    _write(folder, result, {pair.id for pair in gold_pairs})
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


def _training_pairs(sample: Artifact) -> list[Pair]:
    """The pairs to label, without their own gold: alignment is measured on the gold pairs only."""
    return [replace(p, gold=None, gold_source=None) for p in read_records(sample.file(PAIRS_FILE), Pair)]


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


def _config(ctx: Context) -> dict[str, Any]:
    identity = labeler_identity(ctx, "labeler", ctx.options.seeds.label)
    return {"labeler": identity, "max_unparsed": ctx.options.labeler.max_unparsed, "encoding": ctx.encoding}


def _work(ctx: Context) -> Work:
    options = ctx.options.sample
    pairs: list[Pair] = list(ctx.task.gold_pairs)
    if source(ctx) == "dataset":
        pairs += ctx.task.pairs[: options.num_prompts]
    else:
        prompts = ctx.task.train[-options.num_prompts :]
        pairs += filler_pairs(ctx, [p for p in prompts for _ in range(options.num_samples)])
    return labeling_work(ctx, "labeler", ctx.options.seeds.label, pairs)


def _check(ctx: Context) -> None:
    """Options and templates are read, and rejected, when the labeler is created."""
    labeler_identity(ctx, "labeler", ctx.options.seeds.label)


def _items(ctx: Context, built: Parents) -> list[Row]:
    """One row per gold pair: what `label/alignment` is the mean of."""
    return alignment_items(ctx.task.gold_pairs, read_records(built["label"].file(GOLD_FILE), Preference))


def _tables(ctx: Context, built: Parents) -> dict[str, list[Row]]:
    """Judgements to read, the reliability diagram over the gold pairs, and rates by confidence and length."""
    label = built["label"]
    gold = read_records(label.file(GOLD_FILE), Preference)
    pairs = [*_training_pairs(built["sample"]), *ctx.task.gold_pairs]
    preferences = [*read_records(label.file(PREFERENCES_FILE), Preference), *gold]
    return {
        "judgements": _judgement_rows(ctx, built),
        "reliability": reliability(ctx.task.gold_pairs, gold),
        "label_confidence": confidence_bins(pairs, preferences),
        "label_length": length_bins(ctx.task.gold_pairs, gold),
    }


STAGE = Stage(
    "label",
    4,
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
