"""Pairs with the labels of the configured source, split into parts: what a reward model or a policy learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rlaif.data.datamodule import PreferenceRow
from rlaif.errors import UserError
from rlaif.io import read_records
from rlaif.records import Pair, Preference
from rlaif.stages.common.context import Context
from rlaif.stages.common.labeling import PREFERENCES_FILE
from rlaif.stages.common.limits import pair_tokens, prompt_tokens, response_tokens
from rlaif.stages.common.measures.joining import agreement
from rlaif.stages.common.people import people_identity, people_labels, people_options, simulates, with_gold
from rlaif.stages.common.preferences.labels import LabelSource, TrainingRows, labelled, training_rows
from rlaif.stages.common.rows import encode_pairs, response_ids
from rlaif.stages.common.sources import PAIRS_FILE, PARTS, Part, all_held_out, part_of, source
from rlaif.stages.common.stage import Parents, Work


@dataclass(frozen=True)
class PreferenceData:
    """Training rows by phase (trained one after another), validation and test rows, and counts of `stage/*`.

    Labels of training rows are as the loss sees them, those of the others are the label source's own. Noise,
    shuffling, `rm.n` and filters affect only the training rows.
    """

    phases: list[list[PreferenceRow]]
    validation: list[PreferenceRow]
    test: list[PreferenceRow]
    counts: dict[str, float]


@dataclass(frozen=True)
class Learner:
    """Who learns from the preferences: the stage that its metrics are named after, and what it trains, in words."""

    stage: str
    words: str


REWARD_MODEL = Learner("rm", "a reward model")
POLICY = Learner("rl", "a policy")


def label_source(ctx: Context) -> LabelSource:
    """The label source that the configuration asks for."""
    options = ctx.options.rm
    return LabelSource(
        labels=options.labels,
        noise=options.label_noise,
        n=options.n,
        min_confidence=options.min_confidence,
        hard=options.hard_labels,
        confidence_exponent=options.confidence_weight,
        seed=ctx.options.seeds.rm,
    )


def check_labels(ctx: Context, learner: Learner) -> None:
    """Raises UserError for labels that are not available, before anything is built."""
    held = all_held_out(ctx)
    if held and source(ctx) == "dataset":
        raise UserError(
            f"task.gold_fraction={ctx.options.task.gold_fraction} holds out all {held} labelled pairs to measure "
            f"alignment on, so none is left to train {learner.words} on: write a smaller task.gold_fraction, such as "
            "0.2, or sample.source=policy"
        )
    if not label_source(ctx).needs_gold:
        return
    policy = source(ctx) == "policy"
    if not simulates(ctx) and (policy or all(pair.gold is None for pair in ctx.task.pairs)):
        what = "pairs sampled from the policy have" if policy else f"the pairs of task {ctx.task.name} have"
        raise UserError(
            f"rm.labels={ctx.options.rm.labels} trains on gold labels, but {what} none: write rm.labels=ai,"
            " people.simulated=always if the task has references, or sample.source=dataset with task=helpful, harmless,"
            " tldr or a custom file that has labels"
        )


def label_parents(ctx: Context) -> tuple[str, ...]:
    """The stages whose artifacts `preference_data` reads."""
    return ("sample", *(("label",) if label_source(ctx).needs_ai else ()))


def label_identity(ctx: Context) -> dict[str, Any]:
    """What people's labels depend on besides those artifacts, as entries for digests."""
    people = people_options(ctx) if label_source(ctx).needs_gold else {}
    return people_identity(ctx) | {f"people_{name}": value for name, value in people.items()}


def preference_data(ctx: Context, parents: Parents, learner: Learner) -> PreferenceData:
    """Rows of the `sample` artifact's pairs, with the `label` artifact's preferences if there is one."""
    chosen = label_source(ctx)
    rows, equal = _labelled(ctx, parents, chosen, learner)
    parts = _split(ctx, rows)
    trained = training_rows(parts["train"], chosen)
    wanted, available = ctx.options.rm.n, len(parts["train"])
    if wanted is not None and wanted > available:
        ctx.warn(
            "fewer labels than asked for",
            f"rm.n={wanted}, but there are {available} labelled training pairs: all are used; a larger "
            "sample.num_prompts gives more",
        )
    phases = [list(phase) for phase in trained.phases]
    counts = _counts(trained, learner) | equal
    return PreferenceData(phases, parts["validation"], parts["test"], counts)


