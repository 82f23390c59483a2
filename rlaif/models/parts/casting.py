"""Weights in the compute dtype for one forward pass, while their fp32 masters are what is trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Casting:
    """Twins of modules that share everything but their parameters, which are cast anew for each pass.

    Gradients reach the masters through the cast.
    """

    def __init__(self, masters: Mapping[str, nn.Module], dtype: torch.dtype, head: str) -> None:
        """`masters` by path; the module at the path `head` is left as it is, since a pass does not run it."""
        self._dtype, self._head = dtype, head
        self._pairs: list[tuple[nn.Module, nn.Module]] = []
        self.twins = {path: self._twin(module, path) for path, module in masters.items()}

    def _twin(self, master: nn.Module, path: str) -> nn.Module:
        if path == self._head:
            return master
        if type(master) is nn.Embedding:
            return _CastEmbedding(master, self._dtype)
        twin = copy.copy(master)
        twin.__dict__ = dict(master.__dict__)
        twin.__dict__["_modules"] = {
            name: None if child is None else self._twin(child, f"{path}.{name}" if path else name)
            for name, child in master._modules.items()
        }
        twin.__dict__["_parameters"] = dict(master._parameters)
        if master._parameters:
            self._pairs.append((master, twin))
        return twin

    @contextmanager
    def filled(self) -> Iterator[None]:
        """The twins compute with the masters' current weights inside."""
        cast: dict[int, Tensor] = {}  # tied weights are cast once
        for master, twin in self._pairs:
            for name, weight in master._parameters.items():
                if weight is not None and weight.is_floating_point():
                    if id(weight) not in cast:
                        cast[id(weight)] = weight.to(self._dtype)
                    twin._parameters[name] = cast[id(weight)]  # type: ignore[assignment]
        try:
            yield
        finally:
            for master, twin in self._pairs:  # keeps no copy alive, and no graph
                twin._parameters.update(master._parameters)


class _CastEmbedding(nn.Module):
    """Looked up in fp32, then cast: a table is larger than what is read of it."""

    def __init__(self, master: nn.Embedding, dtype: torch.dtype) -> None:
        super().__init__()
        object.__setattr__(self, "_master", master)
        self._dtype = dtype

    _master: nn.Embedding

    @property
    def weight(self) -> Tensor:
        return self._master.weight

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self._master.weight).to(self._dtype)
