"""Losses against hand-worked numbers, plain-loop oracles and properties."""

import math

import pytest
import torch

from rlaif.ops import bradley_terry_loss, ppo_policy_loss, ppo_value_loss, sft_loss

PLAIN = {"margin": 0.0, "label_smoothing": 0.0, "temperature": 1.0, "centering": 0.0, "weight": None}


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def tokens(seed: int, number: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(4, 6, generator=g, dtype=torch.float64) * 0.5 for _ in range(number)]
    mask = torch.rand(4, 6, generator=g) < 0.6
    mask[0, 0] = True
    return tensors, mask


# --- supervised fine-tuning ---------------------------------------------------------------------------


def test_sft_by_hand() -> None:
    # counted log-probabilities -1, -2, -3 over two rows: loss 6 / 3 = 2, perplexity e^2
    logp = torch.tensor([[-1.0, -2.0], [-3.0, -50.0]])
    mask = torch.tensor([[True, True], [True, False]])
    loss, metrics = sft_loss(logp, mask)
    assert loss.item() == 2.0
    assert metrics["perplexity"].item() == pytest.approx(math.exp(2), rel=1e-6)
    assert metrics["tokens"].item() == 3.0
    # mutation: the mean of row means, (1.5 + 3) / 2 = 2.25, weighs tokens unequally
    assert loss.item() != 2.25


# --- reward model -------------------------------------------------------------------------------------


def bt_oracle(ra, rb, p_a, margin, smoothing, temperature, centering, weight):  # type: ignore[no-untyped-def]
    total = 0.0
    for a, b, p, w in zip(ra, rb, p_a, weight, strict=True):
        if 0 < p < 1:
            x, y = p ** (1 / temperature), (1 - p) ** (1 / temperature)
            p = x / (x + y)
        p = p * (1 - smoothing) + (1 - p) * smoothing
        d = a - b
        each = -(p * log_sigmoid(d - margin) + (1 - p) * log_sigmoid(-d - margin))
        total += w * (each + centering * (a + b) ** 2)
    return total / sum(weight)


def test_bradley_terry_by_hand() -> None:
    # D = 2 - 1 = 1, p = 0.7: 0.7 ln(1 + e^-1) + 0.3 ln(1 + e)
    expected = 0.7 * math.log(1 + math.exp(-1)) + 0.3 * math.log(1 + math.e)
    a, b, p = (torch.tensor([v], dtype=torch.float64) for v in (2.0, 1.0, 0.7))
    loss, _ = bradley_terry_loss(a, b, p, **PLAIN)
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    # mutation: rounding the label (what hard-label trainers do) is another loss
    assert bradley_terry_loss(a, b, p.round(), **PLAIN)[0].item() != pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("seed", range(15))
