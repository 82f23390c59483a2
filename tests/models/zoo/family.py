"""One type of model with what its tests share: the whole model, what it computes, and trunks made of it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlaif.models.assemble import make_trunk
from rlaif.models.split import Top, Trunk
from zoo.configs import VARIANTS, VOCABULARY
from zoo.models import build

TEXTS, LENGTH = 2, 24


@dataclass(frozen=True)
class Family:
    """A type of model by transformers' name, or a variant of one."""

    name: str

    @cached_property
    def whole(self) -> PreTrainedModel:
        """The model itself, which no test changes, with transformers' own eager attention."""
        kind, overrides = VARIANTS.get(self.name, (self.name, {}))
        return build(kind, **overrides)

    def copy(self) -> PreTrainedModel:
        """Another model like it, for a test to change."""
        return deepcopy(self.whole)

    @cached_property
    def ids(self) -> Tensor:
        """Texts (2, 24) of any tokens but the special ones."""
        return torch.randint(3, VOCABULARY, (TEXTS, LENGTH), generator=torch.Generator().manual_seed(2))

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """What the model's own forward says: (B, T, V)."""
        return self.whole(input_ids=ids, use_cache=False).logits

    @cached_property
    def want(self) -> Tensor:
        """The logits (2, 24, V) of `ids`."""
        return self.logits(self.ids)

    @cached_property
    def spread(self) -> float:
        """The logits' standard deviation, but at least 1: what differences are measured in."""
        return max(1.0, float(self.want.std()))

    @cache  # noqa: B019 - families live as long as the tests
    def trunk(self, trainable: str = "top:2", dtype: torch.dtype = torch.float32) -> Trunk:
        """A trunk of the model; what holds for its type is examined once."""
        return make_trunk(self.copy(), trainable, dtype, 4.0, verdicts=_verdicts(), identity=self.name)

    @cache  # noqa: B019
    def base(self, trainable: str = "top:2") -> Top:
        """The base model's top, which no test changes."""
        return self.trunk(trainable).new_top()


@cache
def _verdicts() -> Path:
    return Path(mkdtemp(prefix="verdicts-"))


@cache
def family(name: str) -> Family:
    """The one instance of a type that all tests of a process share."""
    return Family(name)
