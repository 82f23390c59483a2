"""One GPU: is it right there, and how near does it come to what the card can do.

    python experiments/benchmarks/gpu.py --out gpu.json

It needs torch, transformers, pytorch-lightning and PyYAML, no network, no tokenizer and no file: models are random
Llamas of a stated size, prompts random ids of lengths as in HH dialogues (72 tokens on average).

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
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from rlaif.data.datamodule import (
    EncodedRow,
    PreferenceRow,
    TextDataModule,
    collate_preferences,
    collate_sequences,
)
from rlaif.inference.replay import Replays
from rlaif.inference.sampler import Decoding, sample
from rlaif.inference.scorer import next_token_logprobs
from rlaif.models.decoder import DecoderConfig
from rlaif.models.lora import parse_lora
from rlaif.models.split import ScalarHead, Top, Trunk, parse_trainable
from rlaif.modules import PPOModule, PPOOptions, RewardModule, SFTModule
from rlaif.modules.optim import OptimOptions, response_logprobs
from rlaif.modules.reward import PreferenceLossOptions, pair_scores, sequence_scores
from rlaif.ops import bradley_terry_loss, sft_loss
from rlaif.records import Prompt
from rlaif.rollout import Rollout, RolloutCollector

CONF = Path(__file__).parents[2] / "conf" / "rl"
# layers, hidden size, width of the feed-forward block, heads, key/value heads, tied
SIZES = {
    "tiny": (6, 128, 352, 4, 2, True),
    "135m": (30, 576, 1536, 9, 3, True),
    "1b": (16, 2048, 8192, 32, 8, False),
}
VOCABULARY = 49_152
PLAIN_LOSS = PreferenceLossOptions(margin=0.0, label_smoothing=0.0, temperature=1.0, centering=0.0)
OPTIM = OptimOptions(1e-4, 0.0, 1e-8, "constant", 0.0, 1000, 1.0)


# Models and rows.


@dataclass
class Models:
    """One random Llama: transformers' own module, and trunks that split it in different ways."""

    plain: LlamaForCausalLM
    config: DecoderConfig

    @classmethod
    def make(cls, size: str, device: str, dtype: torch.dtype, vocabulary: int = VOCABULARY) -> Models:
        layers, hidden, inner, heads, groups, tied = SIZES[size]
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            max_position_embeddings=8192,
            tie_word_embeddings=tied,
            rope_theta=100_000.0,
            bos_token_id=1,
            eos_token_id=2,
        )
        torch.manual_seed(0)
        with torch.device(device):
            plain = LlamaForCausalLM(config).to(dtype).eval()
        return cls(plain, DecoderConfig.from_hf(config))

    def trunk(self, trainable: str) -> Trunk:
        weight = self.plain.lm_head.weight
        trunk = Trunk(
            self.config,
            self.plain.config,
            self.plain.state_dict(),
            parse_trainable(trainable, self.config.num_layers),
            weight.dtype,
            parse_lora(trainable, 16.0),
        )
        return trunk.to(weight.device)

    @property
    def weights(self) -> int:
        """Weights that a token meets in the layers."""
        return self.config.layer_weights * self.config.num_layers

    @property
    def head(self) -> int:
        return self.config.hidden_size * self.config.vocab_size


def random_rows(count: int, low: int, high: int, vocabulary: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high, (count,), generator=generator).tolist()
    return [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in lengths]


def score_head(trunk: Trunk) -> ScalarHead:
    head = ScalarHead(trunk.config.hidden_size).init_normal(torch.Generator().manual_seed(0))
    return head.to(trunk.device)


@torch.no_grad()
def features_of(trunk: Trunk, ids: Sequence[int]) -> Tensor:
    """Features of one text on the CPU, as the feature cache gives them."""
    return trunk(torch.tensor([list(ids)], device=trunk.device))[0].cpu()


