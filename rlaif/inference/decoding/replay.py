"""Decoding in static shapes: one CUDA graph per shape, replayed once per token.

Token by token, a model is a few hundred kernels of some microseconds each, which take longer to launch one by
one than to run. Here every tensor of a decoding step keeps its shape and address, so the step is captured once
and replayed; tokens are drawn and compared with the EOS ids on the device, and the host checks only every `POLL`
tokens whether any row is unfinished. Without CUDA the same step runs uncaptured, which the tests use.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlaif.inference.cache import KVCache, Step
from rlaif.inference.decoding.drawing import Decoding, pick_tokens
from rlaif.inference.decoding.fused import FusedStep
from rlaif.models.split import Top, Trunk

POLL = 16  # tokens between two checks by the host
ROW_BUCKET, SLOT_BUCKET = 8, 64
KEPT_SHAPES = 4  # captured steps that a model keeps, with their KV caches


@dataclass(frozen=True)
class Prefilled:
    """What decoding starts from: the prompts' KV cache, lengths (B,), next-token logits (B, V) and features."""

    cache: KVCache
    lengths: Tensor
    logits: Tensor
    features: Tensor | None


@dataclass(frozen=True)
class Decoded:
    """Ids of each row up to its end, whether it ended with EOS, and features (B, S, ...) if kept."""

    responses: list[list[int]]
    finished: list[bool]
    features: Tensor | None


@dataclass(frozen=True)
class Shape:
    """Everything that is fixed in one captured step."""

    rows: int
    slots: int
    decoding: Decoding
    eos_ids: tuple[int, ...]
    keep_features: bool


