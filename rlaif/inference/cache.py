"""Preallocated keys and values, and the attention patterns that read and write them.

Layout of one layer: (B, K, S, E) with S slots. Row b's token at position p is in slot p, so right padding
leaves garbage only after a row's end, where the next tokens overwrite it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rlaif.models.attention import Attend, Causal, masked_attention
from rlaif.models.decoder import DecoderConfig


class KVCache:
    """Keys and values of all layers, for `rows` rows of up to `slots` positions."""

    def __init__(
        self, config: DecoderConfig, rows: int, slots: int, dtype: torch.dtype, device: str | torch.device
    ) -> None:
        shape = (rows, config.num_kv_heads, slots, config.head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]

    @staticmethod
    def bytes_per_token(config: DecoderConfig, dtype: torch.dtype) -> int:
        """Bytes per position of a row."""
        return 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize

    @property
    def slots(self) -> int:
        """Positions a row has room for."""
        return self.keys[0].shape[2]

    @property
    def size(self) -> int:
        """Bytes taken by all keys and values."""
        return 2 * sum(key.nbytes for key in self.keys)

    def snapshot(self) -> KVCache:
        """A second view of the same memory: `select` on one of the two leaves the other unchanged."""
        twin = object.__new__(KVCache)
        twin.keys, twin.values = list(self.keys), list(self.values)
        return twin

    def select(self, rows: Tensor) -> None:
        """Keep only `rows` (indices), in place, so that finished rows cost nothing."""
        self.keys = [key[rows] for key in self.keys]
        self.values = [value[rows] for value in self.values]


class Capture:
    """Causal attention over rows (B, T) that also stores their keys and values in the cache's B rows."""

    def __init__(self, cache: KVCache) -> None:
        self._cache, self._causal = cache, Causal()

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self._cache.keys[layer][:, :, : key.shape[2]] = key
        self._cache.values[layer][:, :, : key.shape[2]] = value
        return self._causal(layer, query, key, value)


class CaptureTexts:
    """The attention pattern `inner`, which also stores the keys and values of each packed text in its own row.

    Text n is at `places` (N, T) of packed row `rows` (N,) and goes to cache row `start + n`, after what `before`
    (one row) holds.
    """

    def __init__(
        self,
        cache: KVCache,
        inner: Attend,
        rows: Tensor,
        places: Tensor,
        *,
        start: int,
        before: KVCache | None,
    ) -> None:
        self._cache, self._inner, self._before = cache, inner, before
        self._rows, self._places = rows[:, None], places
        self._texts = slice(start, start + len(rows))

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        shared = 0 if self._before is None else self._before.slots
        for stored, before, new in (
            (self._cache.keys, self._before and self._before.keys, key),
            (self._cache.values, self._before and self._before.values, value),
        ):
            own = new.transpose(1, 2)[self._rows, self._places].transpose(1, 2)
            stored[layer][self._texts, :, shared : shared + own.shape[2]] = own
            if before:
                stored[layer][self._texts, :, :shared] = before[layer]
        return self._inner(layer, query, key, value)


class Step:
    """One new token per row: written to its own slot, seeing all slots up to it.

    The query heads that share a key head are folded into the query length, which is exact grouped-query
    attention without copying keys. With `static`, shapes never change: every slot is read and those after a
    row's own are masked out.
    """

    def __init__(self, cache: KVCache, slots: Tensor, *, static: bool = False) -> None:
        self._cache, self._slots = cache, slots
        self._rows = torch.arange(slots.shape[0], device=slots.device)
        self._reach = cache.slots if static else int(slots.max()) + 1
        mask = torch.arange(self._reach, device=slots.device) <= slots[:, None]
        if static:  # added to the scores: a Boolean mask would be converted to this one in every layer
            zeros = torch.zeros(mask.shape, dtype=cache.keys[0].dtype, device=slots.device)
            mask = zeros.masked_fill_(~mask, float("-inf"))
        self._mask = mask[:, None, None, :]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys[self._rows, :, self._slots] = key[:, :, 0]
        values[self._rows, :, self._slots] = value[:, :, 0]
        rows, heads, _, size = query.shape
        grouped = query.view(rows, keys.shape[1], heads // keys.shape[1], size)
        mixed = F.scaled_dot_product_attention(
            grouped, keys[:, :, : self._reach], values[:, :, : self._reach], attn_mask=self._mask
        )
        return mixed.reshape(rows, heads, 1, size)


class AfterPrefix:
    """Rows (B, T) that see one cached prefix (row 0 of `cache`, all its slots) and, causally, themselves.

    `blocked` (B, T, T) hides further (query, key) pairs among the rows' own positions: True = hidden.
    """

    def __init__(self, cache: KVCache, length: int, blocked: Tensor | None = None) -> None:
        self._cache = cache
        own = torch.ones(1, length, length, dtype=torch.bool, device=cache.keys[0].device).tril()
        own = own if blocked is None else own & ~blocked
        self._mask = F.pad(own, (cache.slots, 0), value=True).unsqueeze(1)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows = key.shape[0]
        keys = torch.cat((self._cache.keys[layer].expand(rows, -1, -1, -1), key), dim=2)
        values = torch.cat((self._cache.values[layer].expand(rows, -1, -1, -1), value), dim=2)
        return masked_attention(query, keys, values, self._mask)