def sft_rows(trunk: Trunk, prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> list[EncodedRow]:
    rows = []
    for prompt, response in zip(prompts, responses, strict=True):
        found = features_of(trunk, [*prompt, *response])
        rows.append(
            EncodedRow(torch.tensor([*prompt, *response]), found[: len(prompt)], found[len(prompt) :])
        )
    return rows


def preference_rows(
    trunk: Trunk, prompts: Sequence[list[int]], first: Sequence[list[int]], second: Sequence[list[int]]
) -> list[PreferenceRow]:
    rows = []
    for prompt, a, b in zip(prompts, first, second, strict=True):
        one, other = features_of(trunk, [*prompt, *a]), features_of(trunk, [*prompt, *b])
        size = len(prompt)
        rows.append(PreferenceRow(one[:size], one[size:], other[size:], p_a=0.8, weight=1.0))
    return rows


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
        gc.collect()  # of what came before, some lies in cycles
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def gib(self) -> float:
        return torch.cuda.max_memory_allocated() / 2**30 if self.cuda else float("nan")


@contextmanager
def part(name: str) -> Any:
    started = time.perf_counter()
    print(f"## {name}", flush=True)
    try:
        yield
    except Exception:  # a machine paid by the minute: the other parts are worth their time
        traceback.print_exc()
    print(f"({name}: {time.perf_counter() - started:.0f} s in all)\n", flush=True)


# Is it right?


def distance(found: Tensor, wanted: Tensor) -> float:
    """Relative: the norm of the difference over the norm."""
    found, wanted = found.detach().double().cpu(), wanted.detach().double().cpu()
    return float((found - wanted).norm() / wanted.norm())


def gradient(module: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten().cpu() for p in module.parameters() if p.grad is not None])


@dataclass
class Numbers:
    """All that is compared of one device."""

    values: dict[str, Tensor]
    texts: dict[str, list[tuple[int, ...]]]
    history: dict[str, float]


def numbers(device: str, trainable: str) -> Numbers:
    models = Models.make("tiny", "cpu", torch.float32, vocabulary=512)
    models.plain.to(device)
    trunk = models.trunk(trainable)
    with torch.no_grad():
        for name, weight in trunk.named_parameters():
            assert weight.device.type == device, name
    prompts, chosen, rejected = (
        random_rows(12, *span, 512, seed) for seed, span in enumerate(((4, 40),) * 3)
    )
    values: dict[str, Tensor] = {}
    top, head = trunk.new_top(), score_head(trunk)
    batch = collate_sequences(sft_rows(trunk, prompts, chosen)).to(device)
    values["logits"] = top.logits(top(batch.features))[batch.response_mask]
    loss, _ = sft_loss(response_logprobs(top, batch), batch.response_mask)
    loss.backward()
    values["sft loss"], values["sft gradient"] = loss, gradient(top)
    top.zero_grad()
    pairs = collate_preferences(preference_rows(trunk, prompts, chosen, rejected)).to(device)
    options = {"margin": 0.0, "label_smoothing": 0.0, "temperature": 1.0, "centering": 0.0}
    loss, _ = bradley_terry_loss(*pair_scores(top, head, pairs), pairs.p_a, weight=None, **options)
    loss.backward()
    values["rm loss"], values["rm gradient"] = loss, gradient(top)
    texts = {}
    for name, decoding in (("greedy", Decoding(24, 0.0)), ("sampled", Decoding(24, 1.0))):
        drawn = sample(
            trunk.new_top(),
            prompts,
            range(12),
            decoding,
            eos_ids=range(0, 512, 20),
            max_rows=12,
            keep_features=True,
        )
        texts[name] = [one.ids for one in drawn]
    values["kept features"] = torch.cat([one.features.flatten().float().cpu() for one in drawn])
    values["choices"] = torch.tensor(next_token_logprobs(trunk.new_top(), prompts, [5, 6])[0])
    module = ppo_module(
        trunk, batch=12, new_tokens=16, value="shared", minibatch=6, eos_ids=range(0, 512, 20)
    )
    fit(module, device, 1)
    values["policy after PPO"] = torch.cat([p.detach().flatten().cpu() for p in module.policy.parameters()])
    return Numbers(values, texts, module.history[0])


def check(device: Device) -> dict[str, Any]:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    found: dict[str, Any] = {"kernels": kernel_gaps(device)}
    for trainable in ("full", "top:2", "lora:4"):
        there, here = numbers(device.name, trainable), numbers("cpu", trainable)
        row: dict[str, Any] = {name: distance(there.values[name], here.values[name]) for name in here.values}
        for name in here.texts:
            same = sum(a == b for a, b in zip(there.texts[name], here.texts[name], strict=True))
            row[f"{name} texts equal"] = f"{same} of {len(here.texts[name])}"
        for name in ("ppo/reward", "ppo/kl", "ppo/policy_loss", "ppo/value_loss", "ppo/ratio_first"):
            row[name] = abs(there.history[name] - here.history[name])
        found[trainable] = row
        shown = ", ".join(f"{k} {v:.1e}" if isinstance(v, float) else f"{k}: {v}" for k, v in row.items())
        print(f"{trainable}: {shown}", flush=True)
    return found


