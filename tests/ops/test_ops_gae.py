"""GAE against hand-worked numbers and the definition as a plain sum over counted tokens."""

import math

import pytest
import torch

from rlaif.ops import gae


def loop_oracle(rewards, values, mask, gamma, lam):  # type: ignore[no-untyped-def]
    """A_i = sum_j (gamma lam)^(j - i) delta_j over the row's counted tokens, holes removed."""
    advantages = [[0.0] * len(row) for row in rewards]
    for b, row in enumerate(mask):
        kept = [t for t, m in enumerate(row) if m]
        r, v = [rewards[b][t] for t in kept], [values[b][t] for t in kept] + [0.0]
        deltas = [r[i] + gamma * v[i + 1] - v[i] for i in range(len(kept))]
        for i, t in enumerate(kept):
            advantages[b][t] = sum((gamma * lam) ** (j - i) * deltas[j] for j in range(i, len(kept)))
    return advantages


def test_hand_worked() -> None:
    # gamma 0.5, lam 0.5; rewards 1, 2, values 4, 2; the third position is masked (value 9 must not leak)
    # delta_1 = 2 + 0.5 * 0 - 2 = 0;  A_1 = 0;             R_1 = 0 + 2 = 2
    # delta_0 = 1 + 0.5 * 2 - 4 = -2; A_0 = -2 + 0.25 * 0; R_0 = -2 + 4 = 2
    rewards = torch.tensor([[1.0, 2.0, 5.0]])
    values = torch.tensor([[4.0, 2.0, 9.0]])
    mask = torch.tensor([[True, True, False]])
    advantages, returns = gae(rewards, values, mask, gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[-2.0, 0.0, 0.0]]
    assert returns.tolist() == [[2.0, 2.0, 0.0]]
    # mutation: bootstrapping from the masked value gives 2 + 0.5 * 9 - 2 = 4.5 instead of 0
    leaked, _ = gae(rewards, values, torch.ones_like(mask), gamma=0.5, lam=0.5)
    assert leaked[0, 1].item() != 0.0


@pytest.mark.parametrize("seed", range(20))
def test_against_the_definition(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(4, 9, generator=g, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(4, 9, generator=g) < 0.6  # includes holes, leading gaps and empty rows
    gamma, lam = (torch.rand(2, generator=g, dtype=torch.float64)).tolist()
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    expected = torch.tensor(
        loop_oracle(rewards.tolist(), values.tolist(), mask.tolist(), gamma, lam), dtype=torch.float64
    )
    assert torch.allclose(advantages, expected, atol=1e-12, rtol=0)
    assert torch.allclose(returns, torch.where(mask, expected + values, 0.0), atol=1e-12, rtol=0)
    # mutation: one-step advantages (lam 0) do not pass as GAE
    wrong, _ = gae(rewards, values, mask, gamma=gamma, lam=0.0)
    assert not torch.allclose(wrong, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e9])
def test_garbage_under_the_mask_changes_nothing(garbage: float) -> None:
    g = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(3, 6, generator=g), torch.randn(3, 6, generator=g)
    mask = torch.arange(6).expand(3, 6) < torch.tensor([[6], [3], [1]])
    clean = gae(rewards, values, mask, gamma=1.0, lam=0.95)
    fill = torch.tensor(garbage)
    dirty = gae(torch.where(mask, rewards, fill), torch.where(mask, values, fill), mask, gamma=1.0, lam=0.95)
    assert torch.equal(clean[0], dirty[0]) and torch.equal(clean[1], dirty[1])


def test_lambda_one_gives_monte_carlo_returns() -> None:
    g = torch.Generator().manual_seed(1)
    rewards, values = (torch.randn(2, 5, generator=g, dtype=torch.float64) for _ in range(2))
    mask = torch.ones(2, 5, dtype=torch.bool)
    _, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    assert torch.allclose(returns, to_go, atol=1e-12, rtol=0)
