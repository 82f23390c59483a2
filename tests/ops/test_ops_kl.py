"""KL estimators and shaped rewards."""

import math

import pytest
import torch

from rlaif.ops import kl_estimate, kl_shaped_rewards, last_index


def test_estimators_by_hand() -> None:
    # d = ln 0.5 - ln 0.25 = ln 2; k1 = ln 2; k2 = (ln 2)^2 / 2; k3 = 1/2 - 1 + ln 2
    logp, ref = torch.tensor([math.log(0.5)]).double(), torch.tensor([math.log(0.25)]).double()
    expected = {"k1": math.log(2), "k2": math.log(2) ** 2 / 2, "k3": math.log(2) - 0.5}
    for kind, value in expected.items():
        assert kl_estimate(logp, ref, kind).item() == pytest.approx(value, abs=1e-7)
    # mutation: the swapped ratio changes k1's sign and k3's value
    assert kl_estimate(ref, logp, "k1").item() == pytest.approx(-math.log(2), abs=1e-7)
    assert kl_estimate(ref, logp, "k3").item() == pytest.approx(1 - math.log(2), abs=1e-7)


def test_k1_and_k3_are_unbiased_in_expectation() -> None:
    g = torch.Generator().manual_seed(0)
    p, q = (torch.randn(6, generator=g, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    exact = (p.exp() * (p - q)).sum().item()
    for kind in ("k1", "k3"):
        assert (p.exp() * kl_estimate(p, q, kind)).sum().item() == pytest.approx(exact, abs=1e-12)
    # k2 is biased, so it fails the same check
    assert abs((p.exp() * kl_estimate(p, q, "k2")).sum().item() - exact) > 1e-3
    assert bool((kl_estimate(p, q, "k3") >= 0).all())


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="k1, k2 or k3"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")  # type: ignore[arg-type]


def test_shaped_rewards_by_hand() -> None:
    # beta 0.1; log ratios 1, 2 | 3 (masked 9 is dropped); score 5 at the second row's position 0
    logp = torch.tensor([[1.0, 2.0], [3.0, 9.0]])
    mask = torch.tensor([[True, True], [True, False]])
    rewards = kl_shaped_rewards(torch.tensor([4.0, 5.0]), logp, torch.zeros(2, 2), mask, beta=0.1)
    assert torch.allclose(rewards, torch.tensor([[-0.1, 3.8], [4.7, 0.0]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", range(10))
def test_shaped_rewards_against_a_loop(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logp, ref = (torch.randn(4, 6, generator=g, dtype=torch.float64) for _ in range(2))
    scores = torch.randn(4, generator=g, dtype=torch.float64)
    mask = torch.rand(4, 6, generator=g) < 0.5
    mask[torch.arange(4), torch.randint(6, (4,), generator=g)] = True
    dirty = torch.where(mask, logp, torch.tensor(math.nan, dtype=logp.dtype))
    rewards = kl_shaped_rewards(scores, dirty, ref, mask, beta=0.3)
    for b in range(4):
        last = max(t for t in range(6) if mask[b, t])
        for t in range(6):
            want = -0.3 * (logp[b, t] - ref[b, t]).item() if mask[b, t] else 0.0
            want += scores[b].item() if t == last else 0.0
            assert rewards[b, t].item() == pytest.approx(want, abs=1e-12)
    assert [max(t for t in range(6) if mask[b, t]) for b in range(4)] == last_index(mask).tolist()
