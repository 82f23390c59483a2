"""Prompts that extend prompts already run: with chain of thought the verdict is read after the rationale.

The keys and values of the rationale's prompt are kept from its generation, so that the verdict costs only the
rationale's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlaif.inference.batches import forward_batches, pad_right
from rlaif.inference.cache import KVCache
from rlaif.models.attention import USUAL, Scoring, masked_attention, near
from rlaif.models.split import Top


class WarmPrompts:
    """Keys and values of prompts that were run before, as many as fit into `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._free = max_bytes
        self._places: dict[tuple[int, ...], tuple[KVCache, int]] = {}
        self._lengths: set[int] = set()

    def add(self, prompts: Sequence[tuple[int, ...]], cache: KVCache) -> None:
        """Keep `cache` as it is now; its row r begins with prompt r."""
        if cache.size > self._free:
            return
        self._free -= cache.size
        kept = cache.snapshot()
        self._places |= {prompt: (kept, row) for row, prompt in enumerate(prompts)}
        self._lengths |= {len(prompt) for prompt in prompts}

    def find(self, prompt: Sequence[int]) -> tuple[KVCache, int, int] | None:
        """(cache, row, length) of the longest kept prompt that `prompt` extends by at least one token."""
        for length in sorted((n for n in self._lengths if n < len(prompt)), reverse=True):
            place = self._places.get(tuple(prompt[:length]))
            if place is not None:
                return (*place, length)
        return None


class Continue:
    """Rows (B, T) that extend cached rows: row b sees the first `lengths[b]` slots of its own, and itself causally."""

    def __init__(self, cache: KVCache, rows: Tensor, lengths: Tensor, width: int) -> None:
        self._cache, self._rows, self._reach = cache, rows, int(lengths.max())
        self._lengths, self._width = lengths, width
        self._masks: dict[int | None, Tensor] = {}

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scoring: Scoring = USUAL
    ) -> Tensor:
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        return masked_attention(
            query,
            torch.cat((keys[self._rows, :, : self._reach], key), dim=2),
            torch.cat((values[self._rows, :, : self._reach], value), dim=2),
            self._mask(scoring.window),
            scoring,
        )

    def _mask(self, window: int | None) -> Tensor:
        """(B, 1, T, S), made once per window."""
        if window not in self._masks:
            slots = torch.arange(self._reach, device=self._lengths.device)
            own = torch.arange(self._width, device=self._lengths.device)
            before = (slots < self._lengths[:, None])[:, None].expand(-1, self._width, -1)
            after = (own <= own[:, None]).expand(len(self._rows), -1, -1)
            seen = torch.cat((before, after), dim=-1)
            if window is not None:
                positions = self._lengths[:, None] + own
                keys = torch.cat((slots.expand(len(self._rows), -1), positions), dim=1)
                seen = seen & near(positions, keys, window)
            self._masks[window] = seen.unsqueeze(1)
        return self._masks[window]


@torch.inference_mode()
def warm_next_token_logprobs(
    top: Top, prompts: Sequence[Sequence[int]], tokens: Sequence[int], warm: WarmPrompts
) -> tuple[list[list[float]], int] | None:
    """Like `next_token_logprobs`, but from kept prompts only; None unless every prompt extends one."""
    places = [place for place in map(warm.find, prompts) if place is not None]
    if len(places) < len(prompts):
        return None
    results: list[list[float]] = [[]] * len(prompts)
    for cache in dict.fromkeys(cache for cache, _, _ in places):
        own = [i for i, place in enumerate(places) if place[0] is cache]
        rest = [len(prompts[i]) - places[i][2] for i in own]
        for batch in forward_batches(rest, top.trunk.device):
            chosen = [own[i] for i in batch]
            scores = _continued(top, [prompts[i] for i in chosen], [places[i] for i in chosen], tokens)
            for index, row in zip(chosen, scores, strict=True):
                results[index] = row
    return results, sum(length for _, _, length in places)


def _continued(
    top: Top,
    prompts: Sequence[Sequence[int]],
    places: Sequence[tuple[KVCache, int, int]],
    tokens: Sequence[int],
) -> list[list[float]]:
    """Log-probabilities of `tokens` after prompts that extend rows of one cache."""
    device = top.device
    lengths = torch.tensor([length for _, _, length in places], device=device)
    rows = torch.tensor([row for _, row, _ in places], device=device)
    rest = [prompt[length:] for prompt, (_, _, length) in zip(prompts, places, strict=True)]
    ids, counts = pad_right(rest, 0, device)
    attend = Continue(places[0][0], rows, lengths, ids.shape[1])
    positions = lengths[:, None] + torch.arange(ids.shape[1], device=device)
    bound = int(positions.max()) + 1
    hidden = top(top.trunk(ids, attend, positions, bound), attend, positions, bound)
    last = hidden[torch.arange(len(rows), device=device), counts - 1]
    return top.choice_logprobs(last, torch.tensor(tokens, device=device)).tolist()
