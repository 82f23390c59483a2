"""The sizes of a causal language model, from transformers' own modules; no weight is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rlaif.errors import UserError
from rlaif.models.parts.layers import find_layers

# What configurations call the number of positions, once transformers has mapped a type's own name (n_positions, say).
_POSITIONS = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "seq_length", "context_length")
_USED_EXPERTS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_k",
    "moe_top_k",
    "top_k_experts",
)
# Their angles change, for every row, once the longest row of a batch is longer than those of pretraining.
_BATCH_DEPENDENT_ROPE = ("dynamic", "longrope")
NO_LIMIT = 2**31 - 1
_EXPERT_DIMENSIONS = 3  # a stack of matrices, one per expert


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of a causal language model.

    `max_positions` is what its configuration says; `NO_LIMIT` where it says nothing, as for models without positions.
    With `dynamic` and `longrope` rotary scaling it is the length of pretraining (`original_max_position_embeddings`):
    beyond it the angles of all rows follow the longest row of the batch, so that a row's outputs depend on its batch.
    """

    vocab_size: int  # entries of its logits
    hidden_size: int  # of the states between layers
    head_size: int  # of the states that the head reads, behind the final norm; nearly always the same
    num_layers: int
    layer_weights: int  # of one average layer, that a token is multiplied by: of experts, those that it uses
    stored_layer_weights: int  # of one average layer, with all its experts
    adapter_weights: int  # of adapters of rank 1 on every linear layer
    head_weights: int
    max_positions: int
    total_weights: int  # all of them, tied ones once
    tied: bool  # the head is the embedding

    @classmethod
    def of(cls, hf_config: Any) -> ModelSizes:
        """The sizes of the causal language model that transformers makes of `hf_config`.

        Raises UserError if there is none with a list of layers and a head, and the model's own errors.
        """
        mark = f"{type(hf_config).__module__} {json.dumps(hf_config.to_dict(), sort_keys=True, default=str)}"
        if mark not in _known:
            _known[mark] = _measure(hf_config)
        return _known[mark]


_known: dict[str, ModelSizes] = {}  # big models take a second


def skeleton(hf_config: Any) -> nn.Module:
    """The causal language model of `hf_config` without weights, on the meta device.

    Raises UserError if transformers has none for this type. Code that came with the model runs if it made `hf_config`.
    """
    from transformers import AutoModelForCausalLM

    remote = type(hf_config).__module__.startswith("transformers_modules")
    has_remote = remote and "AutoModelForCausalLM" in (getattr(hf_config, "auto_map", None) or {})
    if not has_remote and type(hf_config) not in AutoModelForCausalLM._model_mapping:
        raise UserError(f"model type {hf_config.model_type!r} has no causal language model in transformers")
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(hf_config, trust_remote_code=has_remote).eval()


def _measure(hf_config: Any) -> ModelSizes:
    lm = skeleton(hf_config)
    head, embedding = lm.get_output_embeddings(), lm.get_input_embeddings()  # type: ignore[operator]
    if getattr(head, "weight", None) is None:
        raise UserError(
            f"{type(lm).__name__} has no single vocabulary head: it is not an ordinary language model"
        )
    config = hf_config.get_text_config()
    layers = list(lm.get_submodule(find_layers(lm).layers).children())
    used = sum(_used_weights(layer, config) for layer in layers)
    return ModelSizes(
        vocab_size=head.weight.shape[0],
        hidden_size=config.hidden_size,
        head_size=head.weight.shape[1],
        num_layers=len(layers),
        layer_weights=round(used / len(layers)),
        stored_layer_weights=round(sum(map(_stored_weights, layers)) / len(layers)),
        adapter_weights=sum(map(_adapter_weights, layers)),
        head_weights=head.weight.numel(),
        max_positions=_max_positions(config),
        total_weights=sum(weight.numel() for weight in lm.parameters()),
        tied=head.weight is getattr(embedding, "weight", None),
    )


def _used_weights(layer: nn.Module, config: Any) -> float:
    """The weights of `layer` that a token is multiplied by."""
    total = _stored_weights(layer)
    stacks = list(_expert_stacks(layer))
    used = _first(config, _USED_EXPERTS)
    if not stacks or used is None:
        return total
    return total - sum(size * (1 - min(used / experts, 1)) for experts, size in stacks)


def _stored_weights(layer: nn.Module) -> int:
    return sum(weight.numel() for weight in layer.parameters())


def _adapter_weights(layer: nn.Module) -> int:
    """An adapter of rank 1 has one weight for each input and each output of a linear layer."""
    from transformers.pytorch_utils import Conv1D

    linear = (part for part in layer.modules() if isinstance(part, (nn.Linear, Conv1D)))
    return sum(sum(part.weight.shape) for part in linear)


def _expert_stacks(layer: nn.Module) -> Iterator[tuple[int, int]]:
    """(number of experts, number of weights) of each set of experts in a layer.

    transformers keeps a set as stacks of matrices, one matrix per expert; code that comes with a model often as a list
    of modules that have the same weights.
    """
    for module in layer.modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1:
            counts = {sum(weight.numel() for weight in expert.parameters()) for expert in module}
            if len(counts) == 1:
                yield len(module), len(module) * counts.pop()
        elif not isinstance(module, nn.modules.conv._ConvNd):
            for weight in module.parameters(recurse=False):
                if weight.ndim == _EXPERT_DIMENSIONS:
                    yield weight.shape[0], weight.numel()


def _max_positions(config: Any) -> int:
    stated = _first(config, _POSITIONS) or NO_LIMIT
    return min([stated, *_batch_dependent_beyond(config, stated)])


def _batch_dependent_beyond(config: Any, stated: int) -> Iterator[int]:
    """The lengths of pretraining that matter: one rotary scaling for all layers, or one for each kind of layer."""
    ropes = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for rope in (ropes, *ropes.values()):
        kind = str(rope.get("rope_type", rope.get("type"))) if isinstance(rope, dict) else ""
        if kind in _BATCH_DEPENDENT_ROPE:
            name = "original_max_position_embeddings"
            yield rope.get(name) or _first(config, (name,)) or stated


def _first(config: Any, names: tuple[str, ...]) -> int | None:
    """The first of the configuration's entries that is a positive number."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
