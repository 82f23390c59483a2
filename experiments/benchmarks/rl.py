"""Samples/s of PPO against TRL's PPOTrainer, and tokens/s of rollouts against transformers' `generate`.

    python experiments/benchmarks/rl.py --pairs hh_harmless.jsonl.gz --peer-python PEER_ENV/bin/python

The peer has its own environment: `pip install torch==2.13.0 trl==1.12.0 accelerate datasets`. Both sides get the
same weights (including the score head's, from which both critics start), token ids in the same order, batch size,
numbers of PPO epochs and of threads, AdamW without decay, and no stop token, so that all responses have
`--new-tokens` tokens. An update is a rollout, its scoring by policy, reference, critic and reward model, and one
minibatch with all of it in each of 4 PPO epochs. TRL keeps its weights in the dtype that is compared; ours computes
in it and keeps fp32 masters, and clips gradients as `rl=ppo` does, which TRL's PPO does not.

Sides run in separate processes that take turns (A-B-A-B). The time is that between the ends of updates, without
the first; a figure is the median over the turns, and memory is the largest resident size of a side's process.

`--what check` has TRL make one update in fp32 and compares its numbers with ours on the very same rollout: token
by token, and the losses of four optimiser steps. TRL whitens advantages by the sample variance, ours by the
population variance, so that policy losses differ by a fraction 1 / (2 x tokens); neither side clips gradients there.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from reward import score_head, spec
from torch import Tensor

from rlaif.app.compose import read_options
from rlaif.data.datamodule import TokenBatch
from rlaif.data.files.hh import split_dialogue
from rlaif.data.files.readers import HubPart, read_rows
from rlaif.inference.batches import pad_right
from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.decoding.sampler import sample
from rlaif.inference.rollouts import Rollout, RolloutCollector
from rlaif.models.kernels.devices import resolve_dtype
from rlaif.models.load import LanguageModel, load_model
from rlaif.models.weights import Normalization, RewardMember, export_policy, export_reward
from rlaif.ops import gae, kl_shaped_rewards
from rlaif.records import Prompt
from rlaif.stages.common.context import Context
from rlaif.stages.common.scoring import sequence_scores
from rlaif.stages.common.training.logprobs import response_hidden, response_logprobs
from rlaif.stages.common.training.optim import OptimOptions
from rlaif.stages.common.training.trainer import ReleaseMemory, quiet_lightning
from rlaif.stages.rl.online.module import PPOModule, PPOOptions
from rlaif.stages.rl.online.options import rl_options

CONF = Path(__file__).parents[2] / "conf"
SIDES = ("full/separate", "full/shared", "top:4/shared", "lora:8/shared")
PARTS = ("rollout", "prepare", "update")
NEVER = ()  # the ids that end a response: none ends before its last token


# What both sides are given.


def read_prompts(path: str, model: LanguageModel, count: int, longest: int) -> list[list[int]]:
    """The first `count` dialogues of at most `longest` tokens, as ids."""
    rows: list[list[int]] = []
    for row in read_rows(path, HubPart("train", None)):
        split = split_dialogue(str(row.values["chosen"]), str(row.values["rejected"]))
        ids = model.tokenizer.encode(split.prompt + "\n\nAssistant:") if split else []
        if 0 < len(ids) <= longest:
            rows.append(ids)
        if len(rows) == count:
            return rows
    raise SystemExit(f"{path} has fewer than {count} prompts of at most {longest} tokens")


def write_inputs(args: argparse.Namespace) -> dict[str, Any]:
    """Models and prompts for both sides."""
    model = load_model(spec("full", "float32"), Path(args.cache))
    top = model.trunk.new_top()
    export_policy(args.folder / "policy", model, top)
    export_reward(args.folder / "rm", model, [RewardMember(top, score_head(model), Normalization(1.0, 0.0))])
    count = max(args.batch * (args.updates + 1), args.rollout_batch)
    prompts = read_prompts(args.pairs, model, count, args.max_prompt)
    (args.folder / "prompts.json").write_text(json.dumps(prompts))
    return {"prompt_tokens": fmean(map(len, prompts))}


def own_prompts(args: argparse.Namespace) -> list[list[int]]:
    return json.loads((args.folder / "prompts.json").read_text())


# Our side.


def ppo_options(args: argparse.Namespace) -> PPOOptions:
    """`rl=ppo`, with TRL's defaults where the two differ."""
    words = [f"rl.minibatch_rollouts={args.batch}", "rl.missing_eos_penalty=0", "rl.value_lr_factor=1"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=["rl=ppo", *words])
    return rl_options(Context(read_options(cfg), None))


