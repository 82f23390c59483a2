"""Preallocated keys and values, and the attention patterns that read and write them.

Layout of one layer: (B, K, S, E) with S slots; K and E may differ from layer to layer. Row b's token at position p is
in slot p, so right padding leaves garbage only after a row's end, where the next tokens overwrite it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from rlaif.models.attention import USUAL, Attend, Causal, Scoring, masked_attention, near
from rlaif.models.kernels.choice import choose_kernel, say
from rlaif.models.kernels.flex import flex, tensor_mask
from rlaif.models.parts.shapes import CacheShapes
from rlaif.models.split import Trunk


class KVCache:
    """Keys and values of all layers, for `rows` rows of up to `slots` positions."""

    def __init__(
        self, shapes: CacheShapes, rows: int, slots: int, dtype: torch.dtype, device: str | torch.device
    ) -> None:
        made = [(s.heads, s.key_size, s.value_size) for s in shapes]
        self.keys = [torch.zeros(rows, k, slots, size, dtype=dtype, device=device) for k, size, _ in made]
        self.values = [torch.zeros(rows, k, slots, size, dtype=dtype, device=device) for k, _, size in made]

    @property
    def slots(self) -> int:
        """Positions a row has room for."""
        return self.keys[0].shape[2]

    @property
    def size(self) -> int:
        """Bytes taken by all keys and values."""
        return sum(part.nbytes for part in (*self.keys, *self.values))

    def snapshot(self) -> KVCache:
        """A second view of the same memory: `select` on one of the two leaves the other unchanged."""
        twin = object.__new__(KVCache)
        twin.keys, twin.values = list(self.keys), list(self.values)
        return twin

    def select(self, rows: Tensor) -> None:
        """Keep only `rows` (indices), in place, so that finished rows cost nothing."""
        self.keys = [key[rows] for key in self.keys]
        self.values = [value[rows] for value in self.values]


def bytes_per_token(trunk: Trunk) -> int:
    """Bytes of the keys and values of one position of a row.

    Where transformers keeps them this is their bound without shared heads; a recurrent state takes less in long rows.
    """
    if not trunk.packs:
        return 2 * trunk.config.hidden_size * trunk.config.num_layers * trunk.dtype.itemsize
    return bytes_per_position(trunk.cache_shapes, trunk.dtype)


def bytes_per_position(shapes: CacheShapes, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one position in layers of these shapes."""
    return sum(shape.heads * (shape.key_size + shape.value_size) for shape in shapes) * dtype.itemsize


class Capture:
    """Causal attention over rows (B, T) that also stores their keys and values in the cache's B rows."""

    def __init__(self, cache: KVCache) -> None:
        self._cache, self._causal = cache, Causal()

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scoring: Scoring = USUAL
    ) -> Tensor:
        self._cache.keys[layer][:, :, : key.shape[2]] = key
        self._cache.values[layer][:, :, : key.shape[2]] = value
        return self._causal(layer, query, key, value, scoring=scoring)


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

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scoring: Scoring = USUAL
    ) -> Tensor:
        shared = 0 if self._before is None else self._before.slots
        for stored, before, new in (
            (self._cache.keys, self._before and self._before.keys, key),
            (self._cache.values, self._before and self._before.values, value),
        ):
            own = new.transpose(1, 2)[self._rows, self._places].transpose(1, 2)
            stored[layer][self._texts, :, shared : shared + own.shape[2]] = own
            if before:
                stored[layer][self._texts, :, :shared] = before[layer]
        return self._inner(layer, query, key, value, scoring=scoring)