def gold_named(data: PreferenceData, learner: Learner) -> dict[str, str]:
    """`stage/gold_source`: whose verdicts the gold of the test pairs is."""
    sources = sorted({str(row.pair.gold_source) for row in data.test if row.pair.gold is not None})
    return {f"{learner.stage}/gold_source": ", ".join(sources)} if sources else {}


def pairs_work(ctx: Context) -> tuple[float, float, Work]:
    """(labelled pairs, tokens of one, the trunk's pass over all of them) that a stage has to expect."""
    sample = ctx.options.sample
    if source(ctx) == "policy":
        pairs = sample.num_prompts * sample.num_samples
        tokens = prompt_tokens(ctx) + 2 * response_tokens(ctx)
    else:
        own = ctx.task.pairs[: sample.num_prompts]
        pairs, tokens = len(own), pair_tokens(ctx, own)
    # Sampling has kept what the trunk makes of its responses.
    kept = source(ctx) == "policy" and ctx.options.model.trunk_cache_gb
    return pairs, tokens, Work(forward=0.0 if kept else pairs * tokens)


def trained_pairs(ctx: Context, pairs: float) -> float:
    """How many of so many pairs are trained on."""
    options = ctx.options.rm
    return min(options.n or pairs, pairs * (1 - options.validation_fraction - options.test_fraction))


def _labelled(
    ctx: Context, parents: Parents, chosen: LabelSource, learner: Learner
) -> tuple[list[PreferenceRow], dict[str, float]]:
    """The labelled pairs whose responses differ within the limits, and the count of the others, if any."""
    every = with_gold(ctx, read_records(parents["sample"].file(PAIRS_FILE), Pair))
    ids = ((pair, *response_ids(ctx, pair)) for pair in every)
    pairs = [pair for pair, a, b in ids if a != b]
    equal = _say_equal(ctx, len(every) - len(pairs), len(every), learner)
    asked = read_records(parents["label"].file(PREFERENCES_FILE), Preference) if "label" in parents else []
    # All pairs, with or without labels, so that the cache holds the same texts for every labeler and source.
    rows = encode_pairs(ctx, pairs, "pairs")
    people = people_labels(ctx, pairs) if chosen.needs_gold else {}
    return labelled(rows, {preference.pair_id: preference for preference in asked}, people, chosen), equal


def _say_equal(ctx: Context, equal: int, every: int, learner: Learner) -> dict[str, float]:
    """Warn of equal pairs. Raises UserError if no pair is left."""
    limit = f"task.max_response_tokens={ctx.options.task.max_response_tokens}"
    if equal == every:
        raise UserError(
            f"all {every} pairs have responses that are equal once cut to {limit}, so there is nothing to train "
            f"{learner.words} on: write a higher limit"
        )
    if not equal:
        return {}
    ctx.warn(
        "texts beyond the limits",
        f"{learner.stage}: {equal} of {every} pairs are not trained on, their responses equal once cut to {limit}",
    )
    return {f"{learner.stage}/equal_dropped": equal}


def _split(ctx: Context, rows: Sequence[PreferenceRow]) -> dict[Part, list[PreferenceRow]]:
    """The rows by their part. Raises UserError if one would be empty."""
    parts: dict[Part, list[PreferenceRow]] = {name: [] for name in PARTS}
    for row in rows:
        parts[part_of(ctx, row.pair.cluster)].append(row)
    empty = [name for name, part in parts.items() if not part]
    if empty:
        raise UserError(
            f"{len(rows)} labelled pairs leave none for {empty[0]}: write a larger sample.num_prompts or other "
            "rm.*_fraction"
        )
    return parts


def _counts(trained: TrainingRows, learner: Learner) -> dict[str, float]:
    rows = [row for phase in trained.phases for row in phase]
    right = [agreement(row.p_a, gold) for row in rows if (gold := row.pair.gold) not in (None, 0.5)]
    counts = {"train_pairs": len(rows), "dropped_pairs": trained.dropped, "flipped_pairs": trained.flipped}
    named: dict[str, float] = {f"{learner.stage}/{name}": value for name, value in counts.items()}
    return named | ({f"{learner.stage}/label_alignment": fmean(right)} if right else {})
