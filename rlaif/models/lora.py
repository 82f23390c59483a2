"""Low-rank adapters (Hu et al. 2022): each role's small matrices on frozen layers that all roles share.

Each linear layer of attention and MLP computes W x + (alpha / r) B A x. W stays as it is; A (r, in) and B (out, r) are
trained, as fp32 masters. B starts at zero, so that a role starts as the base model. Adapters are never merged for
computation: an update far smaller than a bf16 step of W would be lost.

Notation: N rows, r rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlaif.errors import UserError
from rlaif.models.decoder import Block, DecoderConfig, Linear, Norm


@dataclass(frozen=True)
class Lora:
    """The adapters' rank r, and alpha: their output is scaled by alpha / r."""

    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def parse_lora(spec: str, alpha: float | None) -> Lora | None:
    """The adapters that `model.trainable=lora:R` asks for; None for any other kind of split."""
    match = re.fullmatch(r"lora:(\d+)", spec)
    if not match:
        return None
    rank = int(match[1])
    if rank < 1:
        raise UserError(f"model.trainable={spec} trains nothing: write a rank of at least 1, such as lora:8")
    if alpha is None or not alpha > 0:
        raise UserError(f"model.lora_alpha={alpha} gives the adapters no effect: write a number above 0")
    return Lora(rank, float(alpha))


class Shared(nn.Module):
    """A module of the trunk, used but not owned: it is not in any role's parameters or checkpoints."""

    owner: nn.Module

    def __init__(self, owner: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "owner", owner)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.owner(*inputs)


class Adapted(nn.Module):
    """A frozen, shared linear layer with its own low-rank update."""

    base: Linear

    def __init__(self, base: Linear, lora: Lora) -> None:
        super().__init__()
        object.__setattr__(self, "base", base)
        self.scale = lora.scale
        self.a = nn.Parameter(torch.zeros(lora.rank, base.in_features))
        self.b = nn.Parameter(torch.zeros(base.out_features, lora.rank))

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Reset: A uniform within 1 / sqrt(in) (Kaiming's bound for a linear layer), B zero."""
        bound = self.base.in_features**-0.5
        drawn = torch.empty(self.a.shape).uniform_(-bound, bound, generator=generator)
        self.a.copy_(drawn)  # the same numbers on every device
        self.b.zero_()

    def merged(self) -> Tensor:
        """The single weight (out, in) in fp32 that computes the same."""
        update = self.b.detach().float() @ self.a.detach().float()
        return self.base.weight.detach().float() + self.scale * update

    def forward(self, input: Tensor) -> Tensor:
        a, b = self.a.to(input.dtype), self.b.to(input.dtype)
        return _AdaptedLinear.apply(input, self.base.weight, self.base.bias, a, b, self.scale)


class _AdaptedLinear(torch.autograd.Function):
    """x W^T + bias + scale (x A^T) B^T for a frozen W, with updates added in place.

    Autograd would make, and add up, one more tensor of the input's and of the output's size.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        rows = input.flatten(0, -2)
        low = rows @ a.T
        ctx.save_for_backward(rows, weight, a, b, low)
        ctx.shape, ctx.scale = input.shape, scale
        return F.linear(rows, weight, bias).addmm_(low, b.T, alpha=scale).view(*input.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        rows, weight, a, b, low = ctx.saved_tensors
        grad = grad.reshape(len(rows), -1)
        low_grad = (grad @ b).mul_(ctx.scale)
        input_grad = None
        if ctx.needs_input_grad[0]:
            input_grad = (grad @ weight).addmm_(low_grad, a).view(ctx.shape)
        return input_grad, None, None, low_grad.T @ rows, (grad.T @ low).mul_(ctx.scale), None


def adapt(block: Block, config: DecoderConfig, lora: Lora) -> Block:
    """A block with its own adapters on the weights of `block`, which stay shared."""
    with torch.device("meta"):
        twin = Block(config)
    for name, part in block.named_modules():
        if isinstance(part, Linear):
            twin.set_submodule(name, Adapted(part, lora))
        elif isinstance(part, Norm):
            twin.set_submodule(name, Shared(part))
    return twin


def drop_idle(module: nn.Module) -> None:
    """Remove adapters that add nothing: a role that equals the base model should cost no more than it."""
    for name, layer in list(adapted_layers(module)):
        if not layer.b.any():
            module.set_submodule(name, Shared(layer.base))


def adapted_layers(module: nn.Module) -> Iterator[tuple[str, Adapted]]:
    """Every adapted layer of `module` with its name."""
    return ((name, part) for name, part in module.named_modules() if isinstance(part, Adapted))
