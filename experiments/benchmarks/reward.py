"""Pairs/s of reward-model training and of DPO, and rows/s of SFT, against TRL on the same rows.

    python experiments/benchmarks/reward.py --pairs hh_harmless.jsonl.gz --peer-python PEER_ENV/bin/python

The peer has its own environment: `pip install torch==2.13.0 trl==1.16.0 accelerate datasets`. Both sides get
the same weights (including the score head's), token ids, batch size and number of threads, in separate processes
that take turns (A-B-A-B); a figure is the median over the turns. TRL keeps its weights in the dtype that is
compared; ours computes in it and keeps fp32 masters.

The time is that of an epoch's steps after a warm-up; for `top:K` the first epoch adds the pass through the frozen
trunk. `another arm` is a second reward model on the same pairs with other labels, from the trunk's stored
activations: an arm of a labeler ablation. The learning rate is zero, which does not change the work, so that
losses can be compared batch by batch in the same order of rows. DPO's reference differs from its policy (in the last
norm's weights), since the loss of two equal ones is log 2 whatever the rows; both sides compute its log-probabilities
before the first step, which only our first epoch counts.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pytorch_lightning as pl
import torch

from rlaif.data.datamodule import (
    EncodedRow,
    PreferenceRow,
    TextDataModule,
    collate_preferences,
    collate_sequences,
)
from rlaif.data.files.hh import split_dialogue
from rlaif.data.files.readers import HubPart, read_rows
from rlaif.data.policy_pairs import PolicyPair, collate_policy_pairs, policy_pairs_view
from rlaif.inference.features import FeatureCache, GroupFeatures
from rlaif.inference.packing import SharedPrefix
from rlaif.models.kernels.devices import resolve_dtype
from rlaif.models.load import LanguageModel, ModelSpec, load_model
from rlaif.models.split import ScalarHead, Top
from rlaif.models.weights import Normalization, RewardMember, export_policy, export_reward
from rlaif.ops import PairLogprobs, PreferenceKnobs, bradley_terry_loss, preference_loss, sft_loss
from rlaif.records import Pair
from rlaif.stages.common.scoring import pair_scores
from rlaif.stages.common.training.likelihood import LikelihoodModule
from rlaif.stages.common.training.logprobs import pair_logprobs, response_logprobs
from rlaif.stages.common.training.optim import OptimOptions
from rlaif.stages.rl.offline.module import PreferenceModule
from rlaif.stages.rm.module import PreferenceLossOptions, RewardModule

MAX_PROMPT, MAX_RESPONSE = 384, 128
PAIR = Pair("pair", "prompt", "", "", "", "dataset")  # for rows whose texts are not read
SIDES = ("full", "top:4")
PLAIN_LOSS = PreferenceLossOptions(margin=0.0, label_smoothing=0.0, temperature=1.0, centering=0.0)


KNOBS = PreferenceKnobs(beta=0.1)


def spec(trainable: str, dtype: str) -> ModelSpec:
    return ModelSpec("embedded", "", None, trainable, dtype, "cpu", False, lora_alpha=16.0)


def token_rows(path: str, model: LanguageModel, count: int) -> list[dict[str, list[int]]]:
    """The first `count` dialogues of at most 512 tokens, as ids of prompt, chosen and rejected (with EOS)."""
    rows: list[dict[str, list[int]]] = []
    encode = model.tokenizer.encode
    for row in read_rows(path, HubPart("train", None)):
        split = split_dialogue(str(row.values["chosen"]), str(row.values["rejected"]))
        if split is None:
            continue
        prompt = encode(split.prompt + "\n\nAssistant:")
        chosen, rejected = (
            [*encode(" " + text.strip()), model.eos_id] for text in (split.chosen, split.rejected)
        )
        if len(prompt) <= MAX_PROMPT and max(len(chosen), len(rejected)) <= MAX_RESPONSE:
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        if len(rows) == count:
            return rows
    raise SystemExit(f"{path} has fewer than {count} usable pairs")


def score_head(model: LanguageModel) -> ScalarHead:
    return ScalarHead(model.trunk.config.hidden_size).init_normal(torch.Generator().manual_seed(0))


def reference(model: LanguageModel) -> Top:
    """A policy that is not quite the base model."""
    top = model.trunk.new_top()
    with torch.no_grad():
        top.norm.weight.mul_(1.02)
    return top


def write_inputs(folder: Path, args: argparse.Namespace, dtype: str) -> None:
    """Rows and models for both sides."""
    model = load_model(spec("full", dtype), Path(args.cache))
    top = model.trunk.new_top()
    export_policy(folder / "sft", model, top)
    export_policy(folder / "ref", model, reference(model))
    export_reward(folder / "rm", model, [RewardMember(top, score_head(model), Normalization(1.0, 0.0))])
    (folder / "rows.json").write_text(json.dumps(token_rows(args.pairs, model, args.rows)))


class EpochClock(pl.Callback):
    """Seconds of each epoch's steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self._ended = time.perf_counter()

    def on_train_epoch_end(self, *_: Any) -> None:
        self.seconds.append(self._ended - self._started)


