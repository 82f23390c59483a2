"""One decoding step of a decoder's layers in few kernels: joined projections, with `kernels.py` between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rlaif.inference.cache import KVCache
from rlaif.inference.decoding import kernels
from rlaif.models.decoder import Block, Linear
from rlaif.models.split import Top


class Joined:
    """Several linear layers with the same input as one matrix product.

    Their weights become views of one tensor, so nothing is stored twice and weights copied into the layers later
    are read here.
    """

    def __init__(self, layers: Sequence[Linear]) -> None:
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
    def of(block: Block) -> FusedBlock:
        """The block's one instance: a second would take the weights from steps captured with the first."""
        if "fused" not in block.__dict__:
            object.__setattr__(block, "fused", FusedBlock(block))
        return block.__dict__["fused"]

    def __init__(self, block: Block) -> None:
        attention, mlp = block.self_attn, block.mlp
        self._first, self._second = block.input_layernorm, block.post_attention_layernorm
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
        mixed = self._mix(kernels.add_norm(hidden, added, self._first.weight, self._first.eps))
        kernels.rotate_and_store(mixed, tables, keys, values, slots)
        attended = self._output(kernels.attend_slots(mixed, keys, values, slots))
        both = self._gates(kernels.add_norm(hidden, attended, self._second.weight, self._second.eps))
        return self._down(kernels.gated(both))


class FusedStep:
    """Trunk and top of a frozen policy in the compute dtype, one token per row."""

    def __init__(self, top: Top) -> None:
        self._top = top
        self._trunk_blocks = [FusedBlock.of(block) for block in top.trunk.blocks]  # type: ignore[arg-type]
        self._top_blocks = [FusedBlock.of(block) for block in top.layers]  # type: ignore[arg-type]

    @staticmethod
    def fits(top: Top) -> bool:
        """Whether all layers are plain (no adapters) and have the usual gate."""
        blocks = [*top.trunk.blocks, *top.layers]
        linears = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
        return top.trunk.lora is None and all(
            block.mlp.activation is None
            and all(type(block.get_submodule(name)) is Linear for name in linears)
            for block in blocks
        )

    def __call__(self, tokens: Tensor, cache: KVCache, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D), or ids (B,) if the model is `full`, and normalised hidden states (B, D) of `tokens` (B,)."""
        top, trunk = self._top, self._top.trunk
        tables = trunk.rope.tables(cache.slots, tokens.device, trunk.dtype)
        embedding = trunk.embedding if top.embedding is None else top.embedding
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
        return features, kernels.add_norm(hidden, added, top.norm.weight, top.norm.eps)
