"""Log-probabilities and entropy of token distributions, in float32 whatever the logits' dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Rows of logits upcast at once: without gradients, only this many rows exist as a float32 copy.
_CHUNK_ROWS = 1024


def _upcast(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability (nats) of `ids` (...) under `logits` (..., V); returns (...) in float32.

    Computed as the chosen logit minus logsumexp, so that no (..., V) log-softmax is kept.
    float64 logits stay float64. Raises ValueError if the shapes do not match.
    """
    if logits.shape[:-1] != ids.shape:
        raise ValueError(f"logits {tuple(logits.shape)} do not fit ids {tuple(ids.shape)}")
    width = logits.shape[-1]
    return _TokenLogprobs.apply(logits.reshape(-1, width), ids.reshape(-1)).view(ids.shape)


class _TokenLogprobs(torch.autograd.Function):
    """Chosen logit minus logsumexp of (N, V) logits, with a backward pass that reads them few times.

    The gradient of row n is g_n (onehot(ids_n) - softmax_n), written chunk by chunk in the logits' dtype;
    autograd would keep and combine several (N, V) tensors in float32.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> Tensor:
        chosen = _upcast(logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1))
        chunks = logits.split(_CHUNK_ROWS)
        normaliser = torch.cat([torch.logsumexp(_upcast(part), dim=-1) for part in chunks])
        ctx.save_for_backward(logits, ids, normaliser)
        return chosen - normaliser

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, ids, normaliser = ctx.saved_tensors
        result = torch.empty_like(logits)
        rows = zip(*(x.split(_CHUNK_ROWS) for x in (logits, ids, normaliser, grad, result)), strict=True)
        for part, chosen, total, weight, out in rows:
            share = (part - total.unsqueeze(-1)).exp_().mul_(-weight.unsqueeze(-1))
            share.scatter_add_(-1, chosen.unsqueeze(-1), weight.unsqueeze(-1))
            out.copy_(share)
        return result, None


# Rows whose logits exist at once in `head_logprobs`: few enough for a CPU's caches; an accelerator needs this many
# times as many to be busy.
_HEAD_ROWS = 128
_ACCELERATOR_SHARE = 16


def head_logprobs(hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability (nats) of `ids` (N,) under softmax(hidden @ weight.T / temperature); (N,) in float32.

    For a frozen vocabulary head `weight` (V, D) and hidden states (N, D): no (N, V) tensor is kept, and no
    gradient reaches `weight`. float64 stays float64. Raises ValueError if the shapes do not match.
    """
    if hidden.shape[:-1] != ids.shape or ids.dim() != 1 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)} and ids {tuple(ids.shape)} do not fit"
        )
    if weight.requires_grad:
        raise ValueError("head_logprobs gives no gradient to the head: use token_logprobs on the logits")
    return _HeadLogprobs.apply(hidden, weight, ids, temperature)


class _HeadLogprobs(torch.autograd.Function):
    """The gradient of row n is g_n (weight[ids_n] - sum_v p_nv weight[v]) / temperature.

    The vector that g_n scales is computed in the forward pass, while the chunk's logits are at hand.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float) -> Tensor:
        values, directions = [], []
        rows = _HEAD_ROWS * (1 if hidden.device.type == "cpu" else _ACCELERATOR_SHARE)
        for part, chosen in zip(hidden.split(rows), ids.unsqueeze(-1).split(rows), strict=True):
            logits = _upcast(part @ weight.T)
            if temperature != 1.0:
                logits.div_(temperature)
            logp = logits.sub_(torch.logsumexp(logits, dim=-1, keepdim=True))
            values.append(logp.gather(-1, chosen).squeeze(-1))
            if ctx.needs_input_grad[0]:
                share = logp.exp_().scatter_add_(-1, chosen, -torch.ones_like(chosen, dtype=logp.dtype))
                directions.append(share.to(hidden.dtype) @ weight)
        if directions:
            ctx.save_for_backward(torch.cat(directions).div_(-temperature))
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (direction,) = ctx.saved_tensors
        return (direction * grad.unsqueeze(-1)).to(direction.dtype), None, None, None


def _entropy_rows(logits: Tensor) -> Tensor:
    logp = torch.log_softmax(_upcast(logits), dim=-1)
    probability = logp.exp()
    # 0 log 0 = 0; replacing -inf before the product keeps its gradient finite too.
    return -(probability * logp.masked_fill(probability == 0, 0.0)).sum(-1)


def token_entropy(logits: Tensor) -> Tensor:
    """Entropy (nats) of each distribution of `logits` (..., V), as (...) in float32; logits of -inf add nothing."""
    rows = logits.reshape(-1, logits.shape[-1]).split(_CHUNK_ROWS)
    return torch.cat([_entropy_rows(part) for part in rows]).view(logits.shape[:-1])
