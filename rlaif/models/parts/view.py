"""Views of a model: the same modules, with some replaced, run by the model's own forward.

Layers that a view does not run are stand-ins in the model's own list of layers, so that masks, rotary positions by
layer type, per-layer inputs and whatever else an architecture computes around its layers stay transformers' own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Box:
    """What a view's stand-ins hand in (`features`) and take out (`tapped`)."""

    def __init__(self) -> None:
        self.features: Tensor | None = None
        self.tapped: Tensor | None = None


class Skip(nn.Module):
    """Stands for a layer that its view does not run, and answers for its attributes (such as a layer type)."""

    def __init__(self, layer: nn.Module, box: Box, *, put: bool, tap: bool, as_tuple: bool) -> None:
        super().__init__()
        for name, value in (("_layer", layer), ("_box", box), ("_how", (put, tap, as_tuple))):
            object.__setattr__(self, name, value)  # kept out of modules and parameters

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        put, tap, as_tuple = self._how
        if tap:
            self._box.tapped = hidden_states
        out = self._box.features if put else hidden_states
        return (out,) if as_tuple else out

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_layer"), name)


def shallow(module: nn.Module) -> nn.Module:
    """A second handle on the same module: children may be replaced in it; parameters and buffers are shared."""
    twin = copy.copy(module)
    twin.__dict__ = dict(module.__dict__)
    twin.__dict__["_modules"] = dict(module._modules)
    twin.__dict__["_parameters"], twin.__dict__["_buffers"] = module._parameters, module._buffers
    return twin


def with_modules(root: nn.Module, new: Mapping[str, nn.Module]) -> nn.Module:
    """A second handle on `root` with the submodules at the given paths replaced, all else shared."""
    root = shallow(root)
    copied: set[str] = set()
    for path, module in new.items():
        *above, last = path.split(".")
        parent, here = root, ""
        for part in above:
            here = f"{here}.{part}" if here else part
            if here not in copied:
                parent._modules[part] = shallow(parent.get_submodule(part))
                copied.add(here)
            parent = parent.get_submodule(part)
        parent._modules[last] = module
    return root
