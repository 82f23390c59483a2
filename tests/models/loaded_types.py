"""Tiny random models of many types, made in code, as checkpoints on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

VOCABULARY = 97
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
# What a type has beside these, or (None) lacks.
TYPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "gemma3_text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {},
    "smollm3": {},
    "olmo2": {},
    "gpt_neox": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "head_dim": None},
    "qwen3_moe": _EXPERTS,
    "mixtral": {"num_local_experts": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "falcon": {"new_decoder_architecture": True, "head_dim": None},
    "granite": {},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["full_attention"] * 2},
}


def config_of(kind: str, **settings: Any) -> Any:
    """A configuration of a few thousand weights."""
    if kind == "gpt2":
        keys = {k: v for k, v in _SIZES.items() if k.endswith("_id") or k == "vocab_size"} | TYPES[kind]
    else:
        keys = _SIZES | TYPES[kind]
    return CONFIG_MAPPING[kind](**{k: v for k, v in (keys | settings).items() if v is not None})


def random_lm(config: Any) -> Any:
    """A model whose every weight is drawn, biases and norms included."""
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in lm.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return lm


def save_lm(folder: Path, kind: str, **settings: Any) -> Any:
    """Save a random model of `kind` and return it."""
    lm = random_lm(config_of(kind, **settings))
    lm.save_pretrained(folder)
    return lm