def ppo_module(
    model: LanguageModel,
    args: argparse.Namespace,
    *,
    value: str,
    collect: Callable[[PPOModule, int], Rollout],
    gradient_clip: float,
) -> PPOModule:
    """PPO from the base model; the critic starts from the reward model, as in TRL."""
    member = RewardMember(model.trunk.new_top(), score_head(model), Normalization(1.0, 0.0)).frozen_copy()
    policy = model.trunk.new_top()
    module = PPOModule(
        policy,
        score_head(model),
        model.trunk.new_top() if value == "separate" else None,
        policy.frozen_copy(),
        collect=lambda iteration: collect(module, iteration),
        reward=lambda r: sequence_scores(member.top, member.head, r.features, r.last),
        diagnose=lambda _: {},
        watch=lambda _: None,
        tracker=None,
        rollouts_per_iteration=args.batch,
        options=ppo_options(args),
        optim=OptimOptions(args.lr, 0.0, 1e-8, "constant", 0.0, 1, gradient_clip),
    )
    return module


class UpdateEnds(pl.Callback):
    """When each iteration ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_epoch_end(self, *_: Any) -> None:
        self.times.append(time.perf_counter())


def train(module: PPOModule, iterations: int, *callbacks: pl.Callback) -> list[float]:
    """Train; returns when each of the iterations ended."""
    quiet_lightning()
    ends = UpdateEnds()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=iterations,
        callbacks=[ends, ReleaseMemory(), *callbacks],
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module)
    return ends.times


def build_side(args: argparse.Namespace) -> PPOModule:
    """The side that `args.task` names, on the prompts in order."""
    trainable, value = args.task.split("/")
    model, encoded = load_model(spec(trainable, args.dtype), Path(args.cache)), own_prompts(args)
    collector = RolloutCollector(
        [Prompt(str(i), str(i)) for i in range(len(encoded))],
        encoded,
        model.tokenizer.decode,
        Decoding(args.new_tokens, 1.0),
        eos_ids=NEVER,
        samples_per_prompt=1,
        max_rows=args.batch,
        seed=0,
    )

    def collect(module: PPOModule, iteration: int) -> Rollout:
        indices = range(iteration * args.batch, (iteration + 1) * args.batch)
        rollout = collector.collect(module.policy.frozen_copy(), indices, iteration)
        assert (rollout.lengths() == args.new_tokens).all()
        return rollout

    return ppo_module(model, args, value=value, collect=collect, gradient_clip=1.0)


def run_side(args: argparse.Namespace) -> dict[str, Any]:
    """Time one of our sides in this process."""
    module = build_side(args)
    ends = train(module, args.updates + 1)
    steady = module.history[1:]
    return {
        "seconds": [end - start for start, end in zip(ends, ends[1:], strict=False)],
        "parts": {part: fmean(row[f"rl/seconds_{part}"] for row in steady) for part in PARTS},
        "rewards": [row["rl/reward"] for row in module.history],
        "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


# Equal results.


def given_rollout(model: LanguageModel, found: dict[str, Any]) -> Rollout:
    """TRL's own rollout as one of ours."""
    pairs = list(zip(found["prompts"], found["responses"], strict=True))
    ids, lengths = pad_right([prompt + response for prompt, response in pairs], model.pad_id, "cpu")
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, (prompt, response) in enumerate(pairs):
        mask[row, len(prompt) : len(prompt) + len(response)] = True
    prompts = tuple(Prompt(str(row), str(row)) for row in range(len(pairs)))
    never = torch.zeros(len(pairs), dtype=torch.bool)
    texts = tuple(model.tokenizer.decode(response) for _, response in pairs)
    return Rollout(ids, model.trunk(ids), mask, lengths - 1, never, prompts, texts, tuple(range(len(pairs))))