def test_bradley_terry_against_the_oracle(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    ra, rb = (torch.randn(8, generator=g, dtype=torch.float64) * 2 for _ in range(2))
    p = torch.rand(8, generator=g, dtype=torch.float64)
    p[0], p[1], p[2] = 0.0, 1.0, 0.5
    weight = torch.rand(8, generator=g, dtype=torch.float64) + 0.1
    margin, smoothing, centering = torch.rand(3, generator=g, dtype=torch.float64).tolist()
    smoothing, temperature = smoothing / 2, [0.25, 0.5, 1.0, 3.0][seed % 4]
    loss, _ = bradley_terry_loss(
        ra, rb, p, margin=margin, label_smoothing=smoothing, temperature=temperature,
        centering=centering, weight=weight,
    )  # fmt: skip
    lists = [x.tolist() for x in (ra, rb, p)]
    expected = bt_oracle(*lists, margin, smoothing, temperature, centering, weight.tolist())
    assert loss.item() == pytest.approx(expected, abs=1e-10)


def test_swapping_the_pair_mirrors_p() -> None:
    g = torch.Generator().manual_seed(0)
    ra, rb, p = (torch.rand(6, generator=g, dtype=torch.float64) for _ in range(3))
    knobs = {"margin": 0.3, "label_smoothing": 0.1, "temperature": 0.5, "centering": 0.01, "weight": None}
    loss, metrics = bradley_terry_loss(ra, rb, p, **knobs)
    swapped, swapped_metrics = bradley_terry_loss(rb, ra, 1 - p, **knobs)
    assert swapped.item() == pytest.approx(loss.item(), abs=1e-12)
    assert {k: v.item() for k, v in swapped_metrics.items()} == pytest.approx(
        {k: v.item() for k, v in metrics.items()}, abs=1e-12
    )
    assert bradley_terry_loss(rb, ra, p, **knobs)[0].item() != pytest.approx(loss.item(), abs=1e-6)


def test_bradley_terry_gradient_is_sigmoid_minus_p() -> None:
    a = torch.tensor([0.4, -1.0], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([0.1, 2.0], dtype=torch.float64)
    p = torch.tensor([0.8, 0.0], dtype=torch.float64)
    bradley_terry_loss(a, b, p, **PLAIN)[0].backward()
    assert torch.allclose(a.grad, (torch.sigmoid(a.detach() - b) - p) / 2, atol=1e-12, rtol=0)


@pytest.mark.parametrize("temperature", [0.01, 0.5, 1.0, 7.0])
def test_hard_labels_survive_any_temperature(temperature: float) -> None:
    a, b = torch.tensor([3.0, 3.0]), torch.tensor([1.0, 1.0])
    knobs = {**PLAIN, "temperature": temperature}
    loss, _ = bradley_terry_loss(a, b, torch.tensor([1.0, 0.0]), **knobs)
    assert loss.item() == pytest.approx(-(log_sigmoid(2) + log_sigmoid(-2)) / 2, abs=1e-6)


def test_temperature_below_one_sharpens() -> None:
    # temperature 0.5 doubles the logit: p = 0.6 -> 0.36 / (0.36 + 0.16) = 9/13; D -> large makes the
    # loss (1 - p') D up to log terms that vanish
    a, b, p = (torch.tensor([v], dtype=torch.float64) for v in (60.0, 0.0, 0.6))
    loss, _ = bradley_terry_loss(a, b, p, **{**PLAIN, "temperature": 0.5})
    assert loss.item() == pytest.approx(60 * 4 / 13, abs=1e-9)
    with pytest.raises(ValueError, match="positive"):
        bradley_terry_loss(a, b, p, **{**PLAIN, "temperature": 0.0})


def test_bradley_terry_metrics_by_hand() -> None:
    # D = 1, -2, 3, 0, 5 with p = .9, .8, .1, .2, .5: right, wrong, wrong, half, left out -> 1.5 / 4
    # margins towards the preferred: 1, -2, -3, 0 -> mean -1
    a = torch.tensor([1.0, -2.0, 3.0, 0.0, 5.0])
    p = torch.tensor([0.9, 0.8, 0.1, 0.2, 0.5])
    _, metrics = bradley_terry_loss(a, torch.zeros(5), p, **PLAIN)
    assert metrics["accuracy"].item() == pytest.approx(0.375)
    assert metrics["margin"].item() == pytest.approx(-1.0)
    assert math.isnan(bradley_terry_loss(a, a, torch.full((5,), 0.5), **PLAIN)[1]["accuracy"].item())


def test_extreme_rewards_do_not_overflow() -> None:
    a = torch.tensor([1e4], requires_grad=True)
    loss, _ = bradley_terry_loss(a, torch.tensor([0.0]), torch.tensor([0.0]), **PLAIN)
    loss.backward()
    assert loss.item() == 1e4 and a.grad.item() == 1.0


# --- PPO ----------------------------------------------------------------------------------------------


def policy_oracle(logp, old, adv, mask, clip):  # type: ignore[no-untyped-def]
    losses, ratios = [], []
    for b in range(len(logp)):
        for t in range(len(logp[0])):
            if mask[b][t]:
                r = math.exp(logp[b][t] - old[b][t])
                clipped = min(max(r, 1 - clip), 1 + clip)
                losses.append(-min(r * adv[b][t], clipped * adv[b][t]))
                ratios.append(r)
    n = len(losses)
    metrics = {
        "clip_fraction": sum(abs(r - 1) > clip for r in ratios) / n,
        "approx_kl": sum((r - 1) - math.log(r) for r in ratios) / n,
        "ratio_mean": sum(ratios) / n,
        "ratio_max_deviation": max(abs(r - 1) for r in ratios),
    }
    return sum(losses) / n, metrics


def test_policy_loss_by_hand() -> None:
    # clip 0.2; ratios 1.5, 1.5, 0.5, 0.5 with advantages 1, -1, 1, -1
    # -min(1.5, 1.2) = -1.2; -min(-1.5, -1.2) = 1.5; -min(.5, .8) = -.5; -min(-.5, -.8) = .8 -> 0.6 / 4
    logp = torch.tensor([[1.5, 1.5, 0.5, 0.5]], dtype=torch.float64).log()
    adv = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)
    mask = torch.ones(1, 4, dtype=torch.bool)
    loss, metrics = ppo_policy_loss(logp, torch.zeros_like(logp), adv, mask, clip=0.2)
    assert loss.item() == pytest.approx(0.15, abs=1e-12)
    assert metrics["clip_fraction"].item() == 1.0
    assert metrics["ratio_max_deviation"].item() == pytest.approx(0.5, abs=1e-12)
    # mutations: max for min, and the wrong sign, are far away
    assert loss.item() != pytest.approx(-(1.5 - 1.2 + 0.8 - 0.5) / 4, abs=1e-3)


@pytest.mark.parametrize("seed", range(15))
def test_policy_loss_against_the_oracle(seed: int) -> None:
    (logp, old, adv), mask = tokens(seed, 3)
    loss, metrics = ppo_policy_loss(logp, old, adv, mask, clip=0.2)
    expected, expected_metrics = policy_oracle(logp.tolist(), old.tolist(), adv.tolist(), mask.tolist(), 0.2)
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    assert {k: v.item() for k, v in metrics.items()} == pytest.approx(expected_metrics, abs=1e-12)


def test_first_step_has_ratio_one_and_the_policy_gradient() -> None:
    (logp, adv), mask = tokens(0, 2)
    logp.requires_grad_()
    loss, metrics = ppo_policy_loss(logp, logp.detach(), adv, mask, clip=0.2)
    loss.backward()
    assert metrics["ratio_max_deviation"].item() == 0.0 and metrics["approx_kl"].item() == 0.0
    assert metrics["clip_fraction"].item() == 0.0 and metrics["ratio_mean"].item() == 1.0
    expected = torch.where(mask, -adv / mask.sum(), 0.0)
    assert torch.allclose(logp.grad, expected, atol=1e-15, rtol=0)


def value_oracle(v, old, ret, mask, clip):  # type: ignore[no-untyped-def]
    total, n = 0.0, 0
    for b in range(len(v)):
        for t in range(len(v[0])):
            if mask[b][t]:
                worst = (v[b][t] - ret[b][t]) ** 2
                if clip > 0:
                    near = old[b][t] + min(max(v[b][t] - old[b][t], -clip), clip)
                    worst = max(worst, (near - ret[b][t]) ** 2)
                total, n = total + worst / 2, n + 1
    return total / n


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("clip", [0.2, 0.0, -1.0])
def test_value_loss_against_the_oracle(seed: int, clip: float) -> None:
    (values, old, returns), mask = tokens(seed, 3)
    loss, metrics = ppo_value_loss(values, old, returns, mask, clip=clip)
    expected = value_oracle(values.tolist(), old.tolist(), returns.tolist(), mask.tolist(), clip)
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    assert metrics["value_loss"].item() == loss.item()
    r, e = returns[mask], (returns - values)[mask]
    assert metrics["explained_variance"].item() == pytest.approx(
        1 - (e.var(unbiased=False) / r.var(unbiased=False)).item(), abs=1e-9
    )


def test_value_loss_by_hand() -> None:
    # V 1, old 0, R 1, clip 0.2: unclipped error 0, clipped (0.2 - 1)^2 = 0.64 -> 0.32; min would give 0
    one, mask = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool)
    loss, metrics = ppo_value_loss(one, 0 * one, one, mask, clip=0.2)
    assert loss.item() == pytest.approx(0.32, abs=1e-12)
    assert math.isnan(metrics["explained_variance"].item())
    assert ppo_value_loss(one, 0 * one, one, mask, clip=0.0)[0].item() == 0.0


