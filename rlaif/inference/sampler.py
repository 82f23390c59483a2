"""Sampling from a policy: preallocated cache, rows by length, finished rows dropped, features kept.

Noise is keyed: the uniform that picks token t of a row depends on the row's own seed and t alone, so that
sorting, dropping finished rows or splitting a batch over processes changes nothing (DESIGN 10).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlaif.inference.batches import length_buckets, pad_right
from rlaif.inference.cache import Capture, KVCache, Step
from rlaif.models.split import Top

SEED_RANGE = 2**62


@dataclass(frozen=True)
class Decoding:
    """How tokens are drawn: `temperature` 0 is greedy; `top_k` 0 is no limit."""

    max_new_tokens: int
    temperature: float
    top_k: int = 0


@dataclass(frozen=True)
class Sampled:
    """A sampled response: its ids (EOS included where `finished`) and, if asked for, its features.

    `features` (P + R, D) are the trunk's activations of prompt and response (ids if the model is `full`);
    the last response token's are included.
    """

    ids: tuple[int, ...]
    finished: bool
    features: Tensor | None = None


def pick_tokens(logits: Tensor, uniforms: Tensor, *, temperature: float, top_k: int) -> Tensor:
    """Inverse-CDF sampling: logits (B, V) and one uniform a row (B,) -> ids (B,)."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    scaled = logits.float() / temperature
    if top_k:
        floor = scaled.topk(min(top_k, scaled.shape[-1]), dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < floor, float("-inf"))
    cumulative = scaled.softmax(dim=-1).cumsum(dim=-1)
    target = uniforms[:, None].to(cumulative) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp_(max=logits.shape[-1] - 1)


def row_uniforms(seeds: Sequence[int], length: int) -> Tensor:
    """(B, length) uniforms; row b depends on seeds[b] alone."""
    rows = [torch.rand(length, generator=torch.Generator().manual_seed(seed % SEED_RANGE)) for seed in seeds]
    return torch.stack(rows)


class _Batch:
    """The moving state of one batch of rows while it is decoded. Rows come longest first."""

    def __init__(
        self,
        top: Top,
        prompts: Sequence[tuple[int, ...]],
        slots: int,
        keep_features: bool,
        prefill_tokens: int,
    ) -> None:
        trunk = top.trunk
        self.top, self.device = top, top.norm.weight.device
        # Several samples of one prompt run it once.
        unique = list(dict.fromkeys(prompts))
        place = {prompt: index for index, prompt in enumerate(unique)}
        owner = torch.tensor([place[prompt] for prompt in prompts], device=self.device)
        self.cache = KVCache(trunk.config, len(unique), slots, trunk.dtype, self.device)
        self.lengths = torch.tensor([len(p) for p in prompts], device=self.device)
        self.features: Tensor | None = None
        logits = self._prefill(unique, prefill_tokens, slots if keep_features else 0)
        if len(unique) < len(prompts):
            self.cache.select(owner)
            self.features = None if self.features is None else self.features[owner]
            logits = logits[owner]
        self.logits = logits

    def _prefill(self, prompts: Sequence[tuple[int, ...]], prefill_tokens: int, feature_slots: int) -> Tensor:
        outputs, start = [], 0
        while start < len(prompts):
            count = max(1, prefill_tokens // len(prompts[start]))
            ids, lengths = pad_right(prompts[start : start + count], 0, self.device)
            attend = Capture(self.cache, start)
            features = self.top.trunk(ids, attend)
            hidden = self.top(features, attend)
            last = hidden[torch.arange(len(ids), device=self.device), lengths - 1]
            outputs.append(self.top.logits(last))
            if feature_slots:
                self._store(features, start, (len(prompts), feature_slots, *features.shape[2:]))
            start += count
        return torch.cat(outputs)

    def _store(self, features: Tensor, start: int, shape: tuple[int, ...]) -> None:
        if self.features is None:
            self.features = torch.zeros(shape, dtype=features.dtype, device=self.device)
        self.features[start : start + features.shape[0], : features.shape[1]] = features

    def step(self, tokens: Tensor, live: Tensor) -> None:
        """Feed one token to each live row (`live`: original row numbers)."""
        attend = Step(self.cache, self.lengths)
        positions, bound = self.lengths[:, None], int(self.lengths.max()) + 1
        features = self.top.trunk(tokens[:, None], attend, positions, bound)
        hidden = self.top(features, attend, positions, bound)
        if self.features is not None:
            self.features[live, self.lengths] = features[:, 0]
        self.logits = self.top.logits(hidden[:, 0])
        self.lengths = self.lengths + 1

    def keep(self, rows: Tensor) -> None:
        self.cache.select(rows)
        self.lengths, self.logits = self.lengths[rows], self.logits[rows]


@torch.inference_mode()
def _decode(
    batch: _Batch, uniforms: Tensor, decoding: Decoding, eos_id: int
) -> tuple[list[list[int]], list[bool]]:
    rows = len(batch.lengths)
    responses: list[list[int]] = [[] for _ in range(rows)]
    finished = [False] * rows
    live = torch.arange(rows, device=batch.device)
    uniforms = uniforms.to(batch.device)
    for position in range(decoding.max_new_tokens):
        tokens = pick_tokens(
            batch.logits, uniforms[live, position], temperature=decoding.temperature, top_k=decoding.top_k
        )
        for row, token in zip(live.tolist(), tokens.tolist(), strict=True):
            responses[row].append(token)
            finished[row] = token == eos_id
        last_round = position + 1 == decoding.max_new_tokens
        # The last token's features are wanted too (PPO reads its reward there), its logits are not.
        if batch.features is not None or not last_round:
            batch.step(tokens, live)
        going = (tokens != eos_id).nonzero().squeeze(-1)
        if len(going) == 0 or last_round:
            break
        if len(going) < len(live):
            batch.keep(going)
            live = live[going]
    return responses, finished


@torch.inference_mode()
def sample(
    top: Top,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    decoding: Decoding,
    *,
    eos_id: int,
    max_rows: int,
    prefill_tokens: int = 2048,
    keep_features: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[Sampled]:
    """One response for each prompt (token ids), in the prompts' order.

    Args:
        seeds: one integer a row; it alone decides that row's noise.
        max_rows: rows decoded at once (memory: keys and values of all of them).
        keep_features: return the trunk's activations of prompt and response.
        progress: called with the number of rows finished after each batch.
    """
    results: list[Sampled | None] = [None] * len(prompts)
    order = length_buckets([len(p) for p in prompts], max_tokens=2**62, max_rows=max_rows)
    for indices in order:
        chosen = [tuple(prompts[i]) for i in indices]
        batch = _Batch(top, chosen, len(chosen[0]) + decoding.max_new_tokens, keep_features, prefill_tokens)
        uniforms = row_uniforms([seeds[i] for i in indices], decoding.max_new_tokens)
        responses, finished = _decode(batch, uniforms, decoding, eos_id)
        for row, index in enumerate(indices):
            features = None
            if batch.features is not None:
                features = batch.features[row, : len(chosen[row]) + len(responses[row])].clone()
            results[index] = Sampled(tuple(responses[row]), finished[row], features)
        if progress:
            progress(len(indices))
    return [result for result in results if result is not None]