@torch.no_grad()
def gaps(module: PPOModule, rollout: Rollout, found: dict[str, Any], options: PPOOptions) -> dict[str, float]:
    """Largest difference of each of TRL's numbers from ours; our advantages are computed from TRL's other numbers."""
    names = ("logprobs", "ref_logprobs", "values", "advantages", "scores")
    theirs = {name: torch.tensor(found[name]) for name in names}
    mask = rollout.response_mask
    batch = TokenBatch(rollout.ids, rollout.features, mask, rollout.last)
    assert module.value_head is not None and module.value_top is not None
    values = module.value_head(response_hidden(module.value_top, batch.features, mask))
    whole = torch.ones_like(theirs["logprobs"], dtype=torch.bool)
    rewards = kl_shaped_rewards(
        theirs["scores"],
        theirs["logprobs"],
        theirs["ref_logprobs"],
        whole,
        beta=options.beta,
        kind=options.kl_estimator,
    )
    advantages, _ = gae(rewards, theirs["values"], whole, gamma=options.gamma, lam=options.lam)
    ours = {
        "logprobs": response_logprobs(module.policy, batch)[mask].view_as(theirs["logprobs"]),
        "ref_logprobs": response_logprobs(module.reference, batch)[mask].view_as(theirs["logprobs"]),
        "values": values.view_as(theirs["values"]),
        "advantages": advantages,
    }
    return {name: float((value - theirs[name]).abs().max()) for name, value in ours.items()}


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Our numbers on TRL's rollout, and our losses in an update from it."""
    found = json.loads((args.folder / "check.json").read_text())
    model = load_model(spec("full", "float32"), Path(args.cache))
    rollout = given_rollout(model, found)
    module = ppo_module(model, args, value="separate", collect=lambda *_: rollout, gradient_clip=0.0)
    with torch.no_grad():
        module.policy.norm.weight.mul_(1.02)  # as peer_rl.py does
    differences = gaps(module, rollout, found, ppo_options(args))
    train(module, 1)
    (row,) = module.history
    differences["score"] = abs(row["rl/reward"] - fmean(found["scores"]))
    names = {"policy_loss": "loss/policy_avg", "value_loss": "loss/value_avg"}
    names |= {"ratio_mean": "val/ratio", "kl": "objective/kl"}
    update = {name: (row[f"rl/{name}"], found[theirs]) for name, theirs in names.items()}
    return {"differences": differences, "update": update}


# Rollouts alone.


class Generators:
    """Our sampler and transformers' `generate` on the same prompts."""

    def __init__(self, args: argparse.Namespace, dtype: str) -> None:
        from transformers import AutoModelForCausalLM

        self.new, self.prompts = args.new_tokens, own_prompts(args)[: args.rollout_batch]
        model = load_model(spec("top:4", dtype), Path(args.cache))
        self.top = model.trunk.new_top().frozen_copy()
        folder = args.folder / "policy"
        self.plain = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self.plain.generation_config.eos_token_id = None
        width = max(map(len, self.prompts))
        self.ids = torch.tensor([[model.pad_id] * (width - len(ids)) + ids for ids in self.prompts])
        self.mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in self.prompts])

    def ours(self, temperature: float) -> list[list[int]]:
        """With the trunk's features for all tokens, as RL needs them."""
        seeds, decoding = range(len(self.prompts)), Decoding(self.new, temperature)
        options: dict[str, Any] = {"eos_ids": NEVER, "max_rows": len(self.prompts), "keep_features": True}
        return [list(got.ids) for got in sample(self.top, self.prompts, seeds, decoding, **options)]

    @torch.inference_mode()
    def theirs(self, temperature: float) -> list[list[int]]:
        how = (
            {"do_sample": True, "temperature": temperature, "top_k": 0}
            if temperature
            else {"do_sample": False}
        )
        out: Tensor = self.plain.generate(
            self.ids, attention_mask=self.mask, max_new_tokens=self.new, pad_token_id=0, **how
        )
        return out[:, self.ids.shape[1] :].tolist()


def time_rollouts(args: argparse.Namespace) -> dict[str, Any]:
    """Tokens/s of both, in turns after a warm-up, and how many greedy texts are equal in fp32."""
    generators = Generators(args, args.dtype)
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(args.repeats + 1):
        for name in rates:
            started = time.perf_counter()
            rows = getattr(generators, name)(1.0)
            seconds = time.perf_counter() - started
            assert [len(row) for row in rows] == [args.new_tokens] * len(generators.prompts)
            if turn:
                rates[name].append(len(rows) * args.new_tokens / seconds)
    generators = Generators(args, "float32")
    equal = sum(a == b for a, b in zip(generators.ours(0.0), generators.theirs(0.0), strict=True))
    return {**rates, "equal": equal, "rows": len(generators.prompts)}


# Turns and tables.


