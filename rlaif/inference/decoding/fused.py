"""One decoding step of a decoder's layers in few kernels: joined projections, with `kernels.py` between them.

For layers that compute what Llama's do. Whether a model's are such is found by their parts and then by numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlaif.inference.cache import KVCache, Step
from rlaif.inference.decoding import kernels
from rlaif.models.attention import CAUSAL, Scoring
from rlaif.models.parts.swaps import kind_of
from rlaif.models.split import Top

CHECKED_SLOTS = 4
UNBOUNDED = 2**31 - 1
CLOSE = 0.02  # of the spread of hidden states: what bfloat16 explains; another function differs by far more


class Joined:
    """Several linear layers with the same input as one matrix product.

    Their weights become views of one tensor, so nothing is stored twice and weights copied into the layers later
    are read here.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        with torch.inference_mode(False), torch.no_grad():
            self.weight = torch.cat([layer.weight.detach() for layer in layers])
            start = 0
            for layer in layers:
                layer.weight.data = self.weight[start : start + layer.out_features]
                start += layer.out_features
            biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
            self.bias = torch.cat(biases) if biases else None
            if self.bias is not None:
                for layer, part in zip(
                    layers, self.bias.split([x.out_features for x in layers]), strict=True
                ):
                    layer.bias.data = part

    def __call__(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight, self.bias)


class FusedBlock:
    """One decoder layer, which also stores the new token's keys and values."""

    @staticmethod
    def of(layer: nn.Module) -> FusedBlock:
        """The layer's one instance: a second would take the weights from steps captured with the first."""
        if layer not in _KNOWN:
            _KNOWN[layer] = FusedBlock(layer)
        return _KNOWN[layer]

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._first, self._second = layer.input_layernorm, layer.post_attention_layernorm
        self._mix = Joined((attention.q_proj, attention.k_proj, attention.v_proj))
        self._gates = Joined((mlp.gate_proj, mlp.up_proj))
        self._output, self._down = attention.o_proj, mlp.down_proj

    def __call__(
        self,
        hidden: Tensor,
        added: Tensor | None,
        tables: tuple[Tensor, Tensor],
        store: tuple[Tensor, Tensor],
        slots: Tensor,
    ) -> Tensor:
        """The MLP's output (B, D), still to be added to `hidden`; `added` and the attention are added in place."""
        keys, values = store
        mixed = self._mix(kernels.add_norm(hidden, added, self._first.weight, self._first.swap_eps))
        kernels.rotate_and_store(mixed, tables, keys, values, slots)
        attended = self._output(kernels.attend_slots(mixed, keys, values, slots))
        both = self._gates(kernels.add_norm(hidden, attended, self._second.weight, self._second.swap_eps))
        return self._down(kernels.gated(both))


# Beside the layers, not in them: a copy of a layer has weights of its own.
_KNOWN: WeakKeyDictionary[nn.Module, FusedBlock] = WeakKeyDictionary()

LINEAR = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
NORMS = ("input_layernorm", "post_attention_layernorm")


class FusedStep:
    """Trunk and top of a frozen policy in the compute dtype, one token per row."""

    def __init__(self, top: Top) -> None:
        self._top = top
        trunk = top.trunk
        layers = [trunk.lm.get_submodule(path) for path in trunk.decoder.layer_paths(0, trunk.first_top)]
        self._trunk_blocks = [FusedBlock.of(layer) for layer in layers]
        self._top_blocks = [FusedBlock.of(layer) for layer in top.layers]
        self._norm: Any = top.norm
        self._rotary: Any = trunk.lm.get_submodule(trunk.decoder.path.stack).rotary_emb
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}

    @staticmethod
    def fits(top: Top) -> bool:
        """Whether all layers are plain (no adapters), have Llama's parts and compute what these do."""
        trunk = top.trunk
        layers = [trunk.lm.get_submodule(path) for path in trunk.decoder.layer_paths(0, trunk.first_top)]
        if trunk.lora is not None or not trunk.verdict.patterns or kind_of(top.norm) != "norm":
            return False
        return all(_has_parts(layer) for layer in (*layers, *top.layers)) and _same_step(top)

    def __call__(self, tokens: Tensor, cache: KVCache, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D), or ids (B,) if the model is `full`, and normalised hidden states (B, D) of `tokens` (B,)."""
        tables = self._rotary_tables(cache.slots)
        own, trunk = self._top.embedding, self._top.trunk
        embedding = trunk.lm.get_input_embeddings().weight if own is None else own  # type: ignore[operator]
        hidden, added = F.embedding(tokens, embedding), None
        stores = zip(cache.keys, cache.values, strict=True)
        for block in self._trunk_blocks:
            added = block(hidden, added, tables, next(stores), slots)
        features = tokens
        if added is not None:
            hidden.add_(added)
            features, added = hidden.clone(), None
        for block in self._top_blocks:
            added = block(hidden, added, tables, next(stores), slots)
        return features, kernels.add_norm(hidden, added, self._norm.weight, self._norm.swap_eps)

    def _rotary_tables(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (length, E) of all positions, kept: a captured step reads them at their address."""
        if length not in self._tables:
            trunk = self._top.trunk
            carrier = torch.empty(1, dtype=trunk.dtype, device=trunk.device)
            cos, sin = self._rotary(carrier, torch.arange(length, device=trunk.device)[None])
            self._tables[length] = (cos[0].contiguous(), sin[0].contiguous())
        return self._tables[length]


def _has_parts(layer: Any) -> bool:
    names = {
        name for name, part in layer.named_modules() if next(part.parameters(recurse=False), None) is not None
    }
    if names != {*LINEAR, *NORMS}:
        return False
    linear = all(type(layer.get_submodule(name)) is nn.Linear for name in LINEAR)
    return (
        linear
        and kind_of(layer.mlp) == "gate"
        and all(kind_of(getattr(layer, name)) == "norm" for name in NORMS)
    )


@torch.inference_mode()
def _same_step(top: Top) -> bool:
    """Whether the fused step computes what the layers do, with the scores of usual attention and no window."""
    trunk, device = top.trunk, top.device
    scorings: list[tuple[Scoring, int]] = []
    tokens = torch.arange(2, device=device)
    _run_layers(top, tokens[:, None], CAUSAL, None, lambda m, q, k, v, s: scorings.append((s, q.shape[3])))
    if any(s.factor(size) != size**-0.5 or s.window or not s.fused for s, size in scorings):
        return False
    outputs = []
    for fused in (True, False):
        cache = KVCache(trunk.cache_shapes, 2, CHECKED_SLOTS, trunk.dtype, device)
        slots = torch.tensor([0, CHECKED_SLOTS - 1], device=device)
        try:
            hidden = (
                FusedStep(top)(tokens, cache, slots)[1]
                if fused
                else _run_layers(top, tokens[:, None], Step(cache, slots), slots[:, None], None)[:, 0]
            )
        except (AttributeError, RuntimeError, TypeError, ValueError):
            return False
        outputs.append(hidden.float())
    return bool((outputs[0] - outputs[1]).abs().max() <= CLOSE * outputs[1].std())


def _run_layers(top: Top, ids: Tensor, attend: Any, positions: Tensor | None, watch: Any) -> Tensor:
    """Hidden states (B, T, D) of all layers; windows are seen by `watch`, however short the rows."""
    features = top.trunk(ids, attend, positions, UNBOUNDED, watch=watch)
    return top(features, attend, positions, UNBOUNDED, watch=watch)
