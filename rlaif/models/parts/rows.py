"""The last layer at chosen positions only: enough where few are read, as a reward model's score is.

A layer is handed the hidden states at those positions; its attention is handed those of all positions, so that keys
and values come from everywhere, and gives its output at the chosen ones. Everything around it (residuals, norms, the
MLP) then runs at these alone. This holds for any layer whose attention reads the layer's input, or one norm of it, and
ends in one projection. `RowsKind.find` looks for these parts; `decoder.py` checks the result by numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from rlaif.models.parts.view import with_modules

if TYPE_CHECKING:
    from rlaif.models.attention import Attend, Scoring


def take(x: Tensor, index: Tensor) -> Tensor:
    """Entries of `x` (..., T, D) at `index` (..., R, 1), broadcast, along the second to last dimension: (..., R, D)."""
    return x.gather(-2, index.expand(*x.shape[:-2], index.shape[-2], x.shape[-1]))


class RowsBox:
    """What the parts of a rows layer tell each other during one pass."""

    def __init__(self, rows: Tensor | None = None) -> None:
        self.rows = rows
        self.input: Tensor | None = None  # of the attention: (B, T, D)
        self.mixed: Tensor | None = None  # its result before the projection: (B, R, H * E)

    def attend(
        self, attend: Attend, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring
    ) -> Tensor:
        """Attend from the chosen positions; what is returned, (B, T, H, E), has the right shape and is not read."""
        from rlaif.models.parts.interface import rows_pattern

        chosen = take(query, self.rows[:, None, :, None])  # type: ignore[index]
        mixed = rows_pattern(attend)(layer, chosen, key, value, self.rows, scoring=scoring)
        self.mixed = mixed.transpose(1, 2).flatten(2)
        count, heads, length, _ = query.shape
        return value.new_empty(count, length, heads, value.shape[3])


@dataclass(frozen=True)
class RowsKind:
    """Paths within a layer: its attention, the norm before it (None if there is none), and its last projection."""

    attention: str
    norm: str | None
    projection: str

    @classmethod
    def find(cls, layer: nn.Module, attention: nn.Module, run: Any) -> RowsKind | None:
        """Watch `run()`, which runs the layer once; None if its parts are not where they would have to be."""
        names = {id(part): name for name, part in layer.named_modules()}
        if id(attention) not in names:
            return None
        seen = _Watch(layer, attention)
        with seen:
            run()
        path = names[id(attention)]
        norm = seen.norm(names)
        if seen.last is None or norm is False:
            return None
        return cls(path, norm, names[id(seen.last)])  # type: ignore[arg-type]

    def make(self, layer: nn.Module, box: RowsBox) -> nn.Module:
        """`layer`, sharing its weights, at the positions `box.rows`."""
        projection = _Project(layer.get_submodule(self.projection), box)
        inner = self.projection.removeprefix(f"{self.attention}.")
        attention = _Attention(with_modules(layer.get_submodule(self.attention), {inner: projection}), box)
        return _Layer(with_modules(layer, {self.attention: attention}), box, self.norm)


class _Watch:
    """Which module gave the attention its input, and which leaf ran last within it."""

    def __init__(self, layer: nn.Module, attention: nn.Module) -> None:
        self._layer, self._attention = layer, attention
        self._handles: list[Any] = []
        self._outputs: list[tuple[nn.Module, Any, Any]] = []
        self._entered: Any = None
        self._input: Any = None
        self.last: nn.Module | None = None

    def __enter__(self) -> _Watch:
        add = self._handles.append
        add(self._layer.register_forward_pre_hook(self._enter, with_kwargs=True))
        add(self._attention.register_forward_pre_hook(self._attend, with_kwargs=True))
        for child in self._layer.children():
            add(child.register_forward_hook(lambda m, args, out: self._outputs.append((m, args, out))))
        for part in self._attention.modules():
            if next(part.parameters(recurse=False), None) is not None and part is not self._attention:
                add(part.register_forward_hook(self._leaf))
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._entered = kwargs.get("hidden_states", args[0] if args else None)

    def _attend(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._input = kwargs.get("hidden_states", args[0] if args else None)

    def _leaf(self, module: nn.Module, args: Any, out: Any) -> None:
        self.last = module

    def norm(self, names: dict[int, str]) -> str | None | bool:
        """The path of the norm of the layer's input that the attention reads; None for none, False if unclear."""
        if self._input is self._entered:
            return None
        for module, args, out in self._outputs:
            if out is self._input and args and args[0] is self._entered:
                return names[id(module)]
        return False


class _Hidden(nn.Module):
    """A module of others' that is used but not registered."""

    def __init__(self, inner: nn.Module, box: RowsBox) -> None:
        super().__init__()
        object.__setattr__(self, "_inner", inner)
        object.__setattr__(self, "_rows_box", box)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_inner"), name)


class _Layer(_Hidden):
    def __init__(self, inner: nn.Module, box: RowsBox, norm: str | None) -> None:
        super().__init__(inner, box)
        object.__setattr__(self, "_norm", norm)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        box, inner = self._rows_box, self._inner
        box.input = hidden_states if self._norm is None else inner.get_submodule(self._norm)(hidden_states)
        return inner(take(hidden_states, box.rows[:, :, None]), *args, **kwargs)


class _Attention(_Hidden):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if "hidden_states" in kwargs:
            return self._inner(*args, **(kwargs | {"hidden_states": self._rows_box.input}))
        return self._inner(self._rows_box.input, *args[1:], **kwargs)


class _Project(_Hidden):
    def forward(self, _: Tensor) -> Tensor:
        return self._inner(self._rows_box.mixed)
