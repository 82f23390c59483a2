"""Low-rank adapters (Hu et al. 2022): each role's small matrices on frozen layers that all roles share.

Each linear layer of the decoder layers computes W x + (alpha / r) B A x. W stays as it is; A (r, in) and B (out, r) are
trained, as fp32 masters. B starts at zero, so that a role starts as the base model. Adapters are never merged for
computation: an update far smaller than a bf16 step of W would be lost.

Notation: N rows, r rank.
"""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlaif.errors import UserError


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


def adaptable(module: nn.Module) -> bool:
    """Whether a module is a plain linear layer, or GPT-2's, whose weight is stored transposed."""
    return _is_linear(module) or transposed(module)


def _is_linear(module: nn.Module) -> bool:
    if not isinstance(module, nn.Linear):
        return False
    return type(module).forward is nn.Linear.forward or _acts_linear(module)


@torch.no_grad()
def _acts_linear(module: nn.Linear) -> bool:
    """Whether a subclass's own forward computes what a linear layer does (Falcon's; not that of a quantised one)."""
    drawn = torch.randn(2, module.in_features, generator=torch.Generator().manual_seed(0)).to(module.weight)
    try:
        found = module(drawn)
    except (RuntimeError, TypeError, ValueError):
        return False
    wanted = F.linear(drawn, module.weight, module.bias)
    alike = isinstance(found, Tensor) and found.shape == wanted.shape
    return alike and torch.allclose(found, wanted, rtol=1e-2, atol=1e-3)


def transposed(module: nn.Module) -> bool:
    """Whether a linear layer stores its weight as (in, out), as GPT-2's does."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


class Adapted(nn.Module):
    """A frozen, shared linear layer with its own low-rank update."""

    base: nn.Module

    def __init__(self, base: nn.Module, lora: Lora) -> None:
        super().__init__()
        object.__setattr__(self, "base", base)  # shared: in no role's parameters or checkpoints
        self.scale = lora.scale
        self.out_features, self.in_features = self._matrix().shape
        self.a = nn.Parameter(torch.zeros(lora.rank, self.in_features))
        self.b = nn.Parameter(torch.zeros(self.out_features, lora.rank))

    def _matrix(self) -> Tensor:
        """The frozen weight (out, in)."""
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        return weight.T if transposed(self.base) else weight

    @property
    def weight(self) -> Tensor:
        """What computes the same as one matrix, stored as the base's is, for code that reads weights itself."""
        update = self.scale * (self.b @ self.a)
        base: Tensor = self.base.weight  # type: ignore[assignment]
        return base + (update.T if transposed(self.base) else update).to(base.dtype)

    @property
    def bias(self) -> Tensor | None:
        """The base's, frozen."""
        return self.base.bias  # type: ignore[return-value]

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Reset: A uniform within 1 / sqrt(in) (Kaiming's bound for a linear layer), B zero."""
        bound = self.in_features**-0.5
        drawn = torch.empty(self.a.shape).uniform_(-bound, bound, generator=generator)
        self.a.copy_(drawn)  # the same numbers on every device
        self.b.zero_()

    def merged(self) -> nn.Module:
        """A module like the base, in fp32, that computes the same."""
        whole = deepcopy(self.base).float()
        update = self.scale * (self.b.detach().float() @ self.a.detach().float())
        weight: Tensor = whole.weight  # type: ignore[assignment]
        weight.data += update.T if transposed(self.base) else update
        return whole

    def forward(self, input: Tensor) -> Tensor:
        a, b = self.a.to(input.dtype), self.b.to(input.dtype)
        return _AdaptedLinear.apply(input, self._matrix(), self.bias, a, b, self.scale)


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