def epochs(module: pl.LightningModule, data: TextDataModule, count: int) -> list[float]:
    """Seconds of each of `count` epochs."""
    clock = EpochClock()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=count,
        callbacks=[clock],
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    return clock.seconds


class Ours:
    """One side: `rm`, `dpo` or `sft`, `full` or `top:4`."""

    def __init__(self, what: str, model: LanguageModel, batch: int) -> None:
        self.what, self.model, self.batch = what, model, batch

    def features(self, rows: Sequence[dict[str, list[int]]], cache: Path) -> list[GroupFeatures]:
        texts = ("chosen",) if self.what == "sft" else ("chosen", "rejected")
        groups = [SharedPrefix(tuple(r["prompt"]), tuple(tuple(r[text]) for text in texts)) for r in rows]
        return FeatureCache(cache, 2**34).get(self.model, groups)

    def encoded(
        self, rows: Sequence[dict[str, list[int]]], features: list[GroupFeatures], p_a: float
    ) -> list[Any]:
        if self.what == "rm":
            return [PreferenceRow(PAIR, f.prefix, f.suffixes[0], f.suffixes[1], p_a) for f in features]
        if self.what == "dpo":
            return self.pairs(rows, features, p_a)
        return [
            EncodedRow(torch.tensor(r["prompt"] + r["chosen"]), f.prefix, f.suffixes[0])
            for r, f in zip(rows, features, strict=True)
        ]

    @torch.no_grad()
    def pairs(
        self, rows: Sequence[dict[str, list[int]]], features: list[GroupFeatures], p_a: float
    ) -> list[PolicyPair]:
        """Pairs with the reference's log-probabilities."""
        made = [
            PolicyPair(
                PreferenceRow(PAIR, f.prefix, f.suffixes[0], f.suffixes[1], p_a),
                torch.tensor(r["chosen"]),
                torch.tensor(r["rejected"]),
            )
            for r, f in zip(rows, features, strict=True)
        ]
        frozen, known = reference(self.model).frozen_copy(), []
        for start in range(0, len(made), self.batch):
            known += pair_logprobs(frozen, collate_policy_pairs(made[start : start + self.batch])).tolist()
        return [replace(pair, reference=(a, b)) for pair, (a, b) in zip(made, known, strict=True)]

    def module(self, steps: int) -> pl.LightningModule:
        optim = OptimOptions(0.0, 0.0, 1e-8, "constant", 0.0, steps, 1.0)
        top = self.model.trunk.new_top()
        if self.what == "sft":
            return LikelihoodModule(top, optim)
        if self.what == "dpo":
            return PreferenceModule(top, "sigmoid", KNOBS, optim)
        members = [(top, score_head(self.model))]
        return RewardModule(members, optim, PLAIN_LOSS, head_lr_factor=1.0, patience=None, choose_from=0)

    def data(self, rows: list[Any]) -> TextDataModule:
        sizes = {"batch_size": self.batch, "micro_batch_size": self.batch, "seed": 0}
        if self.what == "sft":
            return TextDataModule.sft_view(rows, [], **sizes)
        if self.what == "dpo":
            return policy_pairs_view([rows], [], epochs_per_phase=2, **sizes)
        return TextDataModule.preference_view([rows], [], epochs_per_phase=2, **sizes)

    @torch.no_grad()
    def losses(self, rows: list[Any]) -> list[float]:
        """The loss of each batch, in the order of the rows."""
        top, head, values = self.model.trunk.new_top(), score_head(self.model), []
        for start in range(0, len(rows), self.batch):
            chosen = rows[start : start + self.batch]
            if self.what == "rm":
                batch = collate_preferences(chosen)
                options = {"margin": 0.0, "label_smoothing": 0.0, "temperature": 1.0, "centering": 0.0}
                loss, _ = bradley_terry_loss(
                    *pair_scores(top, head, batch), batch.p_a, weight=None, **options
                )
            elif self.what == "dpo":
                pairs = collate_policy_pairs(chosen)
                known = PairLogprobs(pair_logprobs(top, pairs), pairs.reference, pairs.tokens)
                loss, _ = preference_loss("sigmoid", known, pairs.pairs.p_a, KNOBS)
            else:
                tokens = collate_sequences(chosen)
                loss, _ = sft_loss(response_logprobs(top, tokens), tokens.response_mask)
            values.append(float(loss))
        return values


