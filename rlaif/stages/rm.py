"""stage=rm: the reward model on the labeler's soft preferences."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlaif.artifacts import Artifact
from rlaif.data.datamodule import EncodedRow, PreferenceRow, TextDataModule, collate_sequences
from rlaif.errors import UserError
from rlaif.evaluation import reward_items, reward_report
from rlaif.inference.packing import SharedPrefix
from rlaif.io import read_jsonl, read_records, stable_uniform, write_json, write_jsonl
from rlaif.models.split import ScalarHead, Top
from rlaif.models.weights import TOP_FILE, save_modules
from rlaif.modules import RewardModule
from rlaif.modules.reward import PreferenceLossOptions, sequence_scores
from rlaif.records import Pair, Preference
from rlaif.stages.context import Context, plain
from rlaif.stages.graph import Parents, Stage, Work
from rlaif.stages.label import PREFERENCES_FILE, trust_gate
from rlaif.stages.sample import PAIRS_FILE
from rlaif.stages.sft import policy_top, sft_parent
from rlaif.stages.sizes import prompt_tokens, response_tokens
from rlaif.stages.training import fit, make_trainer, optim_options

NORMALIZATION_FILE = "normalization.json"
SCORES_FILE = "scores.jsonl"


@dataclass(frozen=True)
class Labelled:
    """A pair with its preference and its encoded responses."""

    pair: Pair
    preference: Preference
    row: PreferenceRow


def encode_pairs(ctx: Context, pairs: Sequence[Pair], what: str) -> list[tuple[EncodedRow, EncodedRow]]:
    """Both responses of each pair with the trunk's features; one prompt's pass serves all its responses."""
    encoder = ctx.encoder
    owners: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs):
        owners.setdefault(pair.prompt, []).append(index)
    groups = [
        SharedPrefix(
            tuple(encoder.prompt(prompt)),
            tuple(
                tuple(encoder.response(text))
                for i in indices
                for text in (pairs[i].response_a, pairs[i].response_b)
            ),
        )
        for prompt, indices in owners.items()
    ]
    with ctx.progress.task(f"trunk pass ({what}, by prompt)", len(groups)) as advance:
        features = ctx.features.get(ctx.model(), groups, advance)
    rows: dict[int, tuple[EncodedRow, EncodedRow]] = {}
    for indices, group, texts in zip(owners.values(), groups, features, strict=True):
        encoded = [
            EncodedRow(torch.tensor([*group.prefix, *suffix]), text, len(group.prefix))
            for suffix, text in zip(group.suffixes, texts, strict=True)
        ]
        rows.update({i: (encoded[2 * n], encoded[2 * n + 1]) for n, i in enumerate(indices)})
    return [rows[i] for i in range(len(pairs))]


@torch.no_grad()
def score_rows(
    ctx: Context, top: Top, head: ScalarHead, rows: Sequence[EncodedRow], batch: int = 128
) -> list[float]:
    """Reward of each sequence, in order."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    scores = [0.0] * len(rows)
    for start in range(0, len(order), batch):
        indices = order[start : start + batch]
        tokens = collate_sequences([rows[i] for i in indices]).to(ctx.model().device)
        for index, score in zip(
            indices, sequence_scores(top, head, tokens.features, tokens.last).tolist(), strict=True
        ):
            scores[index] = score
    return scores


def _labelled(ctx: Context, parents: Parents) -> list[Labelled]:
    pairs = read_records(parents["sample"].file(PAIRS_FILE), Pair)
    preferences = {p.pair_id: p for p in read_records(parents["label"].file(PREFERENCES_FILE), Preference)}
    # A pair without a readable preference trains nothing.
    usable = [(p, preferences[p.id], p_a) for p in pairs if (p_a := preferences[p.id].p_a) is not None]
    encoded = encode_pairs(ctx, [pair for pair, _, _ in usable], "pairs")
    return [
        Labelled(pair, label, PreferenceRow(a, b, p_a))
        for (pair, label, p_a), (a, b) in zip(usable, encoded, strict=True)
    ]


