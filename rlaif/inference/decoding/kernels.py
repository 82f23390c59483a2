"""The four small operations between the matrix products of a decoding step, each as one kernel on a GPU.

Unfused, they are about twenty kernels per layer, and at the sizes of a decoding step launching a kernel takes as
long as running it. Each has a plain form in torch, which defines what it computes and runs elsewhere;
`experiments/benchmarks/gpu.py` compares the two on a GPU.

Notation: B rows (one new token each), D hidden size, H query heads, K key/value heads, E head size, S slots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from types import ModuleType


def _gpu(tensor: Tensor) -> ModuleType | None:
    """The Triton kernels if `tensor` is on a GPU, else None."""
    if tensor.device.type != "cuda":
        return None
    from rlaif.inference.decoding import triton_kernels

    return triton_kernels


def add_norm(hidden: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """Add `added` (B, D) to `hidden` (B, D) in place; return the sum's RMS normalisation by `weight` (D,)."""
    gpu = _gpu(hidden)
    if gpu is not None:
        return gpu.add_norm(hidden, added, weight, eps)
    if added is not None:
        hidden.add_(added)
    return F.rms_norm(hidden, weight.shape, weight, eps)


def rotate_and_store(
    mixed: Tensor, tables: tuple[Tensor, Tensor], keys: Tensor, values: Tensor, slots: Tensor
) -> None:
    """Rotate each row's queries in place, and its keys into their slot; store its values there.

    `mixed` (B, (H + 2 K) E) holds queries, keys and values; `tables` are cosines and sines (at least S, E); `keys`
    and `values` (B, K, S, E); `slots` (B,) is each row's slot and position.
    """
    gpu = _gpu(mixed)
    if gpu is not None:
        gpu.rotate_and_store(mixed, tables, keys, values, slots)
        return
    rows, groups, _, size = keys.shape
    heads = mixed.view(rows, -1, size)
    cos, sin = (table[slots].unsqueeze(1) for table in tables)
    turning = heads[:, :-groups]
    half = size // 2
    turned = torch.cat((-turning[..., half:], turning[..., :half]), dim=-1)
    turning.copy_(turning * cos + turned * sin)
    places = torch.arange(rows, device=slots.device)
    keys[places, :, slots] = heads[:, -2 * groups : -groups]
    values[places, :, slots] = heads[:, -groups:]


def attend_slots(mixed: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> Tensor:
    """Attention (B, H E) of the queries at the start of `mixed` (B, (H + 2 K) E) over slots 0..`slots` (B,)."""
    gpu = _gpu(mixed)
    rows, groups, count, size = keys.shape
    if gpu is not None and count <= gpu.MOST_SLOTS:
        return gpu.attend_slots(mixed, keys, values, slots)
    queries = mixed[:, : -2 * groups * size].reshape(rows, groups, -1, size)
    seen = torch.arange(count, device=slots.device) <= slots[:, None]
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen[:, None, None, :])
    return out.reshape(rows, -1)


def gated(both: Tensor) -> Tensor:
    """silu(gate) * up (B, I) for `both` (B, 2 I), gate first."""
    gpu = _gpu(both)
    if gpu is not None:
        return gpu.gated(both)
    gate, up = both.chunk(2, dim=-1)
    return F.silu(gate) * up
