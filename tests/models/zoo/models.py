"""Tiny random models of transformers' causal language models, and folders of them as `model.name` takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlaif.models.tiny import tiny_tokenizer
from zoo.configs import make_config

POSITIONS = 2048


def build(name: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A model of the type `name` in float32 and eval mode, with transformers' eager attention."""
    config = make_config(name, **overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = model.float().eval()
    draw(model, seed)
    return model


@torch.no_grad()
def draw(model: PreTrainedModel, seed: int) -> None:
    """Weights that tell layers, heads and experts apart: no norm, bias, sink or scale is all ones or zeros."""
    generator = torch.Generator().manual_seed(seed)
    for value in model.state_dict(keep_vars=True).values():
        if value.dim() > 1 and isinstance(value, torch.nn.Parameter):
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(noise * 1.4 / max(4, min(value.shape[-2:])) ** 0.5)
        elif value.dim() == 1 and value.is_floating_point():  # some are buffers, such as a router's bias
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx] = 0.0  # some types reset it when they are loaded


def save(folder: Path, name: str, seed: int = 0, **overrides: Any) -> Path:
    """A folder with a model of the type `name` and a tokenizer of one token per byte, for texts of 2048 tokens."""
    tokenizer = tiny_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": POSITIONS}
    build(name, seed, **(sizes | overrides)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
