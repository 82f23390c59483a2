"""How each type is expected to run, which a probe of its numbers has to find out."""

from __future__ import annotations

from zoo.configs import NAMES, VARIANTS

# More than one attention that looks back passes through their layers: states, convolutions, keys chosen by an index,
# chunks, position biases; or their attention cannot be replaced.
_PLAIN = """
axk2 bailing_hybrid bamba bloom codegen deepseek_v32 deepseek_v4 diffllama doge falcon falcon_h1 falcon_mamba
glm_moe_dsa gpt_neo gpt_neox_japanese gptj granitemoehybrid hy_v4 inkling_text jamba kimi_linear lfm2 lfm2_moe
lfm3 llama4_text mamba mamba2 minimax mpt nemotron_h olmo_hybrid openai-gpt phimoe qwen3_5_moe_text
qwen3_5_text qwen3_next qwen4_exp_text recurrent_gemma rwkv xglm zaya
"""
# Something passes from the lower layers to the upper ones beside the hidden states: not for `top:K`.
_UNSPLIT = """
bamba ctrl deepseek_v4 gemma3n_text gemma4_text glm_moe_dsa hy_v4 openai-gpt rwkv zaya
"""
# No one list of layers, no linear head, or an own forward pass that fails at some lengths (xlstm).
_REFUSED = "hrm_text longcat_flash modernbert-decoder xlstm"
# Their own forward mixes float32 with the compute dtype.
_FLOAT32 = "minimax openai-gpt xglm"
# Their last layer runs everywhere even if few positions are read: its attention does not lie between one norm and one
# projection.
_ALL_ROWS = "afmoe beam bitnet ctrl gemma3n_text gemma4_text gpt2 gpt_bigcode jetmoe laguna"
# Of the plain ones, those whose cache in transformers gives other logits than their whole rows.
_UNCACHED = "minimax nemotron_h rwkv"
PLAIN, UNSPLIT, REFUSED, FLOAT32, ALL_ROWS, UNCACHED = (
    names.split() for names in (_PLAIN, _UNSPLIT, _REFUSED, _FLOAT32, _ALL_ROWS, _UNCACHED)
)
WORKING = [*(name for name in NAMES if name not in REFUSED), *VARIANTS]
PATTERNS = [name for name in WORKING if name not in PLAIN]