def run_ours(what: str, trainable: str, folder: Path, args: argparse.Namespace, dtype: str) -> dict[str, Any]:
    """Time one side in this process."""
    torch.set_num_threads(args.threads)
    model = load_model(spec(trainable, dtype), Path(args.cache))
    side, rows = Ours(what, model, args.batch), json.loads((folder / "rows.json").read_text())
    steps = len(rows) // args.batch
    with tempfile.TemporaryDirectory() as cache:
        few = rows[: args.batch]
        warm = side.encoded(few, side.features(few, Path(cache) / "warm"), 1.0)
        epochs(side.module(1), side.data(warm), 1)
        started = time.perf_counter()
        encoded = side.encoded(rows, side.features(rows, Path(cache) / "arm"), 1.0)
        trunk = time.perf_counter() - started
        first, later = epochs(side.module(2 * steps), side.data(encoded), 2)
        started = time.perf_counter()
        other = side.encoded(rows, side.features(rows, Path(cache) / "arm"), 0.3)
        reading = time.perf_counter() - started
        (another,) = epochs(side.module(steps), side.data(other), 1)
        losses = side.losses(encoded)
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = {"first": trunk + first, "later": later, "another": reading + another, "trunk": trunk}
    return {**seconds, "losses": losses, "gib": gib}


def run_peer(what: str, folder: Path, args: argparse.Namespace, dtype: str) -> dict[str, Any]:
    """Time TRL in its own process."""
    script = Path(__file__).with_name("peer_reward.py")
    command = [args.peer_python, str(script), what, str(folder), "--batch", str(args.batch), "--dtype", dtype]
    done = subprocess.run([*command, "--threads", str(args.threads)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found = json.loads(done.stdout.rsplit("RESULT ", 1)[1])
    return {**found, "epoch": sum(found["seconds"])}


def run_side(what: str, trainable: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Time one of our sides in a separate process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--side", what, trainable, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.rsplit("RESULT ", 1)[1])


def measure(what: str, folder: Path, args: argparse.Namespace, dtype: str) -> list[str]:
    """Turns of the peer and of our sides; returns the table's rows."""
    turns: dict[str, list[dict[str, Any]]] = {"peer": [], **{side: [] for side in SIDES}}
    for _ in range(args.repeats):
        turns["peer"].append(run_peer(what, folder, args, dtype))
        for side in SIDES:
            turns[side].append(run_side(what, side, folder, args))
            print(json.dumps({"what": what, "side": side, **turns[side][-1]}), file=sys.stderr, flush=True)
    peer = [turn["epoch"] for turn in turns["peer"]]
    lines = [_line(what, "TRL", args.rows, peer, peer, turns["peer"])]
    for side, phase in (("full", "later"), ("top:4", "first"), ("top:4", "later"), ("top:4", "another")):
        own = [turn[phase] for turn in turns[side]]
        name = f"{side}, {'another arm' if phase == 'another' else phase + ' epoch'}"
        lines.append(_line(what, "full" if side == "full" else name, args.rows, own, peer, turns[side]))
    gaps = [abs(a - b) for a, b in zip(turns["peer"][0]["losses"], turns["full"][0]["losses"], strict=True)]
    scale = fmean(turns["peer"][0]["losses"])
    lines.append(
        f"\n{what}: mean loss {scale:.4f}, largest difference of a batch's loss {max(gaps):.1e} (full, TRL)"
    )
    arm = median(t["another"] / t["first"] for t in turns["top:4"])
    whole = median(a["another"] / b["later"] for a, b in zip(turns["top:4"], turns["full"], strict=True))
    lines.append(
        f"{what}: another top:4 arm takes {arm:.0%} of the first one's time, {whole:.0%} of a full one's"
    )
    return lines


def _line(
    what: str, name: str, rows: int, own: list[float], peer: list[float], turns: list[dict[str, Any]]
) -> str:
    ratios = [b / a for a, b in zip(own, peer, strict=True)]
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    gib = max(turn["gib"] for turn in turns)
    return f"| {what} | {name} | {rows / median(own):.2f} | **{median(ratios):.2f}** ({each}) | {gib:.1f} |"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", required=True, help="file in the schema of Anthropic/hh-rlhf")
    parser.add_argument("--peer-python", help="interpreter of an environment with TRL")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--what", nargs="*", default=["rm", "sft"])
    parser.add_argument("--cache", default="outputs/cache", help="where the embedded model is or will be")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    dtype = resolve_dtype(args.dtype, "cpu")
    if args.side:
        print("RESULT " + json.dumps(run_ours(*args.side, args.folder, args, dtype)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, args, dtype)
        rows = json.loads((folder / "rows.json").read_text())
        means = [fmean(len(row[part]) for row in rows) for part in ("prompt", "chosen", "rejected")]
        print(
            f"torch {torch.__version__}, {dtype}, {args.threads} threads, {args.rows} rows, batch {args.batch}; ",
            end="",
        )
        print(f"mean tokens of prompt, chosen, rejected: {', '.join(f'{mean:.0f}' for mean in means)}")
        print("| work | side | items/s | ratio to TRL (each) | peak GiB |\n|---|---|---|---|---|")
        for what in args.what:
            print("\n".join(measure(what, folder, args, dtype)), flush=True)


if __name__ == "__main__":
    main()