def kernel_gaps(device: Device) -> dict[str, float]:
    """The kernels of a decoding step against their plain form, for several head and hidden sizes."""
    from rlaif.inference import kernels

    found: dict[str, float] = {}
    torch.manual_seed(0)
    for dtype, hidden, heads, groups, size in (
        (torch.float32, 128, 4, 2, 32),
        (torch.float32, 576, 9, 3, 64),
        (torch.float32, 960, 12, 4, 80),
        (torch.bfloat16, 2048, 32, 8, 64),
        (torch.bfloat16, 4096, 32, 8, 128),
    ):
        rows, slots = 6, 192
        given = {
            "hidden": torch.randn(rows, hidden),
            "added": torch.randn(rows, hidden),
            "weight": torch.randn(hidden),
            "mixed": torch.randn(rows, (heads + 2 * groups) * size),
            "cos": torch.randn(slots, size),
            "sin": torch.randn(slots, size),
            "keys": torch.randn(rows, groups, slots, size),
            "values": torch.randn(rows, groups, slots, size),
            "both": torch.randn(rows, 2 * hidden),
        }
        places = torch.tensor([0, 1, 63, 64, 130, slots - 1])
        outputs = []
        for name, kind in ((device.name, dtype), ("cpu", torch.float64)):
            own = {key: value.to(dtype).to(name, kind).clone() for key, value in given.items()}
            at = places.to(name)
            normed = kernels.add_norm(own["hidden"], own["added"], own["weight"], 1e-5)
            kernels.rotate_and_store(own["mixed"], (own["cos"], own["sin"]), own["keys"], own["values"], at)
            attended = kernels.attend_slots(own["mixed"], own["keys"], own["values"], at)
            gate = kernels.gated(own["both"])
            # Keys and values in `mixed` are read no more.
            own["mixed"] = own["mixed"][:, : heads * size]
            outputs.append([own["hidden"], normed, own["mixed"], own["keys"], own["values"], attended, gate])
        gap = max(distance(a, b) for a, b in zip(*outputs, strict=True))
        found[f"{str(dtype).removeprefix('torch.')} {hidden}/{heads}/{groups}/{size}"] = gap
    print("kernels against float64: " + ", ".join(f"{k} {v:.1e}" for k, v in found.items()), flush=True)
    return found


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
                f"{trainable}, {name}: {rows * new / seconds:,.0f} tokens/s ({seconds * 1e3 / new:.2f} ms a step, "
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


def fit(module: pl.LightningModule, device: str, epochs: int, data: Any = None) -> None:
    trainer = pl.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        max_epochs=epochs,
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data) if data is not None else trainer.fit(module)


def ppo_options(**changed: Any) -> PPOOptions:
    """`rl=ppo` as it stands in the configuration."""
    node = yaml.safe_load((CONF / "_common.yaml").read_text())
    node |= yaml.safe_load((CONF / "ppo.yaml").read_text()) | {"missing_eos_penalty": 0.0} | changed
    names = {field.name for field in fields(PPOOptions)} - {"seed"}
    floats = {"lr", "eps"}
    return PPOOptions(**{name: float(node[name]) if name in floats else node[name] for name in names}, seed=0)


