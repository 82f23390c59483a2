"""How our attention patterns get into transformers' layers: through its attention interface.

transformers passes queries, keys and values with what the architecture asks for (scale, window, soft cap, sinks) to a
function that is registered by name. It makes no masks for a name that its mask interface does not know. Ours reads the
pattern from a context variable, since not every architecture hands keywords on to its attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rlaif.models.attention import Attend, AttendRows, Scoring
from rlaif.models.parts.rows import RowsBox

NAME = "rlaif"
_UNSET = object()

Watch = Callable[[nn.Module, Tensor, Tensor, Tensor, Scoring], None]
"""Sees every call of attention: module, query, key, value, scoring."""


@dataclass(frozen=True)
class Pass:
    """One run over some layers: its pattern, and an exclusive bound on its positions.

    With `rows`, the layer `rows_layer` attends from these positions only, and gives the result to `rows.mixed`.
    """

    attend: Attend
    max_position: int
    rows: RowsBox | None = None
    rows_layer: int = -1
    watch: Watch | None = None


_CURRENT: ContextVar[Pass] = ContextVar("attention pass")


@contextmanager
def using(current: Pass) -> Iterator[None]:
    """Every attention inside runs as `current` says."""
    token = _CURRENT.set(current)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: Any = _UNSET,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (B, H, T, E) and twice (B, K, T, E) -> (B, T, H, E)."""
    current = _CURRENT.get()
    # A layer that passes None has no window, whatever its configuration says for others.
    window = getattr(module, "sliding_window", None) if sliding_window is _UNSET else sliding_window
    if window is not None and window >= current.max_position:
        window = None
    scoring = Scoring(scaling, window, softcap, s_aux)
    layer: int = module.layer_idx  # type: ignore[assignment]
    if current.watch is not None:
        current.watch(module, query, key, value, scoring)
    if current.rows is not None and layer == current.rows_layer:
        return current.rows.attend(current.attend, layer, query, key, value, scoring), None
    return current.attend(layer, query, key, value, scoring=scoring).transpose(1, 2).contiguous(), None


def register() -> None:
    """Make `attn_implementation="rlaif"` known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention)


def set_implementation(lm: nn.Module, name: str) -> str:
    """Choose the attention of a whole model by name; returns the name that it had."""
    register()
    configs = {id(c): c for m in lm.modules() if (c := getattr(m, "config", None)) is not None}
    text = lm.config.get_text_config()  # type: ignore[union-attr, operator]
    before = text._attn_implementation
    for config in (*configs.values(), text):
        config._attn_implementation = name
    return str(before)


def rows_pattern(attend: Attend) -> AttendRows:
    """`attend` as a pattern that can attend from chosen positions. Raises TypeError if it cannot."""
    if not isinstance(attend, AttendRows):
        raise TypeError(f"{type(attend).__name__} gives no outputs at chosen rows: use an AttendRows")
    return attend
