"""One GPU: are results right on it, and how close does our code come to what the card can do?

    python experiments/benchmarks/gpu.py --out gpu.json

It needs torch, transformers, pytorch-lightning and PyYAML, but no network, tokenizer or other file: models are random
Llamas of a given size, and prompts are random ids with lengths as in HH dialogues (72 tokens on average).

`check` compares the device with the CPU in fp32 on a small model: logits, losses, gradients, greedy and sampled
texts, one PPO iteration. `limits` measures the card: a copy, and a large bf16 product. The other parts time our code
against those limits and, where it is cheap, against transformers on the same weights. Times are taken between
synchronisations, after a warm-up; memory is torch's peak of allocated memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pytorch_lightning as pl
import torch
from gpu_check import check
from gpu_work import SIZES, Models, fit, ppo_module, preference_rows, random_rows, score_head, sft_rows

from rlaif.data.datamodule import TextDataModule
from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.decoding.replay import Replays
from rlaif.inference.decoding.sampler import sample
from rlaif.inference.scorer import next_token_logprobs
from rlaif.models.split import Top, Trunk
from rlaif.stages.common.training.likelihood import LikelihoodModule
from rlaif.stages.common.training.optim import OptimOptions
from rlaif.stages.rl.online.module import PPOModule
from rlaif.stages.rm.module import PreferenceLossOptions, RewardModule

PLAIN_LOSS = PreferenceLossOptions(margin=0.0, label_smoothing=0.0, temperature=1.0, centering=0.0)
OPTIM = OptimOptions(1e-4, 0.0, 1e-8, "constant", 0.0, 1000, 1.0)

# Clocks.


@dataclass
class Device:
    name: str

    @property
    def cuda(self) -> bool:
        return self.name == "cuda"

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any], repeats: int = 3, warm: int = 1) -> float:
        """Median time of `work`, after a warm-up."""
        for _ in range(warm):
            work()
        times = []
        for _ in range(repeats):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - started)
        return median(times)

    def start_memory(self) -> None:
        gc.collect()  # some of what came before is held in cycles
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def gib(self) -> float:
        return torch.cuda.max_memory_allocated() / 2**30 if self.cuda else float("nan")


@contextmanager
def part(name: str, failed: list[str]) -> Iterator[None]:
    """One part, whose failure is noted but does not end the others: a machine paid by the minute is used fully."""
    started = time.perf_counter()
    print(f"## {name}", flush=True)
    try:
        yield
    except Exception:
        failed.append(name)
        traceback.print_exc()
    print(f"({name}: {time.perf_counter() - started:.0f} s in all)\n", flush=True)


# The card.


def limits(device: Device) -> dict[str, float]:
    size = 8192 if device.cuda else 1024
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device.name) for _ in range(2))
    seconds = device.seconds(lambda: [a @ b for _ in range(10)]) / 10
    rate = 2 * size**3 / seconds
    source = torch.empty(2**31 if device.cuda else 2**26, dtype=torch.uint8, device=device.name)
    target = torch.empty_like(source)
    copied = 2 * source.numel() / device.seconds(lambda: target.copy_(source))
    print(f"bf16 product {rate / 1e12:.0f} TFLOP/s, copy {copied / 1e12:.2f} TB/s (read and written)")
    return {"flops": rate, "bytes_per_s": copied}


# Rollouts.


def generate(models: Models, prompts: Sequence[list[int]], new: int) -> int:
    width, device = max(map(len, prompts)), models.plain.device
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    models.plain.generation_config.eos_token_id = None
    with torch.inference_mode():
        out = models.plain.generate(
            ids, attention_mask=mask, max_new_tokens=new, do_sample=True, top_k=0, pad_token_id=0
        )
    return out[:, width:].numel()


def rollouts(models: Models, device: Device, rows: int, new: int, profile: bool) -> dict[str, float]:
    prompts = random_rows(rows, 16, 128, models.config.vocab_size, 0)
    found: dict[str, float] = {}
    for trainable in ("full", "top:4"):
        trunk = models.trunk(trainable)
        top = trunk.new_top()
        ways = (("replay", None), ("one by one", False)) if trainable == "full" else (("replay", None),)
        for name, replay in ways:

            def run(replay: bool | None = replay, top: Top = top) -> None:
                drawn = sample(
                    top,
                    prompts,
                    range(rows),
                    Decoding(new, 1.0),
                    eos_ids=(),
                    max_rows=rows,
                    keep_features=True,
                    replay=replay,
                )
                assert all(len(one.ids) == new for one in drawn)

            device.start_memory()
            started = time.perf_counter()
            run()
            device.wait()
            first = time.perf_counter() - started
            seconds = device.seconds(run, repeats=3 if replay is None else 1, warm=0)
            found[f"{trainable} {name}"] = rows * new / seconds
            print(
                f"{trainable}, {name}: {rows * new / seconds:,.0f} tokens/s ({seconds * 1e3 / new:.2f} ms per step, "
                f"first time {first:.2f} s, {device.gib():.1f} GiB)",
                flush=True,
            )
        if profile:
            step_profile(trunk, device)
        del trunk, top
    seconds = device.seconds(lambda: generate(models, prompts, new), repeats=1)
    found["generate"] = rows * new / seconds
    print(f"transformers' generate: {rows * new / seconds:,.0f} tokens/s", flush=True)
    return found


@torch.inference_mode()
def step_profile(trunk: Trunk, device: Device) -> None:
    """One replayed step: its time, and its kernels by name."""
    decoder = next(iter(Replays.of(trunk)._decoders.values()))

    def steps() -> None:
        decoder.position.zero_()
        decoder.lengths.fill_(100)
        for _ in range(16):
            decoder._advance()

    seconds = device.seconds(steps) / 16
    print(
        f"  a replayed step of {decoder.shape.rows} rows x {decoder.shape.slots} slots: {seconds * 1e3:.3f} ms"
    )
    profile_of(steps, device, per=16)


def profile_of(work: Callable[[], Any], device: Device, per: int = 1, most: int = 14) -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as prof:
        work()
        device.wait()
    total, count = Counter(), Counter()
    for event in prof.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            total[event.name] += event.device_time
            count[event.name] += 1
    print(f"  kernels: {sum(count.values()) / per:.0f}, {sum(total.values()) / per / 1e3:.3f} ms busy")
    for name, micros in total.most_common(most):
        print(f"    {micros / per:8.1f} us  {count[name] / per:6.1f} x  {name[:110]}")


# Training.


PARTS = ("rollout", "prepare", "update")


def ppo(models: Models, device: Device, batch: int, new: int, profile: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for side in ("full/shared", "top:4/shared"):
        trainable, value = side.split("/")
        device.start_memory()
        trunk = models.trunk(trainable)
        module = ppo_module(trunk, batch=batch, new_tokens=new, value=value, minibatch=batch)
        fit(module, device.name, 4)
        rows = module.history[1:]
        seconds = {name: fmean(row[f"rl/seconds_{name}"] for row in rows) for name in PARTS}
        found[side] = {**seconds, "gib": device.gib()}
        shown = ", ".join(f"{name} {value:.3f}" for name, value in seconds.items())
        print(
            f"{side}: {sum(seconds.values()):.2f} s per iteration ({shown}), {device.gib():.1f} GiB",
            flush=True,
        )
        if profile:
            module.to(device.name)
            module._experience, _ = module._prepare(module._collect(5), [torch.arange(batch)])
            module._sums = {}
            profile_of(lambda m=module: one_update(m, batch), device, most=10)
        del module, trunk
    return found


def one_update(module: PPOModule, batch: int) -> None:
    module._metrics = {}
    module.training_step(torch.arange(batch, device="cuda"), 1).backward()


class Clock(pl.Callback):
    """When each optimiser step ended on the device."""

    def __init__(self, device: Device) -> None:
        self.device, self.ends, self.started = device, [], time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.device.wait()
        self.ends.append(time.perf_counter())


def train(what: str, models: Models, device: Device, limit: float, count: int, batch: int) -> dict[str, Any]:
    """Rows/s of SFT (`sft`) or the reward model (`rm`), and for `full` the share of the card's rate."""
    vocabulary, found = models.config.vocab_size, {}
    prompts, first, second = (random_rows(count, 32, 128, vocabulary, seed) for seed in range(3))
    tokens = sum(map(len, [*prompts, *first, *(second if what == "rm" else [])])) / count
    for trainable in ("full", "top:4"):
        device.start_memory()
        trunk = models.trunk(trainable)
        sizes = {"batch_size": batch, "micro_batch_size": batch, "seed": 0}
        if what == "sft":
            data = TextDataModule.sft_view(sft_rows(trunk, prompts, first), [], **sizes)
            module: pl.LightningModule = LikelihoodModule(trunk.new_top(), OPTIM)
        else:
            rows = preference_rows(trunk, prompts, first, second)
            data = TextDataModule.preference_view([rows], [], epochs_per_phase=2, **sizes)
            members = [(trunk.new_top(), score_head(trunk))]
            module = RewardModule(
                members, OPTIM, PLAIN_LOSS, head_lr_factor=1.0, patience=None, choose_from=0
            )
        clock = Clock(device)
        fit(module, device.name, 2, data, clock)
        steps = len(clock.ends) // 2
        seconds = (clock.ends[-1] - clock.ends[steps - 1]) / (len(clock.ends) - steps)
        found[trainable] = {"rows_per_s": batch / seconds, "gib": device.gib()}
        share = ""
        if trainable == "full":  # other splits do not do six operations per weight and token
            found[trainable]["share"] = 6 * models.weights * tokens * batch / seconds / limit
            share = f", {found[trainable]['share']:.0%} of the card's bf16 rate"
        print(
            f"{what} {trainable}: {batch / seconds:.0f} rows/s ({tokens:.0f} tokens per row), first step "
            f"{clock.ends[0] - clock.started:.1f} s{share}, {device.gib():.1f} GiB",
            flush=True,
        )
        del module, trunk, data
    return found


