"""The fast normalisation against torch's own and against finite differences."""

import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from rlaif.models.parts.swaps import RMSNorm, kind_of, swap_modules


def case(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 8, generator=generator).to(dtype), torch.rand(8, generator=generator).to(dtype)


def test_values_and_gradients_against_torch_and_differences():
    hidden, weight = (x.requires_grad_() for x in case(torch.float64))
    own, plain = RMSNorm.apply(hidden, weight, 1e-3), F.rms_norm(hidden, (8,), weight, 1e-3)
    assert torch.allclose(own, plain, atol=1e-12, rtol=0)
    assert not torch.allclose(RMSNorm.apply(hidden, weight, 1e-1), plain, atol=1e-3, rtol=0)
    assert torch.autograd.gradcheck(lambda x, w: RMSNorm.apply(x, w, 1e-3), (hidden, weight))


def test_bfloat16_rounds_as_transformers_does_with_and_without_gradient():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(*shape, generator=generator).bfloat16() for shape in ((400, 64), (64,)))
    norm = LlamaRMSNorm(64, 1e-5)
    swap_modules(norm)
    assert kind_of(norm) == "norm"
    norm.weight.data = weight
    wide = hidden.float()
    unit = wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    with torch.no_grad():
        without = norm(hidden)
    assert torch.equal(norm(hidden), without)
    # Sums in another order move the last bit of float32, and so very few roundings to bf16.
    assert (without == weight * unit.bfloat16()).float().mean() > 0.999
    # mutation: rounded once, after the weight, about a third differs
    assert (without == (weight.float() * unit).bfloat16()).float().mean() < 0.9


def test_the_input_is_left_as_it_was():
    for dtype in (torch.float32, torch.bfloat16):
        hidden, weight = case(dtype)
        before = hidden.clone()
        with torch.no_grad():
            RMSNorm.apply(hidden, weight, 1e-5)
        assert torch.equal(hidden, before)
