"""Flex attention: blocks that no query sees are skipped, and scores may be changed, without a mask of all positions."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention

from rlaif.models.kernels.choice import COMPILED

if TYPE_CHECKING:
    from rlaif.models.attention import Scoring

Seen = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Whether, in a row and a head, the query at an index sees the key at an index."""


def block_mask(seen: Seen, rows: int | None, queries: int, keys: int, device: torch.device) -> BlockMask:
    """The blocks that `seen` leaves. `rows` is None if all rows see alike."""
    return create_block_mask(seen, rows, None, queries, keys, device=device)


def tensor_mask(seen: Tensor) -> BlockMask:
    """The blocks of a mask `seen` (B or 1, R, T), True = seen."""
    count, queries, keys = seen.shape

    def look_up(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return seen[row if count > 1 else 0, query, key]

    return block_mask(look_up, count if count > 1 else None, queries, keys, seen.device)


def causal_mask(length: int, window: int | None, device: torch.device) -> BlockMask:
    """The blocks of causal attention over whole rows, within a window; no (T, T) mask is made."""

    def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = key <= query
        return own if window is None else own & (query - key < window)

    return block_mask(seen, None, length, length, device)


def flex(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scoring: Scoring) -> Tensor:
    """Flex attention (B, H, R, E) under a block mask, for any scoring."""
    cap = scoring.softcap

    def score(value: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return torch.tanh(value / cap) * cap  # type: ignore[operator]

    mixed, more = _kernel(key.device.type)(
        query,
        key,
        value,
        score_mod=None if cap is None else score,
        block_mask=mask,
        scale=scoring.scale,
        enable_gqa=True,
        return_aux=AuxRequest(lse=scoring.sinks is not None),
    )
    if scoring.sinks is None:
        return mixed
    # A sink's share of the softmax is what it adds to the sum of exponentials.
    kept = torch.sigmoid(more.lse - scoring.sinks.view(1, -1, 1).to(more.lse.dtype))
    return mixed * kept.unsqueeze(-1).to(mixed.dtype)


@cache
def _kernel(device_type: str) -> Any:
    # Dynamic, since lengths differ from batch to batch.
    return torch.compile(flex_attention, dynamic=True) if device_type in COMPILED else flex_attention