def ppo_module(
    trunk: Trunk, *, batch: int, new_tokens: int, value: str, minibatch: int, eos_ids: Any = ()
) -> PPOModule:
    vocabulary = trunk.config.vocab_size
    prompts = random_rows(
        batch * 8, 4 if vocabulary < 1000 else 16, 40 if vocabulary < 1000 else 128, vocabulary, 0
    )
    collector = RolloutCollector(
        [Prompt(str(i), str(i)) for i in range(len(prompts))],
        prompts,
        lambda ids: " ".join(map(str, ids)),
        Decoding(new_tokens, 1.0),
        eos_ids=eos_ids,
        samples_per_prompt=1,
        max_rows=batch,
        seed=0,
    )
    policy, reward, head = trunk.new_top(), trunk.new_top().frozen_copy(), score_head(trunk)

    def collect(iteration: int) -> Rollout:
        first = iteration * batch % len(prompts)
        return collector.collect(policy, range(first, first + batch), iteration)

    return PPOModule(
        policy,
        score_head(trunk),
        trunk.new_top() if value == "separate" else None,
        policy.frozen_copy(),
        collect=collect,
        reward=lambda r: sequence_scores(reward, head, r.features, r.last),
        diagnose=lambda _: {},
        watch=lambda _: None,
        tracker=None,
        rollouts_per_iteration=batch,
        options=ppo_options(minibatch_rollouts=minibatch),
        optim=OptimOptions(1e-6, 0.0, 1e-8, "constant", 0.0, 1000, 1.0),
    )


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
        seconds = {name: fmean(row[f"ppo/seconds_{name}"] for row in rows) for name in PARTS}
        found[side] = {**seconds, "gib": device.gib()}
        shown = ", ".join(f"{name} {value:.3f}" for name, value in seconds.items())
        print(
            f"{side}: {sum(seconds.values()):.2f} s an iteration ({shown}), {device.gib():.1f} GiB",
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
    """When each optimiser step ended, the device waited for."""

    def __init__(self, device: Device) -> None:
        self.device, self.ends = device, []

    def on_train_batch_end(self, *_: Any) -> None:
        self.device.wait()
        self.ends.append(time.perf_counter())


def train(what: str, models: Models, device: Device, limit: float, count: int, batch: int) -> dict[str, Any]:
    """Rows/s of SFT (`sft`) or the reward model (`rm`), and the share of the card's rate in `full`."""
    vocabulary, found = models.config.vocab_size, {}
    prompts, first, second = (random_rows(count, 32, 128, vocabulary, seed) for seed in range(3))
    tokens = sum(map(len, [*prompts, *first, *(second if what == "rm" else [])])) / count
    for trainable in ("full", "top:4"):
        device.start_memory()
        trunk = models.trunk(trainable)
        sizes = {"batch_size": batch, "micro_batch_size": batch, "seed": 0}
        if what == "sft":
            data = TextDataModule.sft_view(sft_rows(trunk, prompts, first), [], **sizes)
            module: pl.LightningModule = SFTModule(trunk.new_top(), OPTIM)
        else:
            rows = preference_rows(trunk, prompts, first, second)
            data = TextDataModule.preference_view([rows], [], epochs_per_phase=2, **sizes)
            members = [(trunk.new_top(), score_head(trunk))]
            module = RewardModule(
                members, OPTIM, PLAIN_LOSS, head_lr_factor=1.0, patience=None, choose_from=0
            )
        clock = Clock(device)
        trainer_fit(module, data, device, clock, 2)
        steps = len(clock.ends) // 2
        seconds = (clock.ends[-1] - clock.ends[steps - 1]) / (len(clock.ends) - steps)
        share = 6 * models.weights * tokens * batch / seconds / limit if trainable == "full" else float("nan")
        found[trainable] = {"rows_per_s": batch / seconds, "share": share, "gib": device.gib()}
        print(
            f"{what} {trainable}: {batch / seconds:.0f} rows/s ({tokens:.0f} tokens a row), first step "
            f"{clock.ends[0] - clock.started:.1f} s, {share:.0%} of the card's bf16 rate, {device.gib():.1f} GiB",
            flush=True,
        )
        del module, trunk, data
    return found


def trainer_fit(module: pl.LightningModule, data: Any, device: Device, clock: Clock, epochs: int) -> None:
    clock.started = time.perf_counter()
    trainer = pl.Trainer(
        accelerator="gpu" if device.cuda else "cpu",
        devices=1,
        max_epochs=epochs,
        callbacks=[clock],
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)


# Labeling.


def label(models: Models, device: Device, limit: float, count: int) -> dict[str, float]:
    """Judgements/s with two exemplars (600 shared tokens, 60 of the context, 2 x 60 of the responses, both orders)."""
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
    parser.add_argument("--batch", type=int, default=64, help="rows of a rollout and a PPO update")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rows", type=int, default=256, help="rows of an epoch of SFT and the reward model")
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
    if "check" in args.what:
        with part("check"):
            found["check"] = check(device)
    with part("limits"):
        found["limits"] = limits(device)
    models = Models.make(args.model, args.device, torch.bfloat16)
    for what in [name for name in work if name in args.what]:
        with part(what):
            found[what] = work[what](models)
        if args.out:
            args.out.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
