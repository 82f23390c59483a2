"""`kernels.py` for a GPU: computed in float32 and rounded once to the inputs' dtype."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

MOST_SLOTS = 2048  # one program walks all slots of a row; for more, a kernel that divides them up is faster
SLOT_BLOCK = 64


def add_norm(hidden: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    rows, size = hidden.shape
    out = torch.empty_like(hidden)
    _add_norm[(rows,)](
        hidden,
        hidden if added is None else added,
        weight,
        out,
        size,
        eps,
        added is not None,
        triton.next_power_of_2(size),
        num_warps=8,
    )
    return out


@triton.jit
def _add_norm(hidden, added, weight, out, size, eps, ADD: tl.constexpr, BLOCK: tl.constexpr):
    start = tl.program_id(0) * size
    at = tl.arange(0, BLOCK)
    inside = at < size
    value = tl.load(hidden + start + at, mask=inside, other=0.0)
    if ADD:
        more = tl.load(added + start + at, mask=inside, other=0.0)
        value = (value.to(tl.float32) + more.to(tl.float32)).to(value.dtype)
        tl.store(hidden + start + at, value, mask=inside)
    wide = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / size + eps)
    gain = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + start + at, (wide * scale * gain).to(value.dtype), mask=inside)


def rotate_and_store(
    mixed: Tensor, tables: tuple[Tensor, Tensor], keys: Tensor, values: Tensor, slots: Tensor
) -> None:
    rows, groups, count, size = keys.shape
    heads = mixed.shape[1] // size
    _rotate_and_store[(rows, heads)](
        mixed,
        *tables,
        keys,
        values,
        slots,
        heads - 2 * groups,
        groups,
        count,
        size // 2,
        triton.next_power_of_2(size // 2),
        num_warps=1,
    )


@triton.jit
def _rotate_and_store(
    mixed,
    cos,
    sin,
    keys,
    values,
    slots,
    QUERIES: tl.constexpr,
    GROUPS: tl.constexpr,
    count,
    half,
    BLOCK: tl.constexpr,
):
    row, head = tl.program_id(0), tl.program_id(1)
    at = tl.arange(0, BLOCK)
    inside = at < half
    source = mixed + (row * (QUERIES + 2 * GROUPS) + head) * 2 * half
    slot = tl.load(slots + row)
    low = tl.load(source + at, mask=inside, other=0.0)
    high = tl.load(source + half + at, mask=inside, other=0.0)
    if head >= QUERIES + GROUPS:
        group = head - QUERIES - GROUPS
        target = values + ((row * GROUPS + group) * count + slot) * 2 * half
        tl.store(target + at, low, mask=inside)
        tl.store(target + half + at, high, mask=inside)
    else:
        table = slot * 2 * half + at
        low_cos = tl.load(cos + table, mask=inside, other=0.0).to(tl.float32)
        low_sin = tl.load(sin + table, mask=inside, other=0.0).to(tl.float32)
        high_cos = tl.load(cos + table + half, mask=inside, other=0.0).to(tl.float32)
        high_sin = tl.load(sin + table + half, mask=inside, other=0.0).to(tl.float32)
        wide_low, wide_high = low.to(tl.float32), high.to(tl.float32)
        turned_low = (wide_low * low_cos - wide_high * low_sin).to(low.dtype)
        turned_high = (wide_high * high_cos + wide_low * high_sin).to(low.dtype)
        if head < QUERIES:
            tl.store(source + at, turned_low, mask=inside)
            tl.store(source + half + at, turned_high, mask=inside)
        else:
            target = keys + ((row * GROUPS + head - QUERIES) * count + slot) * 2 * half
            tl.store(target + at, turned_low, mask=inside)
            tl.store(target + half + at, turned_high, mask=inside)


def attend_slots(mixed: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> Tensor:
    rows, groups, count, size = keys.shape
    heads = mixed.shape[1] // size - 2 * groups
    out = torch.empty(rows, heads * size, dtype=mixed.dtype, device=mixed.device)
    _attend_slots[(rows, groups)](
        mixed,
        keys,
        values,
        slots,
        out,
        size**-0.5,
        heads,
        groups,
        heads // groups,
        count,
        size,
        max(16, triton.next_power_of_2(heads // groups)),  # tl.dot needs at least 16 rows
        max(16, triton.next_power_of_2(size)),
        SLOT_BLOCK,
        num_warps=4,
    )
    return out


@triton.jit
def _attend_slots(
    mixed,
    keys,
    values,
    slots,
    out,
    scale,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    SHARE: tl.constexpr,
    count,
    size,
    QUERIES: tl.constexpr,
    BLOCK: tl.constexpr,
    SLOTS: tl.constexpr,
):
    row, group = tl.program_id(0), tl.program_id(1)
    share, at, place = tl.arange(0, QUERIES), tl.arange(0, BLOCK), tl.arange(0, SLOTS)
    own = (share < SHARE)[:, None] & (at < size)[None, :]
    head = group * SHARE + share
    places = (row * (HEADS + 2 * GROUPS) + head)[:, None] * size + at[None, :]
    query = tl.load(mixed + places, mask=own, other=0.0)
    length = tl.load(slots + row) + 1
    base = (row * GROUPS + group) * count * size
    most = tl.full((QUERIES,), -float("inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    sums = tl.zeros((QUERIES, BLOCK), tl.float32)
    for first in range(0, length, SLOTS):
        slot = first + place
        inside = (slot < length)[:, None] & (at < size)[None, :]
        where = base + slot[:, None] * size + at[None, :]
        key = tl.load(keys + where, mask=inside, other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        scores = tl.where((slot < length)[None, :], scores, -float("inf"))
        higher = tl.maximum(most, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        kept = tl.exp(most - higher)
        value = tl.load(values + where, mask=inside, other=0.0)
        sums = sums * kept[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        total = total * kept + tl.sum(weights, 1)
        most = higher
    result = (sums / total[:, None]).to(query.dtype)
    targets = (row * HEADS + head)[:, None] * size + at[None, :]
    tl.store(out + targets, result, mask=own)


def gated(both: Tensor) -> Tensor:
    rows, width = both.shape[0], both.shape[1] // 2
    out = torch.empty(rows, width, dtype=both.dtype, device=both.device)
    _gated[(rows, triton.cdiv(width, 1024))](both, out, width, 1024, num_warps=4)
    return out


@triton.jit
def _gated(both, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    gate = tl.load(both + row * 2 * width + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + row * 2 * width + width + at, mask=inside, other=0.0)
    tl.store(out + row * width + at, (gate * tl.sigmoid(gate) * up.to(tl.float32)).to(up.dtype), mask=inside)