class Step:
    """One new token per row: written to its own slot, seeing all slots up to it.

    The query heads that share a key head are folded into the query length, which is exact grouped-query
    attention without copying keys. With `static`, shapes never change: every slot is read and those after a
    row's own are masked out.
    """

    def __init__(self, cache: KVCache, slots: Tensor, *, static: bool = False) -> None:
        self._cache, self._slots, self._static = cache, slots, static
        self._rows = torch.arange(slots.shape[0], device=slots.device)
        self._reach = cache.slots if static else int(slots.max()) + 1
        self._masks: dict[int | None, Tensor] = {}

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scoring: Scoring = USUAL
    ) -> Tensor:
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys[self._rows, :, self._slots] = key[:, :, 0]
        values[self._rows, :, self._slots] = value[:, :, 0]
        keys, values = keys[:, :, : self._reach], values[:, :, : self._reach]
        rows, heads, _, size = query.shape
        if not scoring.fused:
            return masked_attention(query, keys, values, self._seen(scoring.window), scoring)
        grouped = query.view(rows, keys.shape[1], heads // keys.shape[1], size)
        mixed = F.scaled_dot_product_attention(
            grouped, keys, values, attn_mask=self._mask(scoring.window), scale=scoring.scale
        )
        return mixed.reshape(rows, heads, 1, -1)

    def _mask(self, window: int | None) -> Tensor:
        """(B, 1, 1, S), made once per step and window."""
        if window not in self._masks:
            seen = self._seen(window)
            if (
                self._static
            ):  # added to the scores: a Boolean mask would be converted to this one in every layer
                zeros = torch.zeros(seen.shape, dtype=self._cache.keys[0].dtype, device=seen.device)
                seen = zeros.masked_fill_(~seen, float("-inf"))
            self._masks[window] = seen
        return self._masks[window]

    def _seen(self, window: int | None) -> Tensor:
        slots = torch.arange(self._reach, device=self._slots.device)
        seen = slots <= self._slots[:, None]
        if window is not None:
            seen = seen & near(self._slots[:, None], slots, window)[:, 0]
        return seen[:, None, None, :]


class AfterPrefix:
    """Rows (B, T) that see one cached prefix (row 0 of `cache`, all its slots) and, causally, themselves.

    `blocked` (B, T, T) hides further (query, key) pairs among the rows' own positions: True = hidden.
    """

    def __init__(
        self, cache: KVCache, length: int, blocked: Tensor | None = None, positions: Tensor | None = None
    ) -> None:
        """`positions` (B, T) of the rows are those that windows count, by default from the prefix's end on."""
        device = cache.keys[0].device
        own = torch.ones(1, length, length, dtype=torch.bool, device=device).tril()
        own = own if blocked is None else own & ~blocked
        self._cache, self._seen = cache, F.pad(own, (cache.slots, 0), value=True)
        self._before = torch.arange(cache.slots, device=device)
        after = torch.arange(cache.slots, cache.slots + length, device=device)[None]
        self._positions = after if positions is None else positions
        self._masks: dict[int | None, Tensor] = {}
        self._blocks: dict[int | None, BlockMask] = {}

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scoring: Scoring = USUAL
    ) -> Tensor:
        rows = key.shape[0]
        keys = torch.cat((self._cache.keys[layer].expand(rows, -1, -1, -1), key), dim=2)
        values = torch.cat((self._cache.values[layer].expand(rows, -1, -1, -1), value), dim=2)
        kernel = choose_kernel(
            key.device.type,
            keys=keys.shape[2],
            queries=query.shape[2],
            head=query.shape[3],
            masked=True,
            fused=scoring.fused,
        )
        say(key.device.type, kernel, "rows after a shared prefix")
        if kernel == "flex":
            return flex(query, keys, values, self._block_mask(scoring.window), scoring)
        return masked_attention(query, keys, values, self._mask(scoring.window), scoring)

    def _block_mask(self, window: int | None) -> BlockMask:
        if window not in self._blocks:
            self._blocks[window] = tensor_mask(self._mask(window)[:, 0])
        return self._blocks[window]

    def _mask(self, window: int | None) -> Tensor:
        if window not in self._masks:
            seen = self._seen
            if window is not None:
                before = self._before.expand(len(self._positions), -1)
                keys = torch.cat((before, self._positions), dim=1)
                seen = seen & near(self._positions, keys, window)
            self._masks[window] = seen[:, None]
        return self._masks[window]
