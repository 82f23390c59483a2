"""stage=label: the labeler's preferences on the training pairs, and its alignment on the gold pairs."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlaif.artifacts import Artifact, finished_folder
from rlaif.backends.openai import OpenAIBackend
from rlaif.data.encode import Cuts
from rlaif.errors import UserError
from rlaif.evaluation import alignment_items, alignment_report, confidence_bins, length_bins, reliability
from rlaif.io import read_jsonl, read_records, write_records
from rlaif.labelers import LabelerOptions, LabelResult, TemplateSet, Unread, check_retry, estimate
from rlaif.records import Pair, Preference, Prompt
from rlaif.stages.context import Context, plain
from rlaif.stages.cost import seconds_elsewhere, usd_of
from rlaif.stages.cuts import cut_metrics
from rlaif.stages.graph import Parents, Stage, Work
from rlaif.stages.sample import PAIRS_FILE, source
from rlaif.stages.sizes import CHARS_PER_TOKEN, response_tokens

logger = logging.getLogger(__name__)

PREFERENCES_FILE = "preferences.jsonl"
JUDGEMENTS_FILE = "judgements.jsonl"
GOLD_FILE = "gold_preferences.jsonl"
GOLD_JUDGEMENTS_FILE = "gold_judgements.jsonl"


def _build(ctx: Context, folder: Path, parents: Parents) -> dict[str, Any]:
    labeler = ctx.labeler("labeler", ctx.cfg.seeds.label, stored=True)
    earlier = (folder / JUDGEMENTS_FILE).exists() or finished_folder(folder).exists()
    pairs = _training_pairs(parents["sample"])
    cuts = Cuts()
    gold_pairs = ctx.encoder.fitting(ctx.task.gold_pairs, cuts=cuts)
    started = time.perf_counter()
    both = [*pairs, *gold_pairs]
    result = labeler.label(both)  # at once: a bound that stops it then counts all that is to be judged
    seconds = time.perf_counter() - started
    _write(folder, result, {pair.id for pair in gold_pairs})
    report: dict[str, Any] = alignment_report(both, result.preferences, result.judgements)
    report |= cost_metrics(ctx, "labeler", result.counters, "label")
    report["label/reused"] = result.counters["reused"]
    # Where the same labels were made before, all that is not reused is asked again: calls that failed then.
    report["label/asked_again"] = result.counters["asked" if earlier else "asked_again"]
    report["label/pairs_per_s"] = len(both) / seconds if result.counters["asked"] else 0.0
    report["label/n"] = len(pairs)
    report |= cut_metrics(ctx, "label", cuts, "gold pairs", shown_whole=True)
    said = labeler.backend.said() if isinstance(labeler.backend, OpenAIBackend) else None
    if said is not None:
        report["label/server"] = said
    if ctx.cfg.labeler.retry is not None:
        logger.info("labeler.retry: %d answers were asked again", report["label/asked_again"])
    check_unread(ctx, "labeler", result.unread, "the labeler's judgements")
    return report


def _training_pairs(sample: Artifact) -> list[Pair]:
    """The pairs to label, without any gold of their own: alignment is of the gold pairs alone."""
    return [replace(p, gold=None, gold_source=None) for p in read_records(sample.file(PAIRS_FILE), Pair)]


def _write(folder: Path, result: LabelResult, gold_ids: set[str]) -> None:
    for file, gold_file, records in (
        (PREFERENCES_FILE, GOLD_FILE, result.preferences),
        (JUDGEMENTS_FILE, GOLD_JUDGEMENTS_FILE, result.judgements),
    ):
        write_records(folder / file, [r for r in records if r.pair_id not in gold_ids])
        write_records(folder / gold_file, [r for r in records if r.pair_id in gold_ids])


def cost_metrics(ctx: Context, key: str, counters: Mapping[str, float], prefix: str) -> dict[str, float]:
    """`<prefix>/usd` of the calls asked in this run; where the price is not known, nothing but a warning.

    `<prefix>/usage_estimated`, the share of the calls whose tokens are an estimate, where there are any.
    """
    price = ctx.price(key)
    estimated = counters["usage_estimated"]
    marked = {f"{prefix}/usage_estimated": estimated / counters["asked"]} if estimated else {}
    if marked and ctx.run is not None:
        ctx.run.alert(
            "usage estimated",
            f"{marked[f'{prefix}/usage_estimated']:.0%} of the {key}'s answers did not tell their tokens: they are"
            " counted as one for each 4 bytes of text",
        )
    if price is not None:
        return {f"{prefix}/usd": usd_of(price, counters), **marked}
    if ctx.run is not None:
        ctx.run.alert(
            "cost unknown",
            f"the price of {ctx.priced_as(key)} is not in conf/prices/default.yaml: {prefix}/usd is left out",
        )
    return marked


def check_unread(ctx: Context, key: str, unread: Unread, what: str) -> None:
    """Raises UserError with the cause where a larger share than `max_unparsed` of `what` gave no value.

    Judgements count here, not preferences: two orders that disagree were both read.
    """
    node = ctx.cfg[key]
    if unread.rate > node.max_unparsed:
        sentence = unread.sentence(
            key,
            what,
            limit=node.max_unparsed,
            min_mass=node.min_mass,
            hints=low_mass_hints(ctx, key),
        )
        remarks = ctx.server_remarks(key)
        raise UserError(f"{sentence}. Of the server: {'; '.join(remarks)}" if remarks else sentence)


def low_mass_hints(ctx: Context, key: str) -> list[str]:
    """What to change where a model's next token is none of the choices."""
    node, backend = ctx.cfg[key], ctx.cfg.backend
    cue = "score_cue" if node.readout.kind == "score" else "cue"
    hints = [f"another {cue} (conf/templates/{ctx.cfg.task.templates}/task.yaml)"]
    if node.readout.kind == "choice":
        hints.insert(0, f"{key}.readout.kind=text")
    if node.backend == "openai":
        other = "completions" if backend.api == "chat" else "chat"
        hints.insert(0, f"backend.api={other}")
    return hints


