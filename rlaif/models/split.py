"""One frozen trunk, many trainable tops.

With `trainable=top:k` the embedding, the lower L-k layers and the vocabulary head are frozen and shared by policy,
reference policy, value and reward model; each has its own top k layers and final norm. With `full` the "trunk" is
empty: its features are the token ids themselves, and a top owns embedding and vocabulary head. With `lora:r` the trunk
holds every weight and a top only low-rank adapters; features are the ids here too. So the code that uses this file is
the same for all: `features = trunk(ids)`, `hidden = top(features)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlaif.errors import UserError
from rlaif.models.attention import Attend, Causal, causal_attention
from rlaif.models.decoder import Block, DecoderConfig, Norm, Rope, run_blocks
from rlaif.models.lora import Lora, adapt, adapted_layers, drop_idle
from rlaif.ops import head_logprobs, token_logprobs

CAUSAL = Causal()


def check_trainable(spec: str) -> None:
    """Raises UserError for text that does not describe a split."""
    if not re.fullmatch(r"full|(top|lora):\d+", spec):
        raise UserError(
            f"model.trainable={spec} is not known: write full, top:K or lora:R (for instance top:4, lora:8)"
        )


def parse_trainable(spec: str, num_layers: int) -> int:
    """Number of top layers: all for `full` and `lora:r`, k for `top:k`."""
    check_trainable(spec)
    kind, _, number = spec.partition(":")
    if kind != "top":
        return num_layers
    top = int(number)
    if not 1 <= top < num_layers:
        raise UserError(
            f"model.trainable={spec}: K must be in 1..{num_layers - 1} for this model; for all layers write full"
        )
    return top


class Trunk(nn.Module):
    """The frozen part that every role shares: embedding, lower layers, vocabulary head.

    Weights are kept in the compute dtype, since they are never trained. With `lora` they are all the model's weights.
    """

    embedding: nn.Parameter
    head: nn.Parameter
    norm: Norm
    _place: Tensor

    def __init__(
        self,
        config: DecoderConfig,
        hf_config: Any,
        state: dict[str, Tensor],
        top_layers: int,
        dtype: torch.dtype,
        lora: Lora | None,
    ) -> None:
        super().__init__()
        self.config, self.hf_config, self.dtype, self.lora = config, hf_config, dtype, lora
        self.top_layers = top_layers
        self.full = top_layers == config.num_layers  # tops run every layer: features are the ids
        self.first_top = config.num_layers - top_layers
        self.rope = Rope(hf_config)
        # It may have no parameters: this buffer, which `.to` moves, always records the device.
        self.register_buffer("_place", torch.empty(0), persistent=False)
        frozen = config.num_layers if lora else self.first_top
        with torch.device("meta"):
            self.blocks = nn.ModuleList(Block(config) for _ in range(frozen))
        self._initial = {k: v for k, v in state.items() if self._belongs_to_top(k)}
        if lora or not self.full:
            self._load_frozen(state)
        self.requires_grad_(False)
        self.eval()

    def _load_frozen(self, state: dict[str, Tensor]) -> None:
        config, dtype = self.config, self.dtype
        embedding = state["model.embed_tokens.weight"].to(dtype)
        self.embedding = nn.Parameter(embedding, requires_grad=False)
        head = embedding if config.tied else state["lm_head.weight"].to(dtype)
        self.head = self.embedding if config.tied else nn.Parameter(head, requires_grad=False)
        prefix = "model.layers."
        layers = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        own = {k: v.to(dtype) for k, v in layers.items() if int(k.split(".")[0]) < len(self.blocks)}
        self.blocks.load_state_dict(own, assign=True)
        if self.lora:
            self.norm = Norm(config.hidden_size, config.norm_eps).to(dtype)
            self.norm.load_state_dict({"weight": state["model.norm.weight"]})

    @property
    def device(self) -> torch.device:
        """Where it runs, and where its tops are created."""
        return self._place.device

    def _belongs_to_top(self, name: str) -> bool:
        if self.lora:
            return False
        if self.full or name == "model.norm.weight":
            return True
        match = re.match(r"model\.layers\.(\d+)\.", name)
        return match is not None and int(match[1]) >= self.first_top

    @torch.no_grad()
    def forward(
        self,
        ids: Tensor,
        attend: Attend = CAUSAL,
        positions: Tensor | None = None,
        max_position: int | None = None,
    ) -> Tensor:
        """Features of `ids` (B, T): hidden states (B, T, D) below the top; with `full` or `lora`, the ids."""
        if self.full:
            return ids
        hidden = F.embedding(ids, self.embedding)
        return run_blocks(
            self.blocks,  # type: ignore[arg-type]
            hidden,
            self.rope,
            first_layer=0,
            attend=attend,
            positions=positions,
            max_position=max_position,
        )

    def new_top(self) -> Top:
        """A new trainable top (fp32 masters) that computes the same as the base model."""
        top = Top(self)
        if self.lora is None:
            top.load_hf(self._initial)
        # One seed for all: roles, seeds and resumed runs start alike, as they do from a base model's weights.
        generator = torch.Generator().manual_seed(0)
        for _, layer in adapted_layers(top):
            layer.draw(generator)
        return top


class Top(nn.Module):
    """What one role trains, in fp32: upper layers and final norm, all weights if `full`, adapters if `lora`."""

    trunk: Trunk
    norm: Norm
    embedding: nn.Parameter | None
    head: nn.Parameter | None

    def __init__(self, trunk: Trunk, dtype: torch.dtype = torch.float32) -> None:
        """On the trunk's device, in `dtype`. Weights are not set yet; adapters have no effect."""
        super().__init__()
        # The trunk is shared: it is kept out of this module's parameters and checkpoints.
        object.__setattr__(self, "trunk", trunk)
        self.embedding = self.head = None
        if trunk.lora is None:
            self._make_layers(trunk.config, dtype)
        else:
            blocks: Iterable[Block] = trunk.blocks  # type: ignore[assignment]
            self.layers = nn.ModuleList(adapt(block, trunk.config, trunk.lora) for block in blocks)
            object.__setattr__(self, "norm", trunk.norm)
            self.to(trunk.device, dtype)

    def _make_layers(self, config: DecoderConfig, dtype: torch.dtype) -> None:
        trunk, size = self.trunk, (config.vocab_size, config.hidden_size)
        with torch.device("meta"):  # initial values would be drawn in vain
            self.layers = nn.ModuleList(Block(config) for _ in range(trunk.top_layers))
            self.norm = Norm(config.hidden_size, config.norm_eps)
            self.embedding = nn.Parameter(torch.empty(size)) if trunk.full else None
            self.head = nn.Parameter(torch.empty(size)) if trunk.full and not config.tied else None
        self.to(dtype).to_empty(device=trunk.device)

    def load_hf(self, state: dict[str, Tensor]) -> None:
        """Load this top's weights from a state dict with transformers' names."""
        own = {}
        for name, value in state.items():
            match = re.match(r"model\.layers\.(\d+)\.(.+)", name)
            if match:
                own[f"layers.{int(match[1]) - self.trunk.first_top}.{match[2]}"] = value.float()
        own["norm.weight"] = state["model.norm.weight"].float()
        if self.embedding is not None:
            own["embedding"] = state["model.embed_tokens.weight"].float()
        if self.head is not None:
            own["head"] = state["lm_head.weight"].float()
        self.load_state_dict(own)

    def to_hf(self) -> dict[str, Tensor]:
        """Trunk and top together as a state dict with transformers' names (fp32 top, trunk as kept)."""
        trunk = self.trunk
        state = {f"model.layers.{name}": value for name, value in trunk.blocks.state_dict().items()}
        for name, value in self._layers_state().items():
            index, rest = name.split(".", 1)
            state[f"model.layers.{int(index) + trunk.first_top}.{rest}"] = value
        state["model.norm.weight"] = self.norm.weight.detach()
        state["model.embed_tokens.weight"] = self._embedding_weight().detach()
        if not trunk.config.tied:
            state["lm_head.weight"] = self._head_weight().detach()
        return state

    def _layers_state(self) -> dict[str, Tensor]:
        """The weights of this top's layers, with adapters merged into them."""
        if self.trunk.lora is None:
            return self.layers.state_dict()
        return {f"{name}.weight": layer.merged() for name, layer in adapted_layers(self.layers)}

    def forward(
        self,
        features: Tensor,
        attend: Attend | None = None,
        positions: Tensor | None = None,
        max_position: int | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Normalised hidden states (B, T, D) over the trunk's features, or (B, R, D) only at `rows` (B, R).

        The default of `attend` is `causal_attention`.
        """
        trunk = self.trunk
        hidden = run_blocks(
            self.layers,  # type: ignore[arg-type]
            F.embedding(features, self._embedding_weight()).to(trunk.dtype) if trunk.full else features,
            trunk.rope,
            first_layer=trunk.first_top,
            attend=causal_attention(features.device) if attend is None else attend,
            positions=positions,
            max_position=max_position,
            rows=rows,
        )
        return self.norm(hidden)

    def _embedding_weight(self) -> Tensor:
        return self.trunk.embedding if self.embedding is None else self.embedding

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits (..., V) of normalised hidden states (..., D), in the compute dtype."""
        return F.linear(hidden, self._head_weight().to(hidden.dtype))

    def logprobs(self, hidden: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probability (N,) in float32 of `ids` (N,), each predicted by its row of `hidden` (N, D)."""
        weight = self._head_weight()
        if weight.requires_grad:
            return token_logprobs(F.linear(hidden, weight.to(hidden.dtype)) / temperature, ids)
        return head_logprobs(hidden, weight.to(hidden.dtype), ids, temperature)

    def choice_logprobs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Log-probability (N, C) in float32 of the same C `tokens` after each row of `hidden` (N, D).

        Their logits are computed in float32: in bf16, neighbouring logits of this size are 1/8 apart, and so would be
        the preferences read from them. The normaliser, common to all of them, is not worth that.
        """
        chosen = hidden.float() @ self._head_weight()[tokens].float().T
        return chosen - torch.logsumexp(self.logits(hidden).float(), dim=-1, keepdim=True)

    def _head_weight(self) -> Tensor:
        own = self.head if self.head is not None else self.embedding
        return self.trunk.head if own is None else own

    def frozen_copy(self) -> Top:
        """An independent frozen copy in the compute dtype (a reference policy)."""
        twin = Top(self.trunk, self.trunk.dtype)
        twin.load_state_dict(self.state_dict())
        drop_idle(twin)
        return twin.requires_grad_(False).eval()


class ScalarHead(nn.Module):
    """One number per position: the value head and the reward model's score (no bias, fp32)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden_size))

    def init_normal(self, generator: torch.Generator) -> ScalarHead:
        """N(0, variance 1/(D+1)), for reward heads (Huang et al. 2024, arXiv:2403.17031); value heads stay at zero."""
        size = self.weight.shape[1]
        with torch.no_grad():
            self.weight.copy_(torch.randn(1, size, generator=generator) / (size + 1) ** 0.5)
        return self

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (...), in fp32."""
        return F.linear(hidden.float(), self.weight.float()).squeeze(-1)
