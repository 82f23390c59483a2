"""Sampling from a policy: preallocated KV cache, rows by length, features kept.

On a CPU, finished rows are dropped; on an accelerator, one captured step is replayed (`replay.py`). A model that does
not take our attention patterns decodes with transformers' cache (`plain.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlaif.inference.batches import length_buckets
from rlaif.inference.cache import CaptureTexts, KVCache, Step, bytes_per_token
from rlaif.inference.decoding.drawing import Decoding, pick_tokens, row_uniforms
from rlaif.inference.decoding.plain import cut_by_length, decode_plain
from rlaif.inference.decoding.replay import Decoded, Prefilled, Replays
from rlaif.inference.decoding.warm import WarmPrompts
from rlaif.inference.packing import (
    SharedPrefix,
    group_neighbours,
    pack,
    run_prefix,
    shared_tokens,
    text_places,
)
from rlaif.models.split import Top

# Finished rows are dropped only once at most this share of the rows is unfinished, because dropping copies the cache.
KEEP_SHARE = 0.85
# Memory for the keys and values of the rows decoded at once on a CPU.
CACHE_BYTES = 2**29
# Prompt tokens that run at once on a CPU and on an accelerator: enough to keep it busy, and few enough that the rows
# of one pass are of similar length.
PREFILL_TOKENS = (2048, 4096)


@dataclass(frozen=True)
class Sampled:
    """A sampled response: its ids (with EOS if `finished`) and, if requested, its features.

    `features` (P + R, D) are the trunk's activations of prompt and response (ids if the model is `full`),
    including those of the last response token.
    """

    ids: tuple[int, ...]
    finished: bool
    features: Tensor | None = None


Receive = Callable[[int, Sampled], None]
"""Takes a prompt's index and its response."""


def _chunks(groups: Sequence[SharedPrefix], max_tokens: int) -> Iterator[list[SharedPrefix]]:
    """Consecutive groups whose padded rows have at most `max_tokens` tokens (but at least one group)."""
    chunk: list[SharedPrefix] = []
    for group in groups:
        widest = max(map(len, [*chunk, group]))
        if chunk and widest * (len(chunk) + 1) > max_tokens:
            yield chunk
            chunk = []
        chunk.append(group)
    if chunk:
        yield chunk