def result_of(command: Sequence[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    return json.loads(done.stdout.rsplit("RESULT ", 1)[1])


def here(task: str, args: argparse.Namespace, *more: str) -> dict[str, Any]:
    """A task of this script, or a side, in a separate process."""
    return result_of([sys.executable, *sys.argv, "--task", task, "--folder", str(args.folder), *more])


def peer(args: argparse.Namespace, *more: str) -> dict[str, Any]:
    """TRL in its own process; the words `more` come last and win."""
    micro = args.peer_micro or max(1, args.batch // 2)
    sizes = {"batch": args.batch, "micro": micro, "updates": args.updates, "new-tokens": args.new_tokens}
    settings = {**sizes, "dtype": args.dtype, "lr": args.lr, "threads": args.threads}
    words = [f"--{name}={value}" for name, value in settings.items()]
    script = str(Path(__file__).with_name("peer_rl.py"))
    return result_of([args.peer_python, script, str(args.folder), *words, *more])


def measure_ppo(args: argparse.Namespace) -> list[str]:
    """Turns of TRL and our sides; returns the table's rows."""
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in ("TRL", *args.sides)}
    for _ in range(args.repeats):
        for side, done in turns.items():
            done.append(peer(args) if side == "TRL" else here(side, args))
            print(json.dumps({"side": side, **done[-1]}), file=sys.stderr, flush=True)
    lines = [
        "| side | samples/s | ratio to TRL (each) | peak GiB (of TRL's) | update s (rollout, prepare, update) |",
        "|---|---|---|---|---|",
    ]
    return lines + [_ppo_line(side, args.batch, turns) for side in turns]


def _ppo_line(side: str, batch: int, turns: dict[str, list[dict[str, Any]]]) -> str:
    rates, base = ([batch / median(t["seconds"]) for t in turns[name]] for name in (side, "TRL"))
    ratios = [own / theirs for own, theirs in zip(rates, base, strict=True)]
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    memory, most = (max(t["gib"] for t in turns[name]) for name in (side, "TRL"))
    parts = [fmean(t["parts"][part] for t in turns[side]) for part in PARTS] if side != "TRL" else []
    seconds = median(second for turn in turns[side] for second in turn["seconds"])
    shown = f"{seconds:.1f}" + (f" ({', '.join(f'{part:.1f}' for part in parts)})" if parts else "")
    ratio = "1" if side == "TRL" else f"**{median(ratios):.2f}** ({each})"
    return f"| {side} | {median(rates):.3f} | {ratio} | {memory:.1f} ({memory / most:.0%}) | {shown} |"


def measure_rollouts(args: argparse.Namespace) -> list[str]:
    found = here("rollouts", args)
    ratios = [a / b for a, b in zip(found["ours"], found["theirs"], strict=True)]
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    return [
        f"rollouts at batch {found['rows']}: {median(found['ours']):.0f} tokens/s, transformers' generate "
        f"{median(found['theirs']):.0f}: ratio **{median(ratios):.2f}** ({each})",
        f"greedy texts in fp32: {found['equal']} of {found['rows']} equal",
    ]


def measure_check(args: argparse.Namespace) -> list[str]:
    peer(args, "--check", "--dtype=float32")
    found = here("check", args)
    differences = ", ".join(f"{name} {gap:.1e}" for name, gap in found["differences"].items())
    update = ", ".join(f"{name} {own:.6f} ({theirs:.6f})" for name, (own, theirs) in found["update"].items())
    return [
        f"fp32, TRL's rollout, largest difference: {differences}",
        f"means of an update of 4 optimiser steps, ours (TRL's): {update}",
    ]


TASKS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "inputs": write_inputs,
    "rollouts": time_rollouts,
    "check": compare,
}
WHAT: dict[str, Callable[[argparse.Namespace], list[str]]] = {
    "check": measure_check,
    "rollouts": measure_rollouts,
    "ppo": measure_ppo,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", required=True, help="file in the schema of Anthropic/hh-rlhf")
    parser.add_argument("--peer-python", help="interpreter of an environment with TRL")
    parser.add_argument("--what", nargs="*", default=list(WHAT), choices=list(WHAT))
    parser.add_argument("--sides", nargs="*", default=list(SIDES), help="model.trainable/rl.value")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--max-prompt", type=int, default=160, help="tokens of the longest prompt")
    parser.add_argument("--updates", type=int, default=3, help="timed updates per turn, after one to warm up")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rollout-batch", type=int, default=32, help="rows of `--what rollouts`")
    parser.add_argument(
        "--peer-micro", type=int, help="rows that TRL's update has in memory at once (default: half)"
    )
    parser.add_argument("--lr", type=float, default=3e-6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--cache", default="outputs/cache", help="where the embedded model is or will be")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.peer_python is None and args.what != ["rollouts"]:
        raise SystemExit("--peer-python is missing: without it, only --what rollouts can run")
    args.dtype = resolve_dtype(args.dtype, "cpu")
    torch.set_num_threads(args.threads)
    if args.task:
        print("RESULT " + json.dumps(TASKS.get(args.task, run_side)(args)))
        return
    with tempfile.TemporaryDirectory() as name:
        args.folder = Path(name)
        tokens = here("inputs", args)["prompt_tokens"]
        print(
            f"torch {torch.__version__}, {args.dtype}, {args.threads} threads, batch {args.batch}, prompts of"
        )
        print(
            f"{tokens:.0f} tokens on average, {args.new_tokens} new ones, {args.updates} updates per turn\n"
        )
        for what in args.what:
            print("\n".join([*WHAT[what](args), ""]), flush=True)


if __name__ == "__main__":
    main()
