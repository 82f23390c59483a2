"""Small configurations of transformers' causal language models: four layers, width 32, and each type's own traits.

A type takes from `COMMON` what its configuration class has a field for, and from `OWN` what is its own. Windows are
shorter than the texts of the tests, scales and caps are far from 1, and where layers differ each kind is above and
below the middle, so that a model that loses any of it computes something else.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

VOCABULARY = 97
LAYERS = 4
WINDOW = 8

BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Every type takes these; older types have other names for them and say so in their `attribute_map`."""

COMMON: dict[str, Any] = {
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": WINDOW,
    # Mixtures of experts
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "n_group": 2,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
    # Latent attention, and its index of keys
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "index_head_dim": 16,
    "index_n_heads": 16,
    "index_topk": 6,
    # Linear attention, state spaces, convolutions
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_d_ssm": 64,
    "mamba_chunk_size": 8,
    "state_size": 8,
    "chunk_size": 8,
    # Scales and caps
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 3.0,
    "query_pre_attn_scalar": 16,
    "logit_scale": 0.3,
    "logits_scaling": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.5,
    "embedding_multiplier": 2.0,
}

WINDOWS = {"layer_types": ["sliding_attention", "full_attention"] * 2}
LINEAR = {"layer_types": ["linear_attention", "full_attention"] * 2}
HYBRID = {"layer_types": ["hybrid_sliding", "hybrid"] * 2}
SWITCHED = WINDOWS | {"use_sliding_window": True}
LATENT = {"num_key_value_heads": 4}  # as many keys as queries
PER_LAYER = {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8}
MAMBA = {"mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 2}

_WINDOWS = """
afmoe beam cohere2 cohere2_moe cwm dots1 exaone4 exaone_moe flint gemma3_text gemma4_unified_text gpt_oss granite_swa
granitemoe_swa kolibri1 laguna mellum mimo_v2_flash ministral olmo3 vaultgemma
"""

OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(_WINDOWS.split(), WINDOWS),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3"), SWITCHED),
    **dict.fromkeys(("minimax", "olmo_hybrid", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"), LINEAR),
    "bailing_hybrid": LINEAR | LATENT,
    "bamba": {"attn_layer_indices": [1, 3]},
    "codegen": {"rotary_dim": 4},
    "ctrl": {"dff": 48},
    "deepseek_v2": {"topk_method": "greedy"},
    "deepseek_v4": {"o_lora_rank": 16, "o_groups": 2},
    "gemma3n_text": WINDOWS
    | PER_LAYER
    | {"num_kv_shared_layers": 0, "laurel_rank": 8, "activation_sparsity_pattern": [0.0] * LAYERS}
    | {"intermediate_size": [48] * LAYERS},
    "gemma4_text": WINDOWS | PER_LAYER | {"num_kv_shared_layers": 0, "global_head_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": WINDOW},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": LINEAR | {"shared_intermediate_size": 24},
    "hyperclovax": {"logits_scaling": 0.5},
    "inkling_text": HYBRID
    | {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 8,
        "rel_extent": 16,
        "d_rel": 4,
    }
    | {"mlp_layer_types": ["dense", "sparse"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": LINEAR | LATENT | {"linear_head_dim": 8, "linear_num_heads": 4, "q_lora_rank": None},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "lfm3": {"layer_types": ["conv", "full_attention", "conv", "sliding_attention"]},
    "llama4_text": {
        "intermediate_size_mlp": 48,
        "attention_chunk_size": 16,
        "no_rope_layers": [1, 0] * 2,
        "layer_types": ["chunked_attention", "full_attention"] * 2,
    },
    "longcat_flash": {
        "ffn_hidden_size": 48,
        "expert_ffn_hidden_size": 24,
        "zero_expert_num": 2,
        "moe_topk": 2,
    },
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 2},
    "minicpm3": {"dim_model_base": 16},
    "minimax_m3_vl_text": {"dense_intermediate_size": 48, "shared_intermediate_size": 24, "rotary_dim": 8},
    "modernbert-decoder": WINDOWS | {"local_attention": 2 * WINDOW},
    "nemotron_h": MAMBA | {"moe_shared_expert_intermediate_size": 24},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "qwen3_moe": {"use_sliding_window": True},
    "qwen4_exp_text": {"hc_lowrank": 8, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8}
    | {
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "layer_types": ["linear_attention", "indexed_attention"] * 2,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "lru_width": 32},
    "smollm3": SWITCHED | {"no_rope_layers": [1, 0] * 2},
    "xglm": {"ffn_dim": 48},
    "zaya": HYBRID | {"num_experts_per_tok": 1, "router_hidden_size": 16},
}


_NAMES = """
afmoe apertus arcee aria_text axk1 axk2 bailing_hybrid bamba beam biogpt bitnet bloom codegen cohere cohere2
cohere2_moe ctrl cwm deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 diffllama doge dots1 ernie4_5 ernie4_5_moe
exaone4 exaone_moe falcon falcon_h1 falcon_mamba flex_olmo flint gemma gemma2 gemma3_text gemma3n_text
gemma4_text gemma4_unified_text glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa gpt2 gpt_bigcode gpt_neo gpt_neox
gpt_neox_japanese gpt_oss gptj granite granite_swa granitemoe granitemoe_swa granitemoehybrid granitemoeshared
helium hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3 hy_v4 hyperclovax inkling_text jais2 jamba jetmoe
kimi_linear kolibri1 laguna lfm2 lfm2_moe lfm3 llama llama4_text longcat_flash mamba mamba2 mellum mimo_v2_flash
minicpm3 minimax minimax_m2 minimax_m3_vl_text ministral ministral3 mistral mixtral modernbert-decoder mpt
nanochat nemotron nemotron_h olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt opt persimmon phi phi3 phimoe qwen2
qwen2_moe qwen3 qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next qwen4_exp_text recurrent_gemma rwkv seed_oss
smollm3 solar_open stablelm starcoder2 vaultgemma xglm xlstm youtu zaya
"""
NAMES = tuple(_NAMES.split())
"""The types that build at this size."""


_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
_LONG = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0]}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, llama3 rope": (
        "llama",
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0} | _LLAMA3},
    ),
    "qwen2, yarn rope": ("qwen2", {"rope_parameters": _YARN}),
    "phi3, longrope": (
        "phi3",
        {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4} | _LONG},
    ),
    "gpt2, untied": ("gpt2", {"tie_word_embeddings": False}),
    "gpt_neox, serial": ("gpt_neox", {"use_parallel_residual": False}),
    "gemma3_text, no caps": (
        "gemma3_text",
        {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "phimoe, no window": ("phimoe", {"sliding_window": None}),
}
"""Other configurations of some types, by what is different."""


def make_config(name: str, **overrides: Any) -> PreTrainedConfig:
    """The small configuration of the type `name`. Overrides win over everything else."""
    kind = CONFIG_MAPPING[name]
    known = {field.name for field in fields(kind)} | set(kind.attribute_map)
    common = {key: value for key, value in COMMON.items() if key in known}
    if "kv_lora_rank" in known:
        common |= LATENT
    return kind(**(BASE | common | OWN.get(name, {}) | overrides))
