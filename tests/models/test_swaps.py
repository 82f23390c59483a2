"""The gate in place is the module that it replaces, in value and gradient.

The norm's tests are in `test_norm.py`; those of the last layer at chosen rows, for every type, in `test_families.py`.
"""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from transformers import GemmaConfig, LlamaConfig
from transformers.models.gemma.modeling_gemma import GemmaMLP, GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP

from rlaif.models.parts.swaps import kind_of, swap_modules

SIZE, INNER, TEXTS, LENGTH = 32, 48, 3, 7


def _gate(bias: bool = False) -> tuple[nn.Module, nn.Module]:
    """A module of transformers, and the same one swapped."""
    torch.manual_seed(0)
    own = LlamaMLP(LlamaConfig(hidden_size=SIZE, intermediate_size=INNER, mlp_bias=bias))
    other = deepcopy(own)
    assert swap_modules(other) == 1 and kind_of(other) == "gate" and kind_of(own) is None
    return own, other


def _inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    return (2 * torch.randn(TEXTS, LENGTH, SIZE, generator=torch.Generator().manual_seed(1))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_the_gate_in_place_is_the_module(dtype, bias) -> None:
    own, other = (part.to(dtype) for part in _gate(bias))
    hidden = _inputs(dtype)
    before = hidden.clone()
    with torch.no_grad():
        expected, found = own(hidden), other(hidden)
    assert torch.equal(found, expected), "the same operations in the same order"
    assert torch.equal(hidden, before)
    assert torch.equal(other(hidden), found), (
        "with gradients too: PPO's first ratio is 1 only if both round alike"
    )


def test_the_gates_gradients_are_the_modules() -> None:
    found = []
    for part in _gate():
        hidden = _inputs().requires_grad_()
        part(hidden).pow(2).sum().backward()
        found.append([hidden.grad, *(weight.grad for weight in part.parameters())])
    for expected, got in zip(*found, strict=True):
        assert got.abs().max() > 1e-4
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_only_what_computes_the_same_is_swapped() -> None:
    config = GemmaConfig(hidden_size=SIZE, intermediate_size=INNER, hidden_activation="gelu_pytorch_tanh")
    for other in (GemmaMLP(config), GemmaRMSNorm(SIZE), nn.LayerNorm(SIZE)):
        assert swap_modules(other) == 0 and kind_of(other) is None, type(other).__name__