def _split(ctx: Context, rows: Sequence[Labelled]) -> dict[str, list[Labelled]]:
    """train / validation (chooses the epoch) / test (is reported), by prompt."""
    node = ctx.cfg.rm
    parts: dict[str, list[Labelled]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        place = stable_uniform("rm-split", row.pair.prompt_id)
        name = (
            "test"
            if place < node.test_fraction
            else "validation"
            if place < node.test_fraction + node.validation_fraction
            else "train"
        )
        parts[name].append(row)
    empty = [name for name, part in parts.items() if not part]
    if empty:
        raise UserError(
            f"{len(rows)} labelled pairs leave none for {empty[0]}: "
            "write a larger sample.num_prompts or other rm.*_fraction"
        )
    return parts


def _build(ctx: Context, folder: Path, parents: Parents) -> dict[str, Any]:
    node = ctx.cfg.rm
    parts = _split(ctx, _labelled(ctx, parents))
    top = policy_top(ctx, parents if node.init == "sft" else {})
    head = ScalarHead(ctx.model().trunk.config.hidden_size).init_normal(
        torch.Generator().manual_seed(ctx.cfg.seeds.rm)
    )
    data = TextDataModule.preference_view(
        [r.row for r in parts["train"]],
        [r.row for r in parts["validation"]],
        batch_size=node.batch_size,
        seed=ctx.cfg.seeds.rm,
    )
    steps = node.num_epochs * -(-len(parts["train"]) // node.batch_size)
    loss = PreferenceLossOptions(node.margin, node.label_smoothing, node.label_temperature, node.centering)
    module = RewardModule(top, head, optim_options(node, steps), loss, head_lr_factor=node.head_lr_factor)
    trainer = make_trainer(
        ctx,
        folder / "work",
        max_epochs=node.num_epochs,
        gradient_clip=node.gradient_clip,
        log_every=2,
        limit_val=True,
    )
    with ctx.progress.task("reward model (pairs)", len(parts["train"]) * node.num_epochs) as advance:
        fresh, started = not (folder / "work" / "checkpoints").exists(), time.perf_counter()
        fit(trainer, module, folder / "work", data)
        rate = len(parts["train"]) * node.num_epochs / (time.perf_counter() - started)
        advance(len(parts["train"]) * node.num_epochs)
    save_modules(folder / TOP_FILE, {"top": module.top, "score": module.head})
    return {**_report(ctx, folder, module, parts), **({"rm/pairs_per_s": rate} if fresh else {})}


def _report(
    ctx: Context, folder: Path, module: RewardModule, parts: dict[str, list[Labelled]]
) -> dict[str, Any]:
    module.eval().to(ctx.model().device)
    test = parts["test"]
    scores = score_rows(ctx, module.top, module.head, [side for r in test for side in (r.row.a, r.row.b)])
    lengths = [
        (len(r.row.a.ids) - r.row.a.prompt_length, len(r.row.b.ids) - r.row.b.prompt_length) for r in test
    ]
    pairs, preferences = [r.pair for r in test], [r.preference for r in test]
    both = list(zip(scores[::2], scores[1::2], strict=True))
    report = reward_report(pairs, preferences, both, lengths)
    write_jsonl(folder / SCORES_FILE, reward_items(pairs, preferences, both, lengths))
    # PPO reads rewards as distances from what the labelled responses got, so that beta means the same for every model.
    spread = torch.tensor(scores).std(correction=0).item()
    write_json(
        folder / NORMALIZATION_FILE, {"mean": float(torch.tensor(scores).mean()), "std": max(spread, 1e-6)}
    )
    return {**report, "rm/train_pairs": len(parts["train"]), "rm/best_val_loss": module.best_loss}


def _config(ctx: Context) -> dict[str, Any]:
    return {"rm": plain(ctx.cfg.rm), "model": ctx.model_identity, "encoding": ctx.encoding}


def _parents(ctx: Context) -> tuple[str, ...]:
    return ("sample", "label", *(sft_parent(ctx) if ctx.cfg.rm.init == "sft" else ()))


def _work(ctx: Context) -> Work:
    pairs = ctx.cfg.sample.num_prompts * ctx.cfg.sample.num_samples
    prompt, response = prompt_tokens(ctx), response_tokens(ctx)
    return Work(
        forward=pairs * (prompt + 2 * response),
        trained=2 * pairs * (prompt + response) * ctx.cfg.rm.num_epochs,
    )


def _check(ctx: Context) -> None:
    if ctx.cfg.rm.init not in ("sft", "base"):
        raise UserError(f"rm.init={ctx.cfg.rm.init} is not known: write sft or base")


def item_rows(rm: Artifact) -> list[dict[str, Any]]:
    """One row for each test pair: what `rm/accuracy` is the mean of, with both rewards."""
    return list(read_jsonl(rm.file(SCORES_FILE)))


def _gate(ctx: Context, built: Parents) -> dict[str, Any]:
    return trust_gate(ctx, built["label"].metrics)


STAGE = Stage("rm", 2, "rm", _parents, _config, _build, _work, _check, _gate)
