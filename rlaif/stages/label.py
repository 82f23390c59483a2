"""stage=label: the labeler's preferences on the training pairs, and its alignment on the gold pairs."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlaif.artifacts import Artifact
from rlaif.errors import UserError
from rlaif.evaluation import alignment_items, alignment_report, reliability
from rlaif.io import read_jsonl, read_records, write_records
from rlaif.labelers import LabelerOptions, LabelResult, TemplateSet, estimate
from rlaif.records import Pair, Preference
from rlaif.stages.context import Context, plain
from rlaif.stages.graph import Parents, Stage, Work
from rlaif.stages.sample import PAIRS_FILE, source
from rlaif.stages.sizes import response_tokens

logger = logging.getLogger(__name__)

PREFERENCES_FILE = "preferences.jsonl"
JUDGEMENTS_FILE = "judgements.jsonl"
GOLD_FILE = "gold_preferences.jsonl"
GOLD_JUDGEMENTS_FILE = "gold_judgements.jsonl"


def _build(ctx: Context, folder: Path, parents: Parents) -> dict[str, Any]:
    labeler = ctx.labeler("labeler", ctx.cfg.seeds.label, stored=True)
    pairs = [
        replace(p, gold=None, gold_source=None)
        for p in read_records(parents["sample"].file(PAIRS_FILE), Pair)
    ]
    gold_pairs = ctx.encoder.fitting(ctx.task.gold_pairs)
    started = time.perf_counter()
    result = labeler.label(pairs)
    gold = labeler.label(gold_pairs)
    seconds = time.perf_counter() - started
    write_records(folder / PREFERENCES_FILE, result.preferences)
    write_records(folder / JUDGEMENTS_FILE, result.judgements)
    write_records(folder / GOLD_FILE, gold.preferences)
    write_records(folder / GOLD_JUDGEMENTS_FILE, gold.judgements)
    report = alignment_report(
        [*pairs, *gold_pairs],
        [*result.preferences, *gold.preferences],
        [*result.judgements, *gold.judgements],
    )
    asked = result.counters["asked"] + gold.counters["asked"]
    report["label/reused"] = result.counters["reused"] + gold.counters["reused"]
    report["label/pairs_per_s"] = (len(pairs) + len(gold_pairs)) / seconds if asked else 0.0
    report["label/n"] = len(pairs)
    _check_unparsed(ctx, [result, gold])
    return report


def _check_unparsed(ctx: Context, results: Sequence[LabelResult]) -> None:
    """Judgements count here, not preferences: two orders that disagree were both read."""
    lost = sum(r.counters["unparsed"] + r.counters["failed"] for r in results)
    rate, limit = lost / max(sum(r.counters["judgements"] for r in results), 1), ctx.cfg.labeler.max_unparsed
    if rate > limit:
        raise UserError(
            f"{rate:.1%} of the labeler's judgements could not be read, more than labeler.max_unparsed={limit}: "
            "change the prompt or the readout, or raise the limit (the answers are kept)"
        )


def trust_gate(ctx: Context, metrics: dict[str, Any]) -> None:
    """Warn of a labeler at or below chance; stop where `labeler.min_alignment` says so."""
    alignment, low, wanted = (
        metrics.get("label/alignment"),
        metrics.get("label/alignment_ci_low"),
        ctx.cfg.labeler.min_alignment,
    )
    if alignment is None:
        return
    if wanted is not None and alignment < wanted:
        raise UserError(
            f"the labeler's alignment is {alignment:.3f}, below labeler.min_alignment={wanted}: choose another labeler"
        )
    if low is not None and low < 0.5 and ctx.run is not None:
        ctx.run.alert(
            "labeler at chance",
            f"alignment {alignment:.3f} with a lower bound of {low:.3f}: "
            "what is trained on these labels may be trained on noise",
        )


def judgement_rows(ctx: Context, label: Any, sample: Any, limit: int) -> list[dict[str, Any]]:
    """Judgements beside the pairs they are about, for reading."""
    pairs = {p.id: p for p in read_records(sample.file(PAIRS_FILE), Pair)}
    rows = []
    for row in read_jsonl(label.file(JUDGEMENTS_FILE)):
        pair = pairs[row["pair_id"]]
        rows.append(
            {"prompt": pair.prompt, "response_a": pair.response_a, "response_b": pair.response_b, **row}
        )
        if len(rows) == limit:
            break
    return rows


def labeler_identity(ctx: Context, key: str, seed: int) -> dict[str, Any]:
    """What the labels of `key` depend on, without loading a model."""
    return ctx.labeler(key, seed, stored=False).identity()


def _config(ctx: Context) -> dict[str, Any]:
    identity = labeler_identity(ctx, "labeler", ctx.cfg.seeds.label)
    return {"labeler": identity, "max_unparsed": ctx.cfg.labeler.max_unparsed, "encoding": ctx.encoding}


def _work(ctx: Context) -> Work:
    node = ctx.cfg.sample
    templates = TemplateSet.load(Path(ctx.cfg.paths.code) / "conf" / "templates" / ctx.cfg.task.templates)
    options = LabelerOptions.from_mapping(plain(ctx.cfg.labeler), seed=ctx.cfg.seeds.label)
    pairs: list[Pair] = list(ctx.task.gold_pairs)
    if source(ctx) == "dataset":
        pairs += ctx.task.pairs[: node.num_prompts]
    else:
        filler = "x" * int(response_tokens(ctx) * 3.3)
        prompts = ctx.task.train[-node.num_prompts :]
        pairs += [
            Pair(p.id, p.id, p.prompt, filler, filler, "policy")
            for p in prompts
            for _ in range(node.num_samples)
        ]
    if ctx.cfg.labeler.backend == "scripted":
        return Work()
    guess = estimate(pairs, templates, options)
    return Work(forward=guess.tokens_in * (2.0 if ctx.cfg.models.tiny else 1.0), decoded=guess.tokens_out)


def _check(ctx: Context) -> None:
    """Options and templates are read, and refused, when the labeler is made."""
    labeler_identity(ctx, "labeler", ctx.cfg.seeds.label)


def item_rows(ctx: Context, label: Artifact) -> list[dict[str, Any]]:
    """One row for each gold pair: what `label/alignment` is the mean of."""
    return alignment_items(ctx.task.gold_pairs, read_records(label.file(GOLD_FILE), Preference))


def reliability_rows(ctx: Context, label: Artifact) -> list[dict[str, Any]]:
    """Bins of the reliability diagram over the gold pairs."""
    return reliability(ctx.task.gold_pairs, read_records(label.file(GOLD_FILE), Preference))


STAGE = Stage("label", 1, "label", lambda ctx: ("sample",), _config, _build, _work, _check)
