"""A compact Llama-family decoder whose attention pattern is an argument.

Weights keep the names and shapes of transformers' `LlamaForCausalLM`, so that a model loads from and exports to the
hub's format without renaming; `tests/models/test_parity.py` checks that the two agree. Unlike transformers' module,
the same layers run under different attention patterns (plain causal, capturing keys and values, one step on a
preallocated KV cache, after a shared prefix), and any contiguous range of layers runs alone, so that many trainable
tops can share a frozen trunk.

Notation: B rows, T positions, D hidden size, H query heads, K key/value heads, E head size.
Activations have the compute dtype; weights are cast to it at use, so fp32 masters stay fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlaif.errors import UserError
from rlaif.models.attention import Attend, AttendRows, is_plain

SUPPORTED = ("llama", "mistral", "qwen2")
SILU = ("silu", "swish")
# Their angles depend on the longest row of a batch, ours only on the position.
BATCH_DEPENDENT_ROPE = ("dynamic", "longrope")


@dataclass(frozen=True)
class DecoderConfig:
    """The sizes of a decoder, read from a transformers config."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_positions: int
    tied: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    activation: str = "silu"  # a name of transformers' ACT2FN

    @classmethod
    def from_hf(cls, config: Any) -> DecoderConfig:
        """Read a transformers config; raises UserError for an unsupported architecture."""
        if config.model_type not in SUPPORTED:
            raise UserError(
                f"model type {config.model_type!r} is not supported: use a Llama-family model ({', '.join(SUPPORTED)})"
            )
        if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
            raise UserError("models with sliding-window attention are not supported: use one without it")
        check_rope(config)
        _check_activation(config.hidden_act)
        llama = config.model_type == "llama"  # the others ignore these keys, whatever their config.json says
        bias = llama and bool(config.attention_bias)
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            norm_eps=config.rms_norm_eps,
            max_positions=config.max_position_embeddings,
            tied=bool(config.tie_word_embeddings),
            qkv_bias=bias or config.model_type == "qwen2",
            output_bias=bias,
            mlp_bias=llama and bool(config.mlp_bias),
            activation=config.hidden_act,
        )

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's matrices."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        return attention + 3 * self.hidden_size * self.intermediate_size


def _check_activation(name: Any) -> None:
    """Raises UserError for an activation that transformers does not know, or that has weights."""
    from transformers.activations import ACT2FN

    if name not in ACT2FN or any(True for _ in ACT2FN[name].parameters()):
        raise UserError(
            f"hidden_act={name!r} in the model's config.json is not supported: use a model with silu or gelu"
        )


Tables = tuple[Tensor, Tensor]


