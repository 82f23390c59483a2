"""KL estimators and shaped rewards."""

import math

import pytest
import torch

from rlaif.ops import adapted_beta, kl_estimate, kl_loss, kl_shaped_rewards, last_index


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


def near_policies(step: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of two policies over eight tokens whose logits are `step` apart."""
    g = torch.Generator().manual_seed(1)
    logits, change = (torch.randn(8, generator=g, dtype=torch.float64) for _ in range(2))
    return (logits + step * change).log_softmax(-1), logits.log_softmax(-1)


@pytest.mark.parametrize("step", [0.02, 0.1, 0.5])
def test_variances_are_ordered(step: float) -> None:
    """By enumeration: near the reference, k3 and k2 vary far less than k1, and k2's bias is small."""
    p, q = near_policies(step)
    weight = p.exp()
    exact = (weight * (p - q)).sum()
    moments = {}
    for kind in ("k1", "k2", "k3"):
        each = kl_estimate(p, q, kind)
        mean = (weight * each).sum()
        moments[kind] = (mean.item(), (weight * (each - mean) ** 2).sum().item())
    assert moments["k3"][1] < 0.5 * moments["k1"][1] and moments["k2"][1] < 0.5 * moments["k1"][1]
    assert moments["k3"][0] == pytest.approx(exact.item(), abs=1e-12)
    assert 1e-9 < abs(moments["k2"][0] - exact.item()) < 0.3 * exact.item()
    # k1's variance is about twice the KL: for one sample its standard deviation is far above what it estimates
    assert moments["k1"][1] == pytest.approx(2 * exact.item(), rel=0.5)


def test_gradients_of_the_estimators_as_losses() -> None:
    """By enumeration, under samples from the policy: k1 gives 0, k2 the KL's gradient, k3 the reverse KL's."""
    start, q = near_policies(0.5)

    def gradient(function) -> torch.Tensor:  # type: ignore[no-untyped-def]
        logits = start.clone().requires_grad_()
        function(logits.log_softmax(-1)).backward()
        return logits.grad

    exact = gradient(lambda p: (p.exp() * (p - q)).sum())
    reverse = gradient(lambda p: (q.exp() * (q - p)).sum())
    as_loss = {
        k: gradient(lambda p, k=k: (start.exp() * kl_estimate(p, q, k)).sum()) for k in ("k1", "k2", "k3")
    }
    assert torch.allclose(as_loss["k1"], torch.zeros(8, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(as_loss["k2"], exact, atol=1e-12)
    assert torch.allclose(as_loss["k3"], reverse, atol=1e-12)
    assert (exact - reverse).abs().max() > 1e-3, "the two must differ"
    # k1 in the reward: E[k1 grad log p] is the KL's gradient again
    reward = gradient(lambda p: (start.exp() * (start - q) * p).sum())
    assert torch.allclose(reward, exact, atol=1e-12)


@pytest.mark.parametrize("mean", ["token", "sequence"])
@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_loss_against_a_loop(mean, kind) -> None:  # type: ignore[no-untyped-def]
    g = torch.Generator().manual_seed(3)
    logp, ref = (torch.randn(4, 6, generator=g, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(4, 6, generator=g) < 0.6
    mask[3] = False
    mask[0] = torch.arange(6) < 5
    formula = {"k1": lambda d: d, "k2": lambda d: d * d / 2, "k3": lambda d: math.exp(-d) - 1 + d}[kind]
    rows = [[formula((logp[b, t] - ref[b, t]).item()) for t in range(6) if mask[b, t]] for b in range(3)]
    token = sum(map(sum, rows)) / sum(map(len, rows))
    sequence = sum(sum(row) / len(row) for row in rows) / 3
    wanted, other = (token, sequence) if mean == "token" else (sequence, token)
    loss = kl_loss(logp, ref, mask, kind=kind, mean=mean).item()
    assert loss == pytest.approx(wanted, abs=1e-12) and loss != pytest.approx(other, abs=1e-4)


def test_adapted_beta_by_hand() -> None:
    knobs = {"target": 6.0, "horizon": 10_000, "samples": 500}
    # 9 nats: error 0.5, clipped to 0.2: 0.15 * (1 + 0.2 * 0.05) = 0.1515; 3 nats: 0.15 * 0.99
    assert adapted_beta(0.15, 9.0, **knobs) == pytest.approx(0.1515, abs=1e-12)
    assert adapted_beta(0.15, 3.0, **knobs) == pytest.approx(0.1485, abs=1e-12)
    # 6.6 nats: error 0.1, not clipped
    assert adapted_beta(0.15, 6.6, **knobs) == pytest.approx(0.15 * 1.005, abs=1e-12)
    assert adapted_beta(0.15, 6.0, **knobs) == 0.15
    # a negative estimate pulls no harder than the clip
    assert adapted_beta(0.15, -50.0, **knobs) == pytest.approx(0.1485, abs=1e-12)
    # mutations: unclipped, or with the opposite sign
    assert adapted_beta(0.15, 9.0, **knobs) not in (0.15 * (1 + 0.5 * 0.05), 0.1485)


def test_the_controller_settles_at_its_target() -> None:
    """If KL falls with beta, the weight settles where KL meets the target."""
    beta = 0.01
    for _ in range(400):
        beta = adapted_beta(beta, 1.0 / beta, target=5.0, horizon=1000, samples=200)
    assert 1.0 / beta == pytest.approx(5.0, rel=1e-3)


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="k1, k2 or k3"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")  # type: ignore[arg-type]


def test_shaped_rewards_by_hand() -> None:
    # beta 0.1; log ratios 1, 2 | 3 (masked 9 is dropped); score 5 at the second row's position 0
    logp = torch.tensor([[1.0, 2.0], [3.0, 9.0]])
    mask = torch.tensor([[True, True], [True, False]])
    rewards = kl_shaped_rewards(torch.tensor([4.0, 5.0]), logp, torch.zeros(2, 2), mask, beta=0.1, kind="k1")
    assert torch.allclose(rewards, torch.tensor([[-0.1, 3.8], [4.7, 0.0]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", range(10))
def test_shaped_rewards_against_a_loop(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logp, ref = (torch.randn(4, 6, generator=g, dtype=torch.float64) for _ in range(2))
    scores = torch.randn(4, generator=g, dtype=torch.float64)
    mask = torch.rand(4, 6, generator=g) < 0.5
    mask[torch.arange(4), torch.randint(6, (4,), generator=g)] = True
    dirty = torch.where(mask, logp, torch.tensor(math.nan, dtype=logp.dtype))
    rewards = kl_shaped_rewards(scores, dirty, ref, mask, beta=0.3, kind="k1")
    for b in range(4):
        last = max(t for t in range(6) if mask[b, t])
        for t in range(6):
            want = -0.3 * (logp[b, t] - ref[b, t]).item() if mask[b, t] else 0.0
            want += scores[b].item() if t == last else 0.0
            assert rewards[b, t].item() == pytest.approx(want, abs=1e-12)
    assert [max(t for t in range(6) if mask[b, t]) for b in range(4)] == last_index(mask).tolist()


def test_as_a_penalty_in_the_reward_only_k1_has_the_gradient_of_the_kl() -> None:
    """By enumeration of all responses of two tokens out of three: REINFORCE with the return to go of each estimator."""
    size, g = 3, torch.Generator().manual_seed(2)
    reference, change = (torch.randn(size + size**2, generator=g, dtype=torch.float64) for _ in range(2))

    def logprobs(logits: torch.Tensor) -> torch.Tensor:
        """(responses, 2): log-probability of each token given those before it."""
        first, second = logits[:size].log_softmax(-1), logits[size:].view(size, size).log_softmax(-1)
        return torch.stack([torch.stack([first[a], second[a, b]]) for a in range(size) for b in range(size)])

    ref, mask = logprobs(reference), torch.ones(size**2, 2, dtype=torch.bool)

    def compared(kind: str, step: float) -> tuple[float, float]:
        """Relative size and cosine of the penalty's gradient, against that of the KL over whole responses."""
        logits = (reference + step * change).requires_grad_()
        own = logprobs(logits)
        exact = torch.autograd.grad((own.sum(1).exp() * (own - ref).sum(1)).sum(), logits, retain_graph=True)[
            0
        ]
        weight = own.sum(1).exp().detach()
        penalty = -kl_shaped_rewards(
            torch.zeros(len(own)).double(), own.detach(), ref, mask, beta=1.0, kind=kind
        )
        to_go = penalty.flip(1).cumsum(1).flip(1)
        (got,) = torch.autograd.grad((weight[:, None] * own * to_go).sum(), logits)
        return float(got.norm() / exact.norm()), float(got @ exact / (got.norm() * exact.norm()))

    for step in (0.1, 1.0):
        assert compared("k1", step) == pytest.approx((1.0, 1.0), abs=1e-9)
    for kind in ("k2", "k3"):
        assert compared(kind, 0.1)[0] < 0.2, "next to nothing near the reference"
        assert max(compared(kind, step)[1] for step in (0.1, 1.0)) < 0.9, "and not the way back"
