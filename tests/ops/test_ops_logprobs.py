"""Token log-probabilities and entropies against log_softmax and sums written out."""

import math

import pytest
import torch

from rlaif.ops import head_logprobs, token_entropy, token_logprobs
from rlaif.ops import logprobs as module


def case(seed: int = 0, vocabulary: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 4, vocabulary, generator=generator, dtype=torch.float64) * 5
    return logits, torch.randint(vocabulary, (3, 4), generator=generator)


def test_hand_worked() -> None:
    # logits (0, ln 3): probabilities 1/4 and 3/4; entropy = ln 4 - (3/4) ln 3
    logits = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64)
    assert token_logprobs(logits, torch.tensor([0])).item() == pytest.approx(math.log(0.25), abs=1e-12)
    assert token_logprobs(logits, torch.tensor([1])).item() == pytest.approx(math.log(0.75), abs=1e-12)
    assert token_entropy(logits).item() == pytest.approx(math.log(4) - 0.75 * math.log(3), abs=1e-12)


@pytest.mark.parametrize("chunk", [1, 5, 1024])
def test_against_loops(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_ROWS", chunk)
    logits, ids = case()
    logp, entropy = token_logprobs(logits, ids), token_entropy(logits)
    assert logp.shape == entropy.shape == (3, 4)
    for b in range(3):
        for t in range(4):
            row = logits[b, t].tolist()
            total = sum(math.exp(v) for v in row)
            p = [math.exp(v) / total for v in row]
            assert logp[b, t].item() == pytest.approx(math.log(p[ids[b, t]]), abs=1e-9)
            assert entropy[b, t].item() == pytest.approx(-sum(q * math.log(q) for q in p), abs=1e-9)


def test_gradient_is_one_hot_minus_softmax() -> None:
    logits, ids = case(1)
    logits.requires_grad_()
    token_logprobs(logits, ids).sum().backward()
    expected = torch.nn.functional.one_hot(ids, 11).double() - logits.detach().softmax(-1)
    assert torch.allclose(logits.grad, expected, atol=1e-12, rtol=0)


def test_low_precision_logits_are_computed_in_float32() -> None:
    logits, ids = case(2, vocabulary=5000)
    low = logits.bfloat16()
    result = token_logprobs(low, ids)
    assert result.dtype == token_entropy(low).dtype == torch.float32
    exact = token_logprobs(low.double(), ids)
    assert torch.allclose(result.double(), exact, atol=1e-5, rtol=0)
    # mutation: the same formula in bfloat16 misses this tolerance
    naive = low.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    assert not torch.allclose(naive.double(), exact, atol=1e-3, rtol=0)


def test_forbidden_tokens_leave_entropy_and_gradient_finite() -> None:
    # two allowed tokens with equal logits and one forbidden: entropy ln 2, gradient 0 by symmetry
    logits = torch.tensor([[1.0, 1.0, -math.inf]], dtype=torch.float64, requires_grad=True)
    entropy = token_entropy(logits)
    assert entropy.item() == pytest.approx(math.log(2), abs=1e-12)
    entropy.sum().backward()
    assert torch.allclose(logits.grad, torch.zeros(1, 3, dtype=torch.float64), atol=1e-12, rtol=0)


def test_entropy_gradient_equals_the_numerical_one() -> None:
    logits = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(token_entropy, (logits.requires_grad_(),))


def test_shapes_must_fit() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        token_logprobs(torch.zeros(2, 3, 5), torch.zeros(2, 2, dtype=torch.long))


def test_gradient_of_token_logprobs_against_autograd_and_differences():
    """gradcheck in float64, and autograd's composition on wide rows of several chunks."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(3, 2, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[0, 4], [2, 2], [1, 3]])
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x, ids), (logits,))
    wide = torch.randn(2500, 11, generator=generator, requires_grad=True)
    chosen = torch.randint(0, 11, (2500,), generator=generator)
    weight = torch.randn(2500, generator=generator)
    (own,) = torch.autograd.grad((token_logprobs(wide, chosen) * weight).sum(), wide)
    plain = torch.log_softmax(wide, -1).gather(-1, chosen[:, None]).squeeze(-1)
    (expected,) = torch.autograd.grad((plain * weight).sum(), wide)
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-6)


def head_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(13, 5, generator=generator, dtype=torch.float64)
    return hidden, weight, torch.randint(13, (7,), generator=generator)


@pytest.mark.parametrize("chunk", [1, 3, 128])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_head_logprobs_and_their_gradient_against_autograd(
    chunk: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_HEAD_ROWS", chunk)
    hidden, weight, ids = head_case()
    hidden.requires_grad_()
    scale = torch.linspace(-1.0, 2.0, 7, dtype=torch.float64)
    own = head_logprobs(hidden, weight, ids, temperature)
    (gradient,) = torch.autograd.grad((own * scale).sum(), hidden)
    plain = (hidden @ weight.T / temperature).log_softmax(-1)[torch.arange(7), ids]
    (expected,) = torch.autograd.grad((plain * scale).sum(), hidden)
    assert torch.allclose(own, plain, atol=1e-12, rtol=0)
    assert torch.allclose(gradient, expected, atol=1e-12, rtol=0)
    # mutation: a gradient without the temperature is far off
    assert temperature == 1.0 or not torch.allclose(gradient * temperature, expected, atol=1e-3, rtol=0)
    assert torch.autograd.gradcheck(lambda x: head_logprobs(x, weight, ids, temperature), (hidden,))


def test_head_logprobs_are_the_same_bits_with_and_without_gradient() -> None:
    # PPO's first ratio is exactly one only if they are.
    hidden, weight, ids = (x.bfloat16() if x.is_floating_point() else x for x in head_case())
    with torch.no_grad():
        without = head_logprobs(hidden, weight, ids)
    result = head_logprobs(hidden.requires_grad_(), weight, ids)
    assert result.dtype == torch.float32 and torch.equal(result, without)


def test_head_logprobs_refuse_what_does_not_fit() -> None:
    hidden, weight, ids = head_case()
    assert head_logprobs(hidden[:0], weight, ids[:0]).shape == (0,)
    assert torch.equal(head_logprobs(hidden, weight, ids), head_logprobs(hidden, weight, ids, 1.0))
    for wrong in ((hidden, weight, ids[:3]), (hidden, weight[:, :3], ids), (hidden[None], weight, ids[None])):
        with pytest.raises(ValueError, match="do not fit"):
            head_logprobs(*wrong)
    with pytest.raises(ValueError, match="no gradient to the head"):
        head_logprobs(hidden, weight.requires_grad_(), ids)