class StaticDecoder:
    """The state of `shape.rows` rows at fixed addresses, and the step that advances them all by one token."""

    def __init__(self, top: Top, shape: Shape, *, fused: bool, pool: Any = None) -> None:
        trunk, device = top.trunk, top.trunk.device
        rows, slots, length = shape.rows, shape.slots, shape.decoding.max_new_tokens
        self.top, self.shape = top, shape
        self.cache = KVCache(trunk.cache_shapes, rows, slots, trunk.dtype, device)
        self.lengths = torch.ones(rows, dtype=torch.long, device=device)
        self.logits = torch.zeros(rows, trunk.config.vocab_size, dtype=trunk.dtype, device=device)
        self.uniforms = torch.zeros(rows, length, device=device)
        self.tokens = torch.zeros(rows, length, dtype=torch.long, device=device)
        self.finished = torch.zeros(rows, dtype=torch.bool, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.eos = torch.tensor(shape.eos_ids, dtype=torch.long, device=device)
        self.features: Tensor | None = None
        if shape.keep_features:
            inner, kind = ((), torch.long) if trunk.full else ((trunk.config.hidden_size,), trunk.dtype)
            self.features = torch.zeros(rows, slots, *inner, dtype=kind, device=device)
        self._rows = torch.arange(rows, device=device)
        self._fused = FusedStep(top) if fused and FusedStep.fits(top) else None
        self._advance = captured(self.advance, pool) if device.type == "cuda" else self.advance

    def advance(self) -> None:
        """Draw a token for every row and feed it; rows that have ended continue, unread."""
        decoding, column = self.shape.decoding, self.position.expand(len(self._rows))[:, None]
        noise = self.uniforms.gather(1, column).squeeze(1)
        tokens = pick_tokens(self.logits, noise, temperature=decoding.temperature, top_k=decoding.top_k)
        self.tokens.scatter_(1, column, tokens[:, None])
        self.finished |= (tokens[:, None] == self.eos).any(dim=1)
        features, hidden = self._feed(tokens)
        if self.features is not None:
            self.features[self._rows, self.lengths] = features
        self.logits.copy_(self.top.logits(hidden))
        # A row past its end keeps overwriting its last slot, which nobody reads.
        self.lengths.add_(1).clamp_(max=self.shape.slots - 1)
        self.position.add_(1).clamp_(max=decoding.max_new_tokens - 1)

    def _feed(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Features and normalised hidden states of one token per row, which goes into the cache."""
        if self._fused is not None:
            return self._fused(tokens, self.cache, self.lengths)
        attend = Step(self.cache, self.lengths, static=True)
        positions, bound = self.lengths[:, None], self.shape.slots
        features = self.top.trunk(tokens[:, None], attend, positions, bound)
        return features[:, 0], self.top(features, attend, positions, bound)[:, 0]

    def run(self, start: Prefilled, uniforms: Tensor) -> Decoded:
        """Responses to the first rows' prompts; `uniforms` (B, max_new_tokens)."""
        rows = len(start.lengths)
        self._load(start, uniforms)
        for first in range(0, self.shape.decoding.max_new_tokens, POLL):
            for _ in range(min(POLL, self.shape.decoding.max_new_tokens - first)):
                self._advance()
            if self.finished.all().item():
                break
        responses = [upto_end(row, self.shape.eos_ids) for row in self.tokens[:rows].tolist()]
        finished = [row[-1] in self.shape.eos_ids for row in responses]
        return Decoded(responses, finished, None if self.features is None else self.features[:rows])

    def _load(self, start: Prefilled, uniforms: Tensor) -> None:
        rows, slots = len(start.lengths), start.cache.slots
        for mine, given in zip(
            (*self.cache.keys, *self.cache.values), (*start.cache.keys, *start.cache.values), strict=True
        ):
            mine[:rows, :, :slots].copy_(given)
        self.lengths.fill_(1)
        self.lengths[:rows].copy_(start.lengths)
        self.logits[:rows].copy_(start.logits)
        self.uniforms[:rows].copy_(uniforms)
        self.tokens.zero_()
        self.position.zero_()
        self.finished.fill_(True)  # the rows that only fill up the shape
        self.finished[:rows] = False
        if self.features is not None and start.features is not None:
            self.features[:rows, : start.features.shape[1]].copy_(start.features)


def upto_end(ids: list[int], eos_ids: Collection[int]) -> list[int]:
    """The ids up to and including the first that ends a response."""
    end = next((place for place, token in enumerate(ids) if token in eos_ids), len(ids) - 1)
    return ids[: end + 1]


def captured(step: Callable[[], None], pool: Any) -> Callable[[], None]:
    """`step` as a CUDA graph; it must leave its results in existing tensors."""
    here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
    aside.wait_stream(here)
    with torch.cuda.stream(aside):  # libraries choose kernels and allocate workspaces before the capture
        for _ in range(2):
            step()
    here.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        step()
    return graph.replay


class Replays:
    """A model's captured steps by shape, over copies of its tops in the compute dtype.

    A captured step reads weights at fixed addresses. So before a top decodes, its weights are copied into the
    twin with which the steps were captured.
    """

    def __init__(self, trunk: Trunk) -> None:
        self._trunk = trunk
        self._twins: dict[tuple[str, ...], Top] = {}
        self._decoders: OrderedDict[tuple[int, Shape], StaticDecoder] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle() if trunk.device.type == "cuda" else None

    @staticmethod
    def of(trunk: Trunk) -> Replays:
        """The trunk's one instance, made at the first call."""
        if "replays" not in trunk.__dict__:
            object.__setattr__(trunk, "replays", Replays(trunk))
        return trunk.__dict__["replays"]

    @torch.inference_mode(False)
    @torch.no_grad()
    def twin(self, top: Top) -> Top:
        """A copy of `top` in the compute dtype and at a fixed address, with its current weights."""
        state = top.state_dict()
        known = self._twins.get(tuple(state))
        if known is None:
            # Tops whose idle adapters were dropped have fewer weights: the twin's adapters stay zero.
            known = Top(self._trunk, self._trunk.dtype).requires_grad_(False).eval()
            self._twins[tuple(state)] = known
        mine = known.state_dict()
        if state:
            torch._foreach_copy_([mine[name] for name in state], list(state.values()))
        return known

    def decoder(
        self, twin: Top, rows: int, slots: int, decoding: Decoding, eos_ids: Collection[int], features: bool
    ) -> StaticDecoder:
        """The captured step for at least `rows` rows of `slots` positions; a new one replaces the oldest."""
        shape = Shape(
            _up(rows, ROW_BUCKET), _up(slots, SLOT_BUCKET), decoding, tuple(sorted(eos_ids)), features
        )
        key = (id(twin), shape)
        if key in self._decoders:
            self._decoders.move_to_end(key)
            return self._decoders[key]
        while len(self._decoders) >= KEPT_SHAPES:
            self._decoders.popitem(last=False)
        fused = self._trunk.device.type != "cpu"
        self._decoders[key] = StaticDecoder(twin, shape, fused=fused, pool=self._pool)
        return self._decoders[key]


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