class Linear(nn.Linear):
    """A linear layer that computes in its input's dtype, whatever the dtype of its weights."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


class Norm(nn.Module):
    """Root-mean-square layer normalisation."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        weight = self.weight.to(hidden.dtype)
        if is_plain(hidden.device):
            return _RMSNorm.apply(hidden, weight, self.eps)
        return F.rms_norm(hidden, weight.shape, weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    """Root-mean-square normalisation in about a third of the passes over memory that torch's CPU kernel needs.

    As in transformers, x / rms(x) is computed in fp32 and rounded to the input's dtype before it is multiplied by the
    weight. The same function with and without gradients: PPO's first ratio is 1 only if both round alike.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = hidden.to(_wide(hidden.dtype), copy=True)
        square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        scale = square.div_(hidden.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(hidden, weight, scale)
        return wide.mul_(scale).to(hidden.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        hidden, weight, scale = ctx.saved_tensors
        unit = hidden * scale
        grad = grad.to(unit.dtype)
        weighted = grad * unit
        weight_grad = weighted.flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        shared = weighted.matmul(weight.to(unit.dtype)).unsqueeze(-1).div_(hidden.shape[-1])
        hidden_grad = (grad * weight).sub_(unit.mul_(shared)).mul_(scale)
        return hidden_grad.to(hidden.dtype), weight_grad, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (B, heads, T, E) by tables (B or 1, 1, T, E)."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


def take(x: Tensor, index: Tensor) -> Tensor:
    """Entries of `x` (..., T, D) at `index` (..., R, 1) along the second to last dimension: (..., R, D)."""
    return x.gather(-2, index.expand(*index.shape[:-1], x.shape[-1]))


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, query, bias=config.qkv_bias)
        self.k_proj = Linear(config.hidden_size, key, bias=config.qkv_bias)
        self.v_proj = Linear(config.hidden_size, key, bias=config.qkv_bias)
        self.o_proj = Linear(query, config.hidden_size, bias=config.output_bias)

    def forward(self, hidden: Tensor, rope: Tables, attend: Attend, layer: int) -> Tensor:
        query = rotate(self._heads(self.q_proj(hidden)), *rope)
        key = rotate(self._heads(self.k_proj(hidden)), *rope)
        return self._merge(attend(layer, query, key, self._heads(self.v_proj(hidden))))

    def forward_rows(
        self, hidden: Tensor, rope: Tables, attend: AttendRows, layer: int, rows: Tensor
    ) -> Tensor:
        """Outputs (B, R, D) at positions `rows` (B, R) only. Keys and values still come from all."""
        key = rotate(self._heads(self.k_proj(hidden)), *rope)
        index = rows[:, None, :, None]
        tables = (take(table.expand(len(hidden), -1, -1, -1), index) for table in rope)
        query = rotate(self._heads(self.q_proj(take(hidden, rows[:, :, None]))), *tables)
        return self._merge(attend(layer, query, key, self._heads(self.v_proj(hidden)), rows))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], -1, self.head_dim).transpose(1, 2)

    def _merge(self, mixed: Tensor) -> Tensor:
        rows, _, length, _ = mixed.shape
        return self.o_proj(mixed.transpose(1, 2).reshape(rows, length, -1))


class MLP(nn.Module):
    """The gated feed-forward block (SwiGLU, or with another activation that the model's config names)."""

    def __init__(self, config: DecoderConfig) -> None:
        from transformers.activations import ACT2FN

        super().__init__()
        self.activation = None if config.activation in SILU else ACT2FN[config.activation]
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        gate, up = self.gate_proj(hidden), self.up_proj(hidden)
        if self.activation is not None:
            return self.down_proj(self.activation(gate) * up)
        if torch.is_grad_enabled():
            return self.down_proj(F.silu(gate) * up)
        # Allocating memory of this size would cost more than the products themselves.
        return self.down_proj(F.silu(gate, inplace=True).mul_(up))


class Block(nn.Module):
    """One decoder layer."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = Norm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = Norm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, hidden: Tensor, rope: Tables, attend: Attend, layer: int) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), rope, attend, layer)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))

    def forward_rows(
        self, hidden: Tensor, rope: Tables, attend: AttendRows, layer: int, rows: Tensor
    ) -> Tensor:
        """Outputs at positions `rows` (B, R) only: enough for the last layer if few are read."""
        mixed = self.self_attn.forward_rows(self.input_layernorm(hidden), rope, attend, layer, rows)
        kept = take(hidden, rows[:, :, None]) + mixed
        return kept + self.mlp(self.post_attention_layernorm(kept))


def check_rope(hf_config: Any) -> None:
    """Raises UserError for rotary positions that `Rope` does not compute as transformers does."""
    rope = getattr(hf_config, "rope_parameters", None) or {}
    kind, part = str(rope.get("rope_type", "default")), rope.get("partial_rotary_factor", 1.0)
    if kind in BATCH_DEPENDENT_ROPE:
        raise UserError(f"{kind} rotary scaling is not supported: its angles depend on the batch")
    if part != 1.0:
        raise UserError(f"partial_rotary_factor={part} (rotary positions on part of a head) is not supported")


class Rope(nn.Module):
    """Tables of rotary cosines and sines, with whatever scaling the model's config asks for."""

    def __init__(self, hf_config: Any) -> None:
        super().__init__()
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        check_rope(hf_config)
        self._rotary = LlamaRotaryEmbedding(hf_config)
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def forward(self, positions: Tensor, dtype: torch.dtype, length: int) -> tuple[Tensor, Tensor]:
        """Tables (B or 1, 1, T, E) for `positions` (B or 1, T), all below `length`."""
        cos, sin = self.tables(length, positions.device, dtype)
        return cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)

    def tables(self, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines, each (at least `length`, E), of the positions from 0 on."""
        table = self._tables.get((device, dtype))
        if table is None or table[0].shape[0] < length:
            size = 1 << max(length - 1, 127).bit_length()
            self._rotary.to(device)
            cos, sin = self._rotary(torch.zeros(1, device=device), torch.arange(size, device=device)[None])
            table = self._tables[(device, dtype)] = (cos[0].to(dtype), sin[0].to(dtype))
        return table


def run_blocks(
    blocks: Sequence[Block],
    hidden: Tensor,
    rope: Rope,
    *,
    first_layer: int,
    attend: Attend,
    positions: Tensor | None = None,
    max_position: int | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """Run consecutive blocks over `hidden` (B, T, D); `positions` default to 0..T-1.

    `max_position` is an exclusive bound on `positions`, which saves reading the tensor. With `rows` (B, R) the last
    block gives its outputs only there, (B, R, D); `attend` must be an `AttendRows`.
    """
    if positions is None:
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        max_position = hidden.shape[1]
    elif max_position is None:
        max_position = int(positions.max()) + 1
    tables = rope(positions, hidden.dtype, max_position)
    whole = len(blocks) - (rows is not None)
    for offset, block in enumerate(blocks[:whole]):
        hidden = block(hidden, tables, attend, first_layer + offset)
    if rows is not None:
        if not isinstance(attend, AttendRows):
            raise TypeError(f"{type(attend).__name__} gives no outputs at chosen rows: use an AttendRows")
        hidden = blocks[-1].forward_rows(hidden, tables, attend, first_layer + whole, rows)
    return hidden