# Labeling.


def label(models: Models, device: Device, limit: float, count: int) -> dict[str, float]:
    """Judgements/s with two exemplars (600 shared tokens, 60 of context, 2 x 60 of responses, both orders)."""
    vocabulary = models.config.vocab_size
    shared = random_rows(1, 600, 601, vocabulary, 0)[0]
    contexts, first, second = (random_rows(count, 30, 90, vocabulary, seed) for seed in (1, 2, 3))
    prompts = [
        [*shared, *context, *one, *other]
        for context, a, b in zip(contexts, first, second, strict=True)
        for one, other in ((a, b), (b, a))
    ]
    top = models.trunk("top:4").new_top().frozen_copy()
    seconds = device.seconds(lambda: next_token_logprobs(top, prompts, [5, 6]), repeats=2)
    plain = device.seconds(lambda: plain_choices(models, prompts), repeats=1)
    read = sum(map(len, prompts))
    own = read - len(shared) * (len(prompts) - 1)
    print(
        f"{len(prompts) / seconds:.0f} judgements/s, plain transformers {len(prompts) / plain:.0f} "
        f"({plain / seconds:.1f}x); {2 * models.weights * own / seconds / limit:.0%} of the card's bf16 rate",
        flush=True,
    )
    return {"judgements_per_s": len(prompts) / seconds, "plain": len(prompts) / plain}


