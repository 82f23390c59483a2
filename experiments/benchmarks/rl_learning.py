"""Seconds until our PPO reaches the reward that TRL's PPOTrainer has at its end.

    python experiments/benchmarks/rl_learning.py --pairs hh_harmless.jsonl.gz --peer-python PEER_ENV/bin/python

Both sides keep fp32 master weights and compute in bf16 (TRL by autocast), and have the same models, reward, KL
weight, batch and number of PPO epochs (see rl.py). They sample independently, always responding to the same prompts,
so that an update's mean reward reflects only the policy. The reward is a fixed random projection of the base model's
state after the response: useless, but the same for all, and it can be raised.

TRL makes `--updates` updates after the first; its end is the mean reward over the last `WINDOW` of them. A side of
ours stops when its own mean over as many updates reaches that. On both sides seconds count from the end of the first
update, which is a warm-up. A side that trains fewer weights takes larger steps: `RATES` times `--lr`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytorch_lightning as pl
import torch
from rl import SIDES, build_side, here, peer, resolve_dtype, train, write_inputs

from rlaif.stages.rl.online.module import PPOModule

WINDOW = 3
RATES = {"full": 1.0, "top:4": 3.0, "lora:8": 10.0}


def write_same_prompts(args: argparse.Namespace) -> dict[str, Any]:
    """Models for both sides, and one batch of prompts for every update."""
    sizes = argparse.Namespace(**{**vars(args), "updates": 0})
    told = write_inputs(sizes)
    file = args.folder / "prompts.json"
    file.write_text(json.dumps(json.loads(file.read_text()) * (args.updates + 1)))
    return told


def level(rewards: Sequence[float]) -> float | None:
    """The mean reward over the last `WINDOW` updates; None before there are that many."""
    return fmean(rewards[-WINDOW:]) if len(rewards) >= WINDOW else None


class StopAt(pl.Callback):
    """Ends training once the level reaches `target`."""

    def __init__(self, module: PPOModule, target: float) -> None:
        self._module, self._target = module, target

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        reached = level([row["rl/reward"] for row in self._module.history])
        trainer.should_stop = reached is not None and reached >= self._target


def run_side(args: argparse.Namespace) -> dict[str, Any]:
    """Train one of our sides until it reaches `args.target`."""
    args.lr *= RATES[args.task.split("/")[0]]
    module = build_side(args)
    ends = train(module, args.updates + 1, StopAt(module, args.target))
    history = module.history
    return {
        "seconds": [end - start for start, end in zip(ends, ends[1:], strict=False)],
        "rewards": [row["rl/reward"] for row in history],
        "kl": history[-1]["rl/kl"],
    }


def line(side: str, found: dict[str, Any], target: float, base: float) -> str:
    """A row of the table: how many updates and seconds it took, where `base` is TRL's seconds."""
    seconds, end = sum(found["seconds"]), level(found["rewards"])
    assert end is not None
    ratio = f"**{base / seconds:.1f}**" if end >= target else "not reached"
    updates = len(found["seconds"])
    return f"| {side} | {found['rewards'][0]:.2f} | {end:.2f} | {updates} | {seconds:.0f} | {ratio} |"


def measure(args: argparse.Namespace) -> None:
    """Print the table, each row as soon as it is known."""
    theirs = peer(args, "--dtype=float32", "--autocast")
    target = level(theirs["rewards"])
    assert target is not None
    error = stdev(theirs["rewards"][-WINDOW:]) / WINDOW**0.5
    print(json.dumps({"side": "TRL", **theirs}), file=sys.stderr, flush=True)
    print(f"\nTRL's end: {target:.3f}, standard error {error:.3f}\n")
    print("| side | first reward | level at the end | updates | seconds | faster than TRL by |")
    print("|---|---|---|---|---|---|")
    base = sum(theirs["seconds"])
    print(line("TRL", theirs, target, base), flush=True)
    for side in args.sides:
        found = here(side, args, f"--target={target}")
        print(json.dumps({"side": side, **found}), file=sys.stderr, flush=True)
        print(line(side, found, target, base), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", required=True, help="file in the schema of Anthropic/hh-rlhf")
    parser.add_argument("--peer-python", required=True, help="interpreter of an environment with TRL")
    parser.add_argument("--sides", nargs="*", default=list(SIDES), help="model.trainable/rl.value")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--max-prompt", type=int, default=64, help="tokens")
    parser.add_argument("--updates", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--cache", default="outputs/cache", help="where the embedded model is or will be")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=float, help=argparse.SUPPRESS)
    parser.set_defaults(rollout_batch=0, peer_micro=None)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    args.dtype = resolve_dtype(args.dtype, "cpu")
    torch.set_num_threads(args.threads)
    if args.task:
        print("RESULT " + json.dumps(write_same_prompts(args) if args.task == "inputs" else run_side(args)))
        return
    with tempfile.TemporaryDirectory() as name:
        args.folder = Path(name)
        tokens = here("inputs", args)["prompt_tokens"]
        print(
            f"torch {torch.__version__}, {args.dtype}, {args.threads} threads, prompts of {tokens:.0f} tokens"
        )
        measure(args)


if __name__ == "__main__":
    main()
