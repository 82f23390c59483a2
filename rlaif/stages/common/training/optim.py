"""The optimiser and schedule that the three modules share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from rlaif.errors import UserError
from rlaif.ops import ranks, total

SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class OptimOptions:
    """AdamW and its schedule. `lr` is the peak, which `schedule` decays to zero at `total_steps`.

    `gradient_clip` bounds the gradient norm of each parameter group; 0 leaves gradients as they are.
    """

    lr: float
    weight_decay: float
    eps: float
    schedule: str
    warmup_fraction: float
    total_steps: int
    gradient_clip: float

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule {self.schedule!r} is not one of {', '.join(SCHEDULES)}")


def schedule_factor(options: OptimOptions) -> Callable[[int], float]:
    """The learning rate's factor at each optimiser step: linear warm-up, then the decay over the remaining steps.

    Like transformers' schedules with warm-up, except that the first step's rate is not zero.
    """
    warmup = round(options.warmup_fraction * options.total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, options.total_steps - warmup))
        cosine = 0.5 * (1 + math.cos(math.pi * done))
        return {"constant": 1.0, "linear": 1 - done, "cosine": cosine}[options.schedule]

    return factor


def build_optimizer(groups: Iterable[tuple[Iterable[nn.Parameter], float]], options: OptimOptions) -> dict:
    """Lightning's optimiser dict: one AdamW over (parameters, learning-rate factor) groups."""
    params = [{"params": list(members), "lr": options.lr * scale} for members, scale in groups]
    # Fused: one pass over memory instead of ten, which saves time when all of the model is trained on a CPU.
    optimizer = torch.optim.AdamW(
        params, lr=options.lr, eps=options.eps, weight_decay=options.weight_decay, fused=True
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule_factor(options))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def clip_each_group(optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
    """Clip each parameter group's gradient norm separately, so that a wild critic cannot starve the policy.

    Returns the norm () of all gradients before clipping.
    """
    norms = []
    for group in optimizer.param_groups:
        gradients = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(gradients))
        if max_norm:
            torch.nn.utils.clip_grads_with_norm_(group["params"], max_norm, norms[-1])
    return torch.stack(norms).norm()


def require_finite(value: Tensor, what: str, place: str) -> None:
    """Raises UserError, before `value` (of any shape) is used, if not all of it is finite."""
    odd = int((~value.isfinite()).sum())
    if odd:
        count = f" in {odd} of {value.numel()} places" if value.numel() > 1 else ""
        raise UserError(
            f"{place}: the {what} is not finite (NaN or infinity){count}; it was discarded: write a lower lr, a "
            "gradient_clip above 0 or model.dtype=float32, or look for such values in the input"
        )


def sum_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Sum every gradient over the processes that train together.

    A parameter that has a gradient in none of them stays without one, so the optimiser leaves it alone.
    """
    if ranks() == 1:
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    counts = total(torch.tensor([float(p.grad is not None) for p in parameters]))
    trained = [p for p, count in zip(parameters, counts.tolist(), strict=True) if count]
    if not trained:
        return
    own = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    summed = total(torch.cat([grad.flatten() for grad in own])).split([p.numel() for p in trained])
    for parameter, grad in zip(trained, summed, strict=True):
        parameter.grad = grad.view_as(parameter).clone()


def take_step(module: pl.LightningModule, losses: Iterable[Tensor], max_norm: float, name: str) -> Tensor:
    """One optimiser and schedule step on the sum of `losses` over all processes; returns that sum.

    For modules with manual optimisation; `name` is the stage's, for `<name>/lr` (the first group's) and messages.
    Raises UserError, before the step, for a loss or gradient that is not finite. Gradients are computed loss by loss,
    so that only one part of what a generator yields is in memory at a time.
    """
    optimizer, added = module.optimizers(), torch.zeros((), device=module.device)
    optimizer.zero_grad()
    for loss in losses:
        module.manual_backward(loss)
        added += loss.detach()
    sum_gradients(optimizer)
    norm, loss = clip_each_group(optimizer, max_norm), total(added)
    place = f"{name} at step {module.global_step + 1}"
    require_finite(loss, "loss", place)
    require_finite(norm, "gradient", place)
    module.log(f"{name}/lr", optimizer.param_groups[0]["lr"])
    optimizer.step()
    module.lr_schedulers().step()
    return loss