@torch.inference_mode()
def plain_choices(models: Models, prompts: Sequence[list[int]], rows: int = 32) -> None:
    device = models.plain.device
    for start in range(0, len(prompts), rows):
        some = prompts[start : start + rows]
        width = max(map(len, some))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in some], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in some], device=device)
        logits = models.plain(ids, attention_mask=mask, logits_to_keep=1).logits[:, -1]
        logits.float().log_softmax(-1)[:, [5, 6]].tolist()


PARTS_OF_ALL = ("check", "limits", "rollouts", "ppo", "rm", "sft", "label")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--model", default="1b", choices=SIZES)
    parser.add_argument("--what", nargs="*", default=PARTS_OF_ALL, choices=PARTS_OF_ALL)
    parser.add_argument("--batch", type=int, default=64, help="rows per rollout and PPO update")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rows", type=int, default=256, help="rows per epoch of SFT and the reward model")
    parser.add_argument(
        "--profile", action="store_true", help="the kernels of a decoding step and an update (CUDA)"
    )
    parser.add_argument("--out", type=Path, help="where the numbers go, as JSON")
    return parser.parse_args()


def main() -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    args, found = arguments(), {}
    device = Device(args.device)
    name = torch.cuda.get_device_name() if device.cuda else "CPU"
    print(f"{name}, torch {torch.__version__}, model {args.model}, bf16\n", flush=True)
    work: dict[str, Callable[[Models], Any]] = {
        "rollouts": lambda m: rollouts(m, device, args.batch, args.new_tokens, args.profile),
        "ppo": lambda m: ppo(m, device, args.batch, args.new_tokens, args.profile),
        "rm": lambda m: train("rm", m, device, found["limits"]["flops"], args.rows, args.batch),
        "sft": lambda m: train("sft", m, device, found["limits"]["flops"], args.rows, args.batch),
        "label": lambda m: label(m, device, found["limits"]["flops"], args.rows // 2),
    }
    failed: list[str] = []
    if "check" in args.what:
        with part("check", failed):
            found["check"] = check(device.name)
    with part("limits", failed):
        found["limits"] = limits(device)
    models = Models.make(args.model, args.device, torch.bfloat16)
    for what in [name for name in work if name in args.what]:
        with part(what, failed):
            found[what] = work[what](models)
        if args.out:
            args.out.write_text(json.dumps(found, indent=2))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
