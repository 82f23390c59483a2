"""The models that a job runs in this process, what the probe found for them, and the memory that they take.

Memory comes from a model's sizes alone (meta device), so that plan=true can refuse a model before its weights are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlaif.errors import UserError
from rlaif.inference.cache import bytes_per_position
from rlaif.models.assemble import known_verdict
from rlaif.models.kernels.devices import memory_bytes
from rlaif.models.load import ModelSpec, describe_model, read_sizes
from rlaif.models.lora import parse_lora
from rlaif.models.parts.probe import Verdict
from rlaif.models.sizes import ModelSizes
from rlaif.models.split import parse_trainable
from rlaif.options.job import called
from rlaif.stages.common.context import Context
from rlaif.stages.graph import Planned
from rlaif.tracking.text import file_size

_FP32 = torch.float32.itemsize
_ADAMW = 3 * _FP32  # a gradient and two moments for each trained weight, all in fp32


def models_of(ctx: Context) -> dict[str, ModelSpec]:
    """The models of policy, labeler and judges that run in this process, each once, by who uses it first."""
    found = {"policy": ctx.model_spec}
    for key in ("labeler", *ctx.options.judge_keys):
        own = ctx.of(key)
        if ctx.options.asked(key).engine == "transformers" and own.labeler_spec not in found.values():
            found[called(key)] = own.labeler_spec
    return found


@dataclass(frozen=True)
class ModelMemory:
    """Bytes that a model takes at least, without activations.

    Args:
        reading: in the processor's memory while weights are read, in fp32.
        base: what all roles share, and the weights that a trained role starts from.
        role: the fp32 masters of what one role trains.
        training: gradients and AdamW's state of that role.
    """

    reading: int
    base: int
    role: int
    training: int

    @classmethod
    def of(cls, spec: ModelSpec, sizes: ModelSizes) -> ModelMemory:
        item = getattr(torch, spec.dtype).itemsize
        lora, total = parse_lora(spec.trainable, spec.lora_alpha), sizes.total_weights
        top = parse_trainable(spec.trainable, sizes.num_layers)
        if lora is not None:
            owned, trained = 0, lora.rank * sizes.adapter_weights
        else:
            owned = trained = total if top == sizes.num_layers else top * sizes.stored_layer_weights
        base = (total - owned) * item + owned * _FP32
        return cls(total * _FP32, base, trained * _FP32, trained * _ADAMW)

    @property
    def trained(self) -> int:
        """With one role in training."""
        return self.base + self.role + self.training


def memory_of(spec: ModelSpec) -> ModelMemory | None:
    """The memory of a model; None if `spec` names no kind of model that there is, which others refuse."""
    return ModelMemory.of(spec, read_sizes(spec)) if spec.source in ("embedded", "hub", "tiny") else None


def check_memory(ctx: Context) -> None:
    """Raises UserError for a model whose weights this machine cannot hold."""
    for spec in models_of(ctx).values():
        memory = memory_of(spec)
        if memory is not None:
            _fits(spec, memory.reading, "cpu", "weights in float32, as they are read")
            _fits(spec, memory.base, spec.device, f"weights in {spec.dtype}")


def check_training(ctx: Context, plan: Sequence[Planned]) -> None:
    """Raises UserError if something is trained whose weights, gradients and AdamW state this machine cannot hold."""
    spec = ctx.model_spec
    memory = memory_of(spec)
    if memory is not None and any(p.work.trained + p.work.ranked for p in plan if not p.exists):
        what = f"weights, gradients and AdamW's state with model.trainable={spec.trainable}"
        _fits(spec, memory.trained, spec.device, what)


def _fits(spec: ModelSpec, need: int, device: str, what: str) -> None:
    have = memory_bytes(device)
    if have is None or need <= have:
        return
    group = spec.key.partition(".")[0]
    trains = group == "model" and not spec.trainable.startswith("lora:") and "AdamW" in what
    instead = "model.trainable=top:1 or lora:8, or a smaller model" if trains else f"a smaller {spec.key}"
    raise UserError(
        f"{spec.key}={spec.name}: {file_size(need)} of {what} do not fit the {file_size(have)} of {_place(device)}: "
        f"write {instead}"
    )


def _place(device: str) -> str:
    return "memory of this machine" if device == "cpu" else "the GPU's memory"


def memory_lines(ctx: Context) -> list[str]:
    """What each model takes, in words."""
    told = []
    for who, spec in models_of(ctx).items():
        memory = memory_of(spec)
        if memory is None:
            continue
        parts = [f"{who} ({spec.name}): {file_size(memory.base)} of weights"]
        if who == "policy":
            parts.append(
                f"{file_size(memory.role + memory.training)} more for each role in training (model.trainable="
                f"{spec.trainable}: weights, gradients, AdamW)"
            )
        told.append(", ".join([*parts, *_cache(ctx, spec)]))
    place = {"cpu": "this machine has", "cuda": "the GPU has", "mps": "the GPU may use"}
    devices = dict.fromkeys(["cpu", *(spec.device for spec in models_of(ctx).values())])
    have = [f"{place[device]} {file_size(size)}" for device in devices if (size := memory_bytes(device))]
    return [*told, ", ".join(have)] if have else told


def _cache(ctx: Context, spec: ModelSpec) -> list[str]:
    verdict = known_verdict(ctx.cache_dir / "verdicts", describe_model(spec, ctx.cache_dir))
    return [] if verdict is None or not verdict.shapes else [_cache_size(verdict, spec.dtype)]


def _cache_size(verdict: Verdict, dtype: str) -> str:
    size = bytes_per_position(verdict.shapes, getattr(torch, dtype))
    return f"{file_size(size)} of keys and values per token of a row"


PACKED, APART = "packed rows", "one text per row"


def attention_path(verdict: Verdict) -> str:
    """`PACKED` if our attention patterns hold for a model, else `APART`."""
    return PACKED if verdict.patterns else APART


def verdict_lines(verdict: Verdict, dtype: str) -> list[str]:
    """What the probe found, in words, for a model that computes in `dtype`."""
    why = f" ({verdict.why})" if verdict.why else ""
    if verdict.patterns:
        lines = [
            f"attention: {PACKED} (pairs share their prompt, texts their beginning), {_cache_size(verdict, dtype)}"
        ]
    else:
        lines = [
            f"attention: {APART}, by transformers' own attention and cache, since ours fails a check{why}"
        ]
    if verdict.split:
        lines.append("top:K: possible")
    else:
        lines.append(f"top:K: not possible, its layers do not run in two parts{why}: full or lora:R")
    lines.append(
        "last layer: at the positions that are read, where few are"
        if verdict.rows
        else "last layer: at all positions, also where one is read"
    )
    lines.append(f"bfloat16: {f'not possible ({verdict.bf16})' if verdict.bf16 else 'possible'}")
    return lines