def cache_bytes(device: torch.device) -> int:
    """On an accelerator total memory decides, not free memory: batches must not vary from run to run."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // 8
    return torch.mps.recommended_max_memory() // 8 if device.type == "mps" else CACHE_BYTES


class _Batch:
    """The state of one batch of rows while it is decoded. Rows come longest first."""

    def __init__(
        self,
        top: Top,
        prompts: Sequence[tuple[int, ...]],
        slots: int,
        keep_features: bool,
        prefill_tokens: int,
        warm: WarmPrompts | None,
    ) -> None:
        trunk = top.trunk
        self.top, self.device = top, top.device
        # Several samples of one prompt run it once.
        unique = list(dict.fromkeys(prompts))
        place = {prompt: index for index, prompt in enumerate(unique)}
        owner = torch.tensor([place[prompt] for prompt in prompts], device=self.device)
        self.cache = KVCache(trunk.cache_shapes, len(unique), slots, trunk.dtype, self.device)
        self.lengths = torch.tensor([len(p) for p in prompts], device=self.device)
        self.features: Tensor | None = None
        self.logits = self._prefill(unique, prefill_tokens, slots if keep_features else 0)
        if warm is not None:
            warm.add(unique, self.cache)
        if len(unique) < len(prompts):
            self.cache.select(owner)
            self.features = None if self.features is None else self.features[owner]
            self.logits = self.logits[owner]

    def _prefill(self, prompts: Sequence[tuple[int, ...]], prefill_tokens: int, feature_slots: int) -> Tensor:
        """Run the prompts; a beginning shared by all of them, or by neighbours, runs once."""
        shared = shared_tokens(self.top, prompts)
        before, lead = run_prefix(self.top, prompts[0][:shared]) if shared else (None, None)
        groups, _ = group_neighbours([prompt[shared:] for prompt in prompts])
        outputs, start = [], 0
        for part in _chunks(groups, prefill_tokens):
            packed = pack(part, self.device, before)
            rows, places, lengths = text_places(part, self.device)
            attend = CaptureTexts(self.cache, packed.attend, rows, places, start=start, before=before)
            features = self.top.trunk(packed.ids, attend, packed.positions, packed.max_position)
            hidden = self.top(features, attend, packed.positions, packed.max_position)
            last = places.gather(1, lengths[:, None] - 1).squeeze(1)
            outputs.append(self.top.logits(hidden[rows, last]))
            if feature_slots:
                own = features[rows[:, None], places]
                self._store(own, lead, start, (len(prompts), feature_slots, *features.shape[2:]))
            start += len(rows)
        return torch.cat(outputs)

    def _store(self, own: Tensor, lead: Tensor | None, start: int, shape: tuple[int, ...]) -> None:
        """Keep the features of some prompts: `lead` (1, S, D), common to all, then `own` (N, T, D)."""
        if self.features is None:
            self.features = torch.zeros(shape, dtype=own.dtype, device=self.device)
        rows, shared = slice(start, start + len(own)), 0 if lead is None else lead.shape[1]
        self.features[rows, shared : shared + own.shape[1]] = own
        if lead is not None:
            self.features[rows, :shared] = lead

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
def _decode(batch: _Batch, uniforms: Tensor, decoding: Decoding, eos_ids: Collection[int]) -> Decoded:
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
            if not finished[row]:
                responses[row].append(token)
                finished[row] = token in eos_ids
        last_round = position + 1 == decoding.max_new_tokens
        # The last token's features are wanted too (PPO reads its reward there), its logits are not.
        if batch.features is not None or not last_round:
            batch.step(tokens, live)
        going = [place for place, row in enumerate(live.tolist()) if not finished[row]]
        if not going or last_round:
            break
        if len(going) <= KEEP_SHARE * len(live):
            kept = torch.tensor(going, device=batch.device)
            batch.keep(kept)
            live = live[kept]
    return Decoded(responses, finished, batch.features)


def _advanced(
    batch: _Batch,
    uniforms: Tensor,
    decoding: Decoding,
    eos_ids: Collection[int],
    keep_features: bool,
    replays: Replays | None,
) -> Decoded:
    """The responses of a batch whose prompts have run."""
    if replays is None:
        return _decode(batch, uniforms, decoding, eos_ids)
    rows, slots = len(batch.lengths), batch.cache.slots
    decoder = replays.decoder(batch.top, rows, slots, decoding, eos_ids, keep_features)
    return decoder.run(Prefilled(batch.cache, batch.lengths, batch.logits, batch.features), uniforms)


@torch.inference_mode()
def sample(
    top: Top,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    decoding: Decoding,
    *,
    eos_ids: Collection[int],
    max_rows: int,
    prefill_tokens: int | None = None,
    keep_features: bool = False,
    receive: Receive | None = None,
    warm: WarmPrompts | None = None,
    progress: Callable[[int], None] | None = None,
    replay: bool | None = None,
) -> list[Sampled]:
    """One response per prompt (token ids), in the prompts' order.

    Args:
        seeds: one integer per row, which alone determines that row's noise.
        eos_ids: tokens any of which ends a response.
        max_rows: most rows decoded at once; fewer if their keys and values would take too much memory.
        prefill_tokens: prompt tokens that run at once; by default what suits the device.
        keep_features: return the trunk's activations of prompt and response.
        receive: takes each response, with its features if kept, as soon as its batch is done. Those returned then
            have no features: thousands of them would fill the memory.
        warm: receives the prompts' keys and values, for calls that extend them; none of a model that does not pack.
        progress: called after each batch with its number of rows.
        replay: decode in static shapes; by default on accelerators only, and never for a model that does not pack.
    """
    results: list[Sampled | None] = [None] * len(prompts)
    trunk = top.trunk
    accelerated = trunk.device.type != "cpu"
    static = trunk.packs and (accelerated if replay is None else replay)
    replays = Replays.of(trunk) if static else None
    top = replays.twin(top) if replays else top
    order = length_buckets(
        [len(p) + decoding.max_new_tokens for p in prompts],
        max_tokens=cache_bytes(trunk.device) // bytes_per_token(trunk),
        max_rows=max_rows,
    )
    if not trunk.packs:
        order = cut_by_length(order, list(map(len, prompts)), decoding.max_new_tokens)
    for indices in order:
        chosen = [tuple(prompts[i]) for i in indices]
        uniforms = row_uniforms([seeds[i] for i in indices], decoding.max_new_tokens)
        if trunk.packs:
            batch = _Batch(
                top,
                chosen,
                len(chosen[0]) + decoding.max_new_tokens,
                keep_features,
                prefill_tokens or PREFILL_TOKENS[accelerated],
                warm,
            )
            decoded = _advanced(batch, uniforms, decoding, eos_ids, keep_features, replays)
        else:
            decoded = decode_plain(top, chosen, uniforms, decoding, eos_ids, keep_features)
        for row, index in enumerate(indices):
            features = None
            if decoded.features is not None:
                features = decoded.features[row, : len(chosen[row]) + len(decoded.responses[row])].clone()
            drawn = Sampled(tuple(decoded.responses[row]), decoded.finished[row], features)
            if receive:
                receive(index, drawn)
            results[index] = replace(drawn, features=None) if receive else drawn
        if progress:
            progress(len(indices))
    return [result for result in results if result is not None]
