"""One frozen trunk, many trainable tops, of any causal language model of transformers.

With `trainable=top:k` the embedding, the lower L-k layers and the vocabulary head are frozen and shared by policy,
reference policy, value and reward model; each has its own top k layers and what runs behind them (the final norm). With
`full` the "trunk" is empty: its features are the token ids themselves, and a top owns the whole model. With `lora:r`
the trunk holds every weight and a top only low-rank adapters; features are the ids here too. So the code that uses this
file is the same for all: `features = trunk(ids)`, `hidden = top(features)`.

A top's parameters have the names that transformers gives them in the whole model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlaif.errors import UserError
from rlaif.models.attention import CAUSAL, Attend, causal_attention
from rlaif.models.lora import Adapted, Lora, adaptable
from rlaif.models.parts.casting import Casting
from rlaif.models.parts.decoder import Decoder, View
from rlaif.models.parts.head import ComputeHead, linear
from rlaif.models.parts.interface import Watch
from rlaif.models.parts.probe import Verdict
from rlaif.models.parts.rows import take
from rlaif.models.parts.shapes import CacheShapes
from rlaif.models.parts.view import with_modules
from rlaif.models.sizes import ModelSizes
from rlaif.ops import head_logprobs, token_logprobs

# Rows whose logits are recomputed together in the backward pass, where a model changes its logits.
HEAD_ROWS = 256


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

    Its weights are kept in the compute dtype, since they are never trained. With `lora` they are all the model's
    weights. What tops own is kept in fp32, as the weights that a new top starts with.
    """

    def __init__(
        self,
        lm: nn.Module,
        decoder: Decoder,
        verdict: Verdict,
        config: ModelSizes,
        top_layers: int,
        dtype: torch.dtype,
        lora: Lora | None,
    ) -> None:
        """`lm` in float32, its attention ours if the verdict says that patterns hold. The trunk takes its weights."""
        super().__init__()
        self.config, self.hf_config, self.dtype, self.lora = config, lm.config, dtype, lora
        self.decoder, self.verdict = decoder, verdict
        self.top_layers = top_layers
        self.full = top_layers == decoder.num_layers  # tops run every layer: features are the ids
        self.first_top = decoder.num_layers - top_layers
        self.lm = lm.requires_grad_(False).eval()
        self._cast_shared()
        self._view = None if self.full else View(decoder, lm, 0, self.first_top)

    def _cast_shared(self) -> None:
        """Cast what no top owns to the compute dtype; buffers (rotary frequencies) stay as they are."""
        owned = tuple(f"{path}." for path in self.owned_paths()) if self.lora is None else ()
        if "." in owned:
            return
        for name, weight in self.lm.named_parameters():
            if not name.startswith(owned) and weight.is_floating_point():
                weight.data = weight.data.to(self.dtype)

    def owned_paths(self) -> list[str]:
        """The paths of the modules that a top has copies of ("" for the whole model), or adapts."""
        if self.lora is not None:
            layers = self.lm.get_submodule(self.decoder.path.layers)
            return [
                f"{self.decoder.path.layers}.{name}"
                for name, part in layers.named_modules()
                if adaptable(part)
            ]
        if self.full:
            return [""]
        return [
            *self.decoder.layer_paths(self.first_top, self.decoder.num_layers),
            *self.decoder.after_paths(),
        ]

    @property
    def device(self) -> torch.device:
        """Where it runs, and where its tops are created."""
        return self._weight.device

    @property
    def _weight(self) -> Tensor:
        return self.lm.get_submodule(self.decoder.head).weight  # type: ignore[return-value]

    @property
    def packs(self) -> bool:
        """Whether several texts may share a row, and keys and values be ours. If not, each text is a row of its own."""
        return self.verdict.patterns

    @property
    def cache_shapes(self) -> CacheShapes:
        """Shapes of the keys and values of all layers; empty if it does not pack."""
        return self.verdict.shapes

    @torch.no_grad()
    def forward(
        self,
        ids: Tensor,
        attend: Attend = CAUSAL,
        positions: Tensor | None = None,
        max_position: int | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """Features of `ids` (B, T): hidden states (B, T, D) below the top; with `full` or `lora`, the ids."""
        if self._view is None:
            return ids
        return self._view(ids, attend, positions, max_position, watch=watch)

    def new_top(self) -> Top:
        """A new trainable top (fp32 masters) that computes the same as the base model."""
        top = Top(self)
        # One seed for all: roles, seeds and resumed runs start alike, as they do from a base model's weights.
        generator = torch.Generator().manual_seed(0)
        for _, layer in top.adapters():
            layer.draw(generator)
        return top


class _Branch(nn.Module):
    """A step of a path in a top: holds what lies below it."""


class Top(nn.Module):
    """What one role trains, in fp32: upper layers and final norm, all weights if `full`, adapters if `lora`."""

    trunk: Trunk
    _parts: dict[str, nn.Module]
    _casting: Casting | None
    _views: tuple[View, View | None]
    _running: nn.Module

    def __init__(
        self, trunk: Trunk, dtype: torch.dtype = torch.float32, parts: Mapping[str, nn.Module] | None = None
    ) -> None:
        """On the trunk's device, in `dtype`, with copies of the base model's parts; adapters have no effect yet.

        `parts`, by path, are used instead of copies of the base model's.
        """
        super().__init__()
        # The trunk is shared: it is kept out of this module's parameters and checkpoints.
        object.__setattr__(self, "trunk", trunk)
        made = dict(self._copies()) if parts is None else dict(parts)
        object.__setattr__(
            self, "_parts", {path: _cast(part, trunk.device, dtype) for path, part in made.items()}
        )
        for path, part in self._parts.items():
            self._register(path, part)
        # Dropout would make a policy differ from itself: tops compute in eval mode, also while they are trained.
        self.eval().requires_grad_(True)
        self._tied = _repeated(self)
        self._make_views(dtype)

    def _copies(self) -> Iterator[tuple[str, nn.Module]]:
        trunk = self.trunk
        for path in trunk.owned_paths():
            module = trunk.lm.get_submodule(path)
            yield path, deepcopy(module) if trunk.lora is None else Adapted(module, trunk.lora)

    def _register(self, path: str, part: nn.Module) -> None:
        if not path:  # the whole model: its children are the top's
            for name, child in part.named_children():
                self.add_module(name, child)
            return
        parent: nn.Module = self
        *above, last = path.split(".")
        for name in above:
            if name not in parent._modules:
                parent.add_module(name, _Branch())
            parent = parent.get_submodule(name)
        parent.add_module(last, part)

    def _make_views(self, dtype: torch.dtype) -> None:
        trunk = self.trunk
        # Adapters cast themselves, and the trunk is in the compute dtype already.
        casts = dtype != trunk.dtype and trunk.lora is None
        casting = Casting(self._parts, trunk.dtype, trunk.decoder.head) if casts else None
        running = self._with(self._parts if casting is None else casting.twins)
        ends = (trunk.first_top, trunk.decoder.num_layers)
        rows = trunk.verdict.rows
        views = (
            View(trunk.decoder, running, *ends),
            None if rows is None else View(trunk.decoder, running, *ends, rows),
        )
        for name, value in (("_casting", casting), ("_views", views), ("_running", running)):
            object.__setattr__(self, name, value)

    def _with(self, parts: Mapping[str, nn.Module]) -> nn.Module:
        """Trunk and these parts as one model."""
        return parts[""] if "" in parts else with_modules(self.trunk.lm, parts)

    def train(self, mode: bool = True) -> Top:
        """Always in eval mode: see `__init__`."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.trunk.device

    @property
    def layers(self) -> list[nn.Module]:
        """The layers that this top runs, with its own weights or adapters."""
        decoder = self.trunk.decoder
        whole = self._with(self._parts)
        return [
            whole.get_submodule(path)
            for path in decoder.layer_paths(self.trunk.first_top, decoder.num_layers)
        ]

    @property
    def norm(self) -> nn.Module:
        """What runs last before the head."""
        return self._with(self._parts).get_submodule(self.trunk.decoder.after_paths()[-1])

    @property
    def embedding(self) -> Tensor | None:
        """The token embeddings (V, D), if this top owns them (`full`)."""
        return self._parts[""].get_input_embeddings().weight if "" in self._parts else None  # type: ignore[operator]

    def adapters(self) -> list[tuple[str, Adapted]]:
        """Every adapted layer with its path in the whole model."""
        return [(path, part) for path, part in self._parts.items() if isinstance(part, Adapted)]

    def whole(self) -> nn.Module:
        """Trunk and top as one causal language model of transformers, with adapters merged; weights are shared."""
        return self._with({p: m.merged() if isinstance(m, Adapted) else m for p, m in self._parts.items()})

    @contextmanager
    def running(self) -> Iterator[nn.Module]:
        """Inside: trunk and top as they run, in the compute dtype, as a causal language model of transformers."""
        with nullcontext() if self._casting is None else self._casting.filled():
            yield with_modules(self._running, {self.trunk.decoder.head: ComputeHead(self._head)})

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """As of any module, with tied weights once."""
        state = super().state_dict(*args, **kwargs)
        start = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        for name in self._tied:
            state.pop(start + name, None)
        return state

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        for name, first in self._tied.items():
            if prefix + first in state_dict:
                state_dict.setdefault(prefix + name, state_dict[prefix + first])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(
        self,
        features: Tensor,
        attend: Attend | None = None,
        positions: Tensor | None = None,
        max_position: int | None = None,
        rows: Tensor | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """Normalised hidden states (B, T, D) over the trunk's features, or (B, R, D) only at `rows` (B, R).

        The default of `attend` is `causal_attention`.
        """
        attend = causal_attention(features.device) if attend is None else attend
        everywhere, at_rows = self._views
        with nullcontext() if self._casting is None else self._casting.filled():
            if rows is not None and at_rows is not None:
                return at_rows(features, attend, positions, max_position, rows)
            hidden = everywhere(features, attend, positions, max_position, watch=watch)
        return hidden if rows is None else take(hidden, rows[:, :, None])

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits (..., V) of normalised hidden states (..., D), in the compute dtype."""
        outputs = linear(hidden, self._head.weight, self._head.bias)
        after = self.trunk.decoder.after_head
        return outputs if after.identity else after(outputs)

    def logprobs(self, hidden: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probability (N,) in float32 of `ids` (N,), each predicted by its row of `hidden` (N, D)."""
        weight = self._head.weight
        usual = self.trunk.decoder.after_head.identity and self._head.bias is None
        if usual and not weight.requires_grad:
            return head_logprobs(hidden, weight.to(hidden.dtype), ids, temperature)
        if usual or not torch.is_grad_enabled():
            return self._token_logprobs(hidden, ids, temperature)
        parts = zip(hidden.split(HEAD_ROWS), ids.split(HEAD_ROWS), strict=True)
        done = [
            checkpoint(self._token_logprobs, part, chosen, temperature, use_reentrant=False)
            for part, chosen in parts
        ]
        return torch.cat(done) if done else hidden.new_zeros(0, dtype=torch.float32)

    def _token_logprobs(self, hidden: Tensor, ids: Tensor, temperature: float) -> Tensor:
        return token_logprobs(self.logits(hidden) / temperature, ids)

    def choice_logprobs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Log-probability (N, C) in float32 of the same C `tokens` after each row of `hidden` (N, D).

        Their logits are computed in float32: in bf16, neighbouring logits of this size are 1/8 apart, and so would be
        the preferences read from them. The normaliser, common to all of them, is not worth that.
        """
        head, after = self._head, self.trunk.decoder.after_head
        bias = None if head.bias is None else head.bias[tokens].float()
        chosen = F.linear(hidden.float(), head.weight[tokens].float(), bias)
        chosen = chosen if after.identity else after(chosen)
        return chosen - torch.logsumexp(self.logits(hidden).float(), dim=-1, keepdim=True)

    @property
    def _head(self) -> nn.Linear:
        owner = self._parts.get("", self.trunk.lm)
        return owner.get_submodule(self.trunk.decoder.head)  # type: ignore[return-value]

    def frozen_copy(self) -> Top:
        """An independent frozen copy in the compute dtype (a reference policy).

        Adapters that add nothing are left out: a role that equals the base model should cost no more than it.
        """
        parts = {path: _detached(part) for path, part in self._parts.items() if not _idle(part)}
        return Top(self.trunk, self.trunk.dtype, parts).requires_grad_(False)


def _cast(part: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Weights in `dtype`; buffers (rotary frequencies) keep theirs."""
    part.to(device)
    if hasattr(part, "tie_weights"):  # a whole model: on some devices each moved weight is a new one
        part.tie_weights()  # type: ignore[operator]
    for weight in part.parameters():
        if weight.is_floating_point():
            weight.data = weight.data.to(dtype)
    return part


def _idle(part: nn.Module) -> bool:
    return isinstance(part, Adapted) and not part.b.any()


def _detached(part: nn.Module) -> nn.Module:
    """A copy of what a top owns; an adapter's base stays shared."""
    if not isinstance(part, Adapted):
        return deepcopy(part)
    memo = {id(part.base): part.base}
    return deepcopy(part, memo)


def _repeated(module: nn.Module) -> dict[str, str]:
    """The names of tied weights after the first, each with the first."""
    first: dict[int, str] = {}
    again: dict[str, str] = {}
    for name, weight in module.named_parameters(remove_duplicate=False):
        if id(weight) in first:
            again[name] = first[id(weight)]
        else:
            first[id(weight)] = name
    return again


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
