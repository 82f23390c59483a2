"""Model folders as people have them, made in code: a tiny random Llama and its tokenizer, odd in one way."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from rlaif.models.tiny import tiny_tokenizer

LAYERS = 3


def save_model(folder: Path, *, tokenizer: Any = None, **settings: Any) -> Path:
    """A random Llama of three layers with an untied head (unless `settings` say otherwise) in `folder`."""
    torch.manual_seed(0)
    tokenizer = tokenizer or tiny_tokenizer()
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.15,
    }
    AutoModelForCausalLM.from_config(LlamaConfig(**(sizes | settings))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def edit_config(folder: Path, **values: Any) -> None:
    """Overwrite keys of `config.json`."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Rewrite the checkpoint as `change` makes it."""
    path = folder / "model.safetensors"
    found = {name: value.clone() for name, value in load_file(path).items()}  # the file itself is overwritten
    save_file(change(found), path, metadata={"format": "pt"})


def end_with_probability(weights: dict[str, Tensor], p: float, eos_id: int = 2) -> dict[str, Tensor]:
    """Weights of a model that reads nothing: each next token is EOS with probability `p`, else any other alike."""
    for name, value in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight", "embed_tokens.weight")):
            value.zero_()
        elif "norm" in name:
            value.fill_(1.0)
    weights["model.embed_tokens.weight"][:, 0] = 1.0
    size = weights["model.norm.weight"].shape[0] ** 0.5  # of the one entry, normalised
    others = weights["lm_head.weight"].shape[0] - 1
    weights["lm_head.weight"][eos_id, 0] = math.log(others * p / (1 - p)) / size
    return weights
