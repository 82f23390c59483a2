"""One frozen trunk, many trainable tops (DESIGN 9).

With `trainable=top:k` the embedding, the lower L-k layers and the vocabulary head are frozen and shared by
policy, reference, value and reward model; each has its own top k layers and final norm. With `full` the
"trunk" is empty: its features are the token ids themselves, and a top owns embedding and vocabulary head.
So the code above this file is the same for both: `features = trunk(ids)`, `hidden = top(features)`.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlaif.errors import UserError
from rlaif.models.attention import Attend, Causal, DenseCausal
from rlaif.models.decoder import Block, DecoderConfig, Norm, Rope, run_blocks
from rlaif.ops import head_logprobs, token_logprobs

CAUSAL = Causal()


def parse_trainable(spec: str, num_layers: int) -> int:
    """Number of trainable top layers: `full` gives all layers, `top:k` gives k."""
    if spec == "full":
        return num_layers
    match = re.fullmatch(r"top:(\d+)", spec)
    if not match:
        raise UserError(f"model.trainable={spec} is not known: write full or top:K (for instance top:4)")
    top = int(match[1])
    if not 1 <= top < num_layers:
        raise UserError(
            f"model.trainable={spec}: K must lie in 1..{num_layers - 1} for this model; for all layers write full"
        )
    return top


class Trunk(nn.Module):
    """The frozen part that every role shares: embedding, lower layers, vocabulary head.

    Weights are kept in the compute dtype, since they are never trained.
    """

    embedding: nn.Parameter
    head: nn.Parameter

    def __init__(
        self,
        config: DecoderConfig,
        hf_config: Any,
        state: dict[str, Tensor],
        top_layers: int,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.config, self.hf_config, self.dtype = config, hf_config, dtype
        self.top_layers = top_layers
        self.full = top_layers == config.num_layers
        self.first_top = config.num_layers - top_layers
        self.rope = Rope(hf_config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(self.first_top))
        self._initial = {k: v for k, v in state.items() if self._belongs_to_top(k)}
        if not self.full:
            embedding = state["model.embed_tokens.weight"].to(dtype)
            self.embedding = nn.Parameter(embedding, requires_grad=False)
            head = embedding if config.tied else state["lm_head.weight"].to(dtype)
            self.head = self.embedding if config.tied else nn.Parameter(head, requires_grad=False)
            lower = {
                k.removeprefix("model.layers."): v for k, v in state.items() if k.startswith("model.layers.")
            }
            own = {k: v for k, v in lower.items() if int(k.split(".")[0]) < self.first_top}
            self.blocks.load_state_dict(own)
            self.blocks.to(dtype)
        self.requires_grad_(False)
        self.eval()

    def _belongs_to_top(self, name: str) -> bool:
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
        """Features of `ids` (B, T): hidden states (B, T, D) under the top, or the ids themselves if `full`."""
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
        """A fresh trainable top with the base model's weights (fp32 masters)."""
        top = Top(self)
        top.load_hf(self._initial)
        return top


class Top(nn.Module):
    """The trainable upper layers and final norm of one role, in fp32; owns embedding and head if `full`."""

    trunk: Trunk
    embedding: nn.Parameter | None
    head: nn.Parameter | None

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        config = trunk.config
        # The trunk is shared: kept out of this module's parameters and checkpoints.
        object.__setattr__(self, "trunk", trunk)
        self.layers = nn.ModuleList(Block(config) for _ in range(trunk.top_layers))
        self.norm = Norm(config.hidden_size, config.norm_eps)
        self.embedding = (
            nn.Parameter(torch.empty(config.vocab_size, config.hidden_size)) if trunk.full else None
        )
        untied = trunk.full and not config.tied
        self.head = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size)) if untied else None

    def load_hf(self, state: dict[str, Tensor]) -> None:
        """Take this top's weights out of a state dict with transformers' names."""
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
        for name, value in self.layers.state_dict().items():
            index, rest = name.split(".", 1)
            state[f"model.layers.{int(index) + trunk.first_top}.{rest}"] = value
        state["model.norm.weight"] = self.norm.weight.detach()
        state["model.embed_tokens.weight"] = (
            trunk.embedding if self.embedding is None else self.embedding
        ).detach()
        if not trunk.config.tied:
            state["lm_head.weight"] = (trunk.head if self.head is None else self.head).detach()
        return state

    def forward(
        self,
        features: Tensor,
        attend: Attend | None = None,
        positions: Tensor | None = None,
        max_position: int | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Normalised hidden states (B, T, D) over the trunk's features; (B, R, D) at `rows` (B, R) alone.

        Without `attend` attention is causal by matrix products (see `DenseCausal`).
        """
        trunk = self.trunk
        hidden = features if self.embedding is None else F.embedding(features, self.embedding).to(trunk.dtype)
        hidden = run_blocks(
            self.layers,  # type: ignore[arg-type]
            hidden,
            trunk.rope,
            first_layer=trunk.first_top,
            attend=DenseCausal() if attend is None else attend,
            positions=positions,
            max_position=max_position,
            rows=rows,
        )
        return self.norm(hidden)

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

        Their own logits are computed in float32: in bf16, neighbouring logits of this size lie 1/8 apart, and
        so would the preferences read from them. What normalises all of them alike is not worth that.
        """
        chosen = hidden.float() @ self._head_weight()[tokens].float().T
        return chosen - torch.logsumexp(self.logits(hidden).float(), dim=-1, keepdim=True)

    def _head_weight(self) -> Tensor:
        own = self.head if self.head is not None else self.embedding
        return self.trunk.head if own is None else own

    def frozen_copy(self) -> Top:
        """An independent copy that never moves, kept in the compute dtype (a reference policy)."""
        twin = Top(self.trunk)
        twin.load_state_dict(self.state_dict())
        twin.to(self.norm.weight.device, self.trunk.dtype)
        return twin.requires_grad_(False).eval()


class ScalarHead(nn.Module):
    """One number for each position: the value head and the reward model's score (no bias, fp32)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden_size))

    def init_normal(self, generator: torch.Generator) -> ScalarHead:
        """N(0, 1/(D+1)) as for reward heads (paper.md 7, detail 11); value heads stay at zero."""
        size = self.weight.shape[1]
        with torch.no_grad():
            self.weight.copy_(torch.randn(1, size, generator=generator) / (size + 1) ** 0.5)
        return self

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (...), in fp32."""
        return F.linear(hidden.float(), self.weight.float()).squeeze(-1)
