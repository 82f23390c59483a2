"""Faster forms of modules that are common to many architectures, each checked by numbers before it is used.

A swap changes a module's class to a subclass of it with another forward, so that weights, names, copies and exports
stay as they were. A module is of a kind if it computes what the kind says on random input; no name of a class is asked.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlaif.models.attention import is_plain


class RMSNorm(torch.autograd.Function):
    """Root-mean-square normalisation in about a third of the passes over memory that torch's CPU kernel needs.

    As in transformers' Llama, x / rms(x) is computed in fp32 and rounded to the input's dtype before it is multiplied
    by the weight. The same function with and without gradients: PPO's first ratio is 1 only if both round alike.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = hidden.to(_wide(hidden.dtype), copy=True)
        square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        scale = square.div_(hidden.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(hidden, weight, scale)
        return wide.mul_(scale).to(hidden.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        hidden, weight, scale = ctx.saved_tensors
        unit = hidden * scale
        grad = grad.to(unit.dtype)
        weighted = grad * unit
        weight_grad = weighted.flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        shared = weighted.matmul(weight.to(unit.dtype)).unsqueeze(-1).div_(hidden.shape[-1])
        hidden_grad = (grad * weight).sub_(unit.mul_(shared)).mul_(scale)
        return hidden_grad.to(hidden.dtype), weight_grad, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def norm_eps(module: nn.Module) -> float | None:
    """The epsilon of a module with one weight vector and nothing else, by either of its usual names."""
    names = [name for name, _ in module.named_parameters()]
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return float(eps) if names == ["weight"] and module.weight.dim() == 1 and isinstance(eps, float) else None  # type: ignore[operator]


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    if is_plain(hidden_states.device):
        return RMSNorm.apply(hidden_states, self.weight, self.swap_eps)
    return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.swap_eps)


def _gate_forward(self: Any, hidden_states: Tensor) -> Tensor:
    gate, up = self.gate_proj(hidden_states), self.up_proj(hidden_states)
    if torch.is_grad_enabled():
        return self.down_proj(F.silu(gate) * up)
    # Allocating memory of this size would cost more than the products themselves.
    return self.down_proj(F.silu(gate, inplace=True).mul_(up))


@cache
def _subclass(own: type, kind: str) -> type:
    forward = {"norm": _norm_forward, "gate": _gate_forward}[kind]
    return type(own.__name__, (own,), {"forward": forward, "swapped": kind, "__module__": own.__module__})


def kind_of(module: nn.Module) -> str | None:
    """The kind of a swapped module: `norm`, `gate` or None."""
    return getattr(type(module), "swapped", None)


@torch.no_grad()
def swap_modules(root: nn.Module) -> int:
    """Swap every module below `root` that is of a known kind; returns how many were."""
    count = 0
    for module in list(root.modules()):
        kind = "norm" if _is_norm(module) else "gate" if _is_gate(module) else None
        if kind is None or kind_of(module):
            continue
        if kind == "norm":
            module.swap_eps = norm_eps(module)  # type: ignore[assignment]
        module.__class__ = _subclass(type(module), kind)  # type: ignore[arg-type]
        count += 1
    return count


def _is_norm(module: nn.Module) -> bool:
    eps = norm_eps(module)
    if eps is None or isinstance(module, (nn.LayerNorm, nn.Embedding)):
        return False
    if len(inspect.signature(module.forward).parameters) != 1:  # a gated norm is given more
        return False
    weight: Tensor = module.weight  # type: ignore[assignment]
    drawn = torch.randn(3, weight.shape[0], generator=torch.Generator().manual_seed(0)).to(weight.device)
    # bf16 tells apart kinds that differ only in where they round.
    return all(_same_norm(module, drawn.to(dtype), eps) for dtype in (torch.float32, torch.bfloat16))


def _same_norm(module: nn.Module, hidden: Tensor, eps: float) -> bool:
    own: Tensor = module.weight.data  # type: ignore[assignment]
    weight = torch.linspace(0.5, 1.5, len(own), device=own.device).to(hidden.dtype)
    expected = RMSNorm.apply(hidden, weight, eps)
    try:
        module.weight.data = weight
        found = module(hidden)
    except (RuntimeError, TypeError, ValueError):
        return False
    finally:
        module.weight.data = own
    close = 1e-6 if hidden.dtype == torch.float32 else 1e-3
    return isinstance(found, Tensor) and found.shape == hidden.shape and _agree(found, expected, close)


def _agree(found: Tensor, expected: Tensor, close: float) -> bool:
    """Almost everywhere equal: rounding of a sum may flip the last bit of a few numbers in bf16."""
    scale = expected.abs().clamp_min(1e-3)
    return bool(((found - expected).abs() <= close * scale).float().mean() > 0.98)


def _is_gate(module: nn.Module) -> bool:
    parts = dict(module.named_children())
    act = parts.pop("act_fn", None)
    if set(parts) != {"gate_proj", "up_proj", "down_proj"} or act is None:
        return False
    gate, up, down = (parts[name] for name in ("gate_proj", "up_proj", "down_proj"))
    if not all(type(part) is nn.Linear for part in (gate, up, down)):
        return False
    weight: Tensor = gate.weight  # type: ignore[assignment]
    drawn = torch.randn(2, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    try:
        found = module(drawn)
    except (RuntimeError, TypeError, ValueError):
        return False
    expected = down(F.silu(gate(drawn)) * up(drawn))
    return isinstance(found, Tensor) and torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