# --- properties of all --------------------------------------------------------------------------------

TOKEN_LOSSES = {
    "sft": (1, lambda x, m, **k: sft_loss(x[0], m, **k)),
    "policy": (3, lambda x, m, **k: ppo_policy_loss(*x, m, clip=0.2, **k)),
    "value": (3, lambda x, m, **k: ppo_value_loss(*x, m, clip=0.2, **k)),
}


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_micro_batches_add_up_to_the_batch(name: str) -> None:
    number, loss_of = TOKEN_LOSSES[name]
    tensors, mask = tokens(5, number)
    mask[2:] = torch.tensor([[True] * 6, [False] * 6])  # uneven parts, one of them empty
    whole, _ = loss_of(tensors, mask)
    count = mask.sum()
    rows = [slice(0, 1), slice(1, 3), slice(3, 4)]
    parts = [loss_of([x[i] for x in tensors], mask[i], normalizer=count)[0] for i in rows]
    assert sum(parts).item() == pytest.approx(whole.item(), abs=1e-12)
    # mutation: the mean of the parts' own means is something else
    own = [loss_of([x[i] for x in tensors], mask[i])[0] for i in rows[:2]]
    assert (sum(own) / 2).item() != pytest.approx(whole.item(), abs=1e-4)
    assert loss_of([x[3:] for x in tensors], mask[3:])[0].item() == 0.0


def test_bradley_terry_micro_batches() -> None:
    g = torch.Generator().manual_seed(0)
    ra, rb, p, w = (torch.rand(6, generator=g, dtype=torch.float64) for _ in range(4))
    knobs = {**PLAIN, "centering": 0.1}
    whole, _ = bradley_terry_loss(ra, rb, p, **{**knobs, "weight": w})
    parts = [
        bradley_terry_loss(ra[i], rb[i], p[i], **{**knobs, "weight": w[i]}, normalizer=w.sum())[0]
        for i in (slice(0, 1), slice(1, 6))
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), abs=1e-12)


@pytest.mark.parametrize("name", TOKEN_LOSSES)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_garbage_under_the_mask_reaches_neither_loss_nor_gradient(name: str, garbage: float) -> None:
    number, loss_of = TOKEN_LOSSES[name]
    tensors, mask = tokens(6, number)
    fill = torch.tensor(garbage, dtype=torch.float64)
    dirty = [torch.where(mask, x, fill).requires_grad_() for x in tensors]
    clean = [x.clone().requires_grad_() for x in tensors]
    (loss, metrics), (want, want_metrics) = loss_of(dirty, mask), loss_of(clean, mask)
    assert loss.item() == want.item()
    assert {k: v.item() for k, v in metrics.items()} == {k: v.item() for k, v in want_metrics.items()}
    loss.backward()
    want.backward()
    assert torch.equal(dirty[0].grad, clean[0].grad)
    assert not any(v.requires_grad for v in metrics.values())
