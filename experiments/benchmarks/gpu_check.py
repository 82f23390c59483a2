"""Is a device right? Its numbers in fp32 against the CPU's on a small model, and its kernels against float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from gpu_work import Models, fit, ppo_module, preference_rows, random_rows, score_head, sft_rows
from torch import Tensor, nn

from rlaif.data.datamodule import collate_preferences, collate_sequences
from rlaif.inference.decoding import kernels
from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.decoding.sampler import sample
from rlaif.inference.scorer import next_token_logprobs
from rlaif.ops import bradley_terry_loss, sft_loss
from rlaif.stages.common.scoring import pair_scores
from rlaif.stages.common.training.logprobs import response_logprobs

# Relative distances that rounding explains in fp32, and in a kernel that computes in bf16.
FP32, BF16 = 1e-4, 1e-2


def distance(found: Tensor, wanted: Tensor) -> float:
    """Relative: the norm of the difference over the norm of `wanted`."""
    found, wanted = found.detach().double().cpu(), wanted.detach().double().cpu()
    return float((found - wanted).norm() / wanted.norm())


def gradient(module: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten().cpu() for p in module.parameters() if p.grad is not None])


@dataclass
class Numbers:
    """Everything that is compared between devices."""

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


def check(device: str) -> dict[str, Any]:
    """All distances; at the end raises AssertionError that names what is further off than rounding explains."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    found: dict[str, Any] = {"kernels": kernel_gaps(device)}
    wrong = [
        name for name, gap in found["kernels"].items() if not gap < (BF16 if "bfloat16" in name else FP32)
    ]
    for trainable in ("full", "top:2", "lora:4"):
        there, here = numbers(device, trainable), numbers("cpu", trainable)
        row: dict[str, Any] = {name: distance(there.values[name], here.values[name]) for name in here.values}
        for name in here.texts:
            same = sum(a == b for a, b in zip(there.texts[name], here.texts[name], strict=True))
            row[f"{name} texts equal"] = f"{same} of {len(here.texts[name])}"
        for name in ("rl/reward", "rl/kl", "rl/policy_loss", "rl/value_loss", "rl/ratio_first"):
            row[name] = abs(there.history[name] - here.history[name])
        found[trainable] = row
        count = len(here.texts["greedy"])
        wrong += [f"{trainable}: {name}" for name, value in row.items() if not _right(value, count)]
        shown = ", ".join(f"{k} {v:.1e}" if isinstance(v, float) else f"{k}: {v}" for k, v in row.items())
        print(f"{trainable}: {shown}", flush=True)
    assert not wrong, f"not equal to the CPU: {', '.join(wrong)}"
    return found


def _right(value: float | str, count: int) -> bool:
    """Whether a distance is rounding, or all of `count` texts are equal."""
    return value == f"{count} of {count}" if isinstance(value, str) else value < FP32


def kernel_gaps(device: str) -> dict[str, float]:
    """The kernels of a decoding step against their plain versions, for several head and hidden sizes."""
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
        for name, kind in ((device, dtype), ("cpu", torch.float64)):
            own = {key: value.to(dtype).to(name, kind).clone() for key, value in given.items()}
            at = places.to(name)
            normed = kernels.add_norm(own["hidden"], own["added"], own["weight"], 1e-5)
            kernels.rotate_and_store(own["mixed"], (own["cos"], own["sin"]), own["keys"], own["values"], at)
            attended = kernels.attend_slots(own["mixed"], own["keys"], own["values"], at)
            gate = kernels.gated(own["both"])
            # Keys and values in `mixed` are no longer read.
            own["mixed"] = own["mixed"][:, : heads * size]
            outputs.append([own["hidden"], normed, own["mixed"], own["keys"], own["values"], attended, gate])
        gap = max(distance(a, b) for a, b in zip(*outputs, strict=True))
        found[f"{str(dtype).removeprefix('torch.')} {hidden}/{heads}/{groups}/{size}"] = gap
    print("kernels against float64: " + ", ".join(f"{k} {v:.1e}" for k, v in found.items()), flush=True)
    return found