def trust_gate(ctx: Context, metrics: dict[str, Any]) -> dict[str, Any]:
    """Whether anything should stand on labels with these metrics.

    Alignment whose interval reaches below 0.5 may be chance: an alert, and `label/warning` for the summary.
    Raises UserError below `labeler.min_alignment`, or where that bound cannot be checked.
    """
    alignment, wanted = metrics.get("label/alignment"), ctx.cfg.labeler.min_alignment
    if alignment is None:
        if wanted is not None:
            raise UserError(
                f"labeler.min_alignment={wanted} cannot be checked, since no gold pair has a readable "
                "preference: give gold labels, or write labeler.min_alignment=null"
            )
        return {}
    if wanted is not None and alignment < wanted:
        raise UserError(
            f"the {_measured(ctx, metrics)}, below labeler.min_alignment={wanted}, so nothing is built on its "
            "labels: choose another labeler, or write a lower bound"
        )
    if not may_be_chance(metrics):
        return {}
    below = metrics["label/alignment_ci_high"] < 0.5
    doubt = "it prefers the worse responses" if below else "it may be guessing"
    return warn(
        ctx,
        "label/warning",
        "labeler below chance" if below else "labeler at chance",
        f"The {_measured(ctx, metrics)}: {doubt}, and so may all that is built on its labels.",
    )


def may_be_chance(metrics: dict[str, Any]) -> bool:
    """Whether the interval of the alignment reaches below 0.5."""
    low = metrics.get("label/alignment_ci_low")
    return low is not None and low < 0.5


def warn(ctx: Context, name: str, title: str, sentence: str) -> dict[str, Any]:
    """Alert, and the summary entry `name` that carries the sentence to the reports."""
    if ctx.run is not None:
        ctx.run.alert(title, sentence)
    return {name: sentence}


def _measured(ctx: Context, metrics: dict[str, Any]) -> str:
    estimate, low, high, count = (metrics[f"label/alignment{x}"] for x in ("", "_ci_low", "_ci_high", "_n"))
    return (
        f"labeler's alignment is {estimate:.3f} (labeler {ctx.cfg.labeler.name}, 95% interval {low:.3f} to "
        f"{high:.3f}, {count} gold pairs)"
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
    pairs: list[Pair] = list(ctx.task.gold_pairs)
    if source(ctx) == "dataset":
        pairs += ctx.task.pairs[: node.num_prompts]
    else:
        prompts = ctx.task.train[-node.num_prompts :]
        pairs += filler_pairs(ctx, [p for p in prompts for _ in range(node.num_samples)])
    return labeling_work(ctx, "labeler", ctx.cfg.seeds.label, pairs)


def filler_pairs(ctx: Context, prompts: Sequence[Prompt]) -> list[Pair]:
    """A pair of responses of the expected length for each prompt, to estimate by before there are any."""
    filler = "x" * int(response_tokens(ctx) * CHARS_PER_TOKEN)
    return [Pair(p.id, p.id, p.prompt, filler, filler, "policy") for p in prompts]


def labeling_work(ctx: Context, key: str, seed: int, pairs: Sequence[Pair]) -> Work:
    """What the labeler at `key` would read, write and cost for `pairs`, were nothing of it stored."""
    node, price = plain(ctx.cfg[key]), ctx.price(key)
    templates = TemplateSet.load(Path(ctx.cfg.paths.code) / "conf" / "templates" / ctx.cfg.task.templates)
    guess = estimate(pairs, templates, LabelerOptions.from_mapping(node, seed=seed))
    return Work(
        forward=guess.tokens_in * (2.0 if ctx.cfg.models.tiny else 1.0),
        decoded=guess.tokens_out,
        usd=None if price is None else price.usd(guess.tokens_in, guess.tokens_out, 0.0),
        seconds=seconds_elsewhere(node["backend"], plain(ctx.cfg.backend), guess),
    )


def _check(ctx: Context) -> None:
    """Options and templates are read, and refused, when the labeler is made."""
    labeler_identity(ctx, "labeler", ctx.cfg.seeds.label)


def _again(ctx: Context) -> bool:
    return check_retry("labeler", ctx.cfg.labeler.retry) is not None


def item_rows(ctx: Context, label: Artifact) -> list[dict[str, Any]]:
    """One row for each gold pair: what `label/alignment` is the mean of."""
    return alignment_items(ctx.task.gold_pairs, read_records(label.file(GOLD_FILE), Preference))


def reliability_rows(ctx: Context, label: Artifact) -> list[dict[str, Any]]:
    """Bins of the reliability diagram over the gold pairs."""
    return reliability(ctx.task.gold_pairs, read_records(label.file(GOLD_FILE), Preference))


def bin_rows(ctx: Context, label: Artifact, sample: Artifact) -> dict[str, list[dict[str, Any]]]:
    """The tables behind `label/confidence_*` and `label/length_*`."""
    gold = read_records(label.file(GOLD_FILE), Preference)
    pairs = [*_training_pairs(sample), *ctx.task.gold_pairs]
    preferences = [*read_records(label.file(PREFERENCES_FILE), Preference), *gold]
    return {
        "label_confidence": confidence_bins(pairs, preferences),
        "label_length": length_bins(ctx.task.gold_pairs, gold),
    }


STAGE = Stage("label", 4, "label", lambda ctx: ("sample",), _config, _build, _work, _check, again=_again)
