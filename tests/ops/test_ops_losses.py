"""Losses against hand-worked numbers, plain-loop oracles and properties."""

import math

import pytest
import torch

from rlaif.ops import (
    POLICY_LOSSES,
    bradley_terry_loss,
    confidence_weight,
    harden,
    kl_loss,
    learnt_mask,
    ppo_policy_loss,
    ppo_value_loss,
    reinforce_loss,
    sft_loss,
)

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
    # mutation: the mean of row means, (1.5 + 3) / 2 = 2.25, weights tokens unequally
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
    # mutation: rounding the label (as hard-label trainers do) gives another loss
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


def test_temperature_two_halves_the_log_odds() -> None:
    # p 0.8 has odds 4; at temperature 2 they are 2, so p is 2/3. At a difference of 0 the gradient is 1/2 - p.
    difference = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    p = torch.tensor([0.8], dtype=torch.float64)
    loss, _ = bradley_terry_loss(difference, torch.zeros_like(p), p, **{**PLAIN, "temperature": 2.0})
    loss.backward()
    assert difference.grad.item() == pytest.approx(0.5 - 2 / 3, abs=1e-12)


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


def reward_tensors(seed: int, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rewards of a and b, and labels strictly inside (0, 1)."""
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, generator=g, dtype=torch.float64) * 2 for _ in range(2))
    return a, b, torch.rand(n, generator=g, dtype=torch.float64) * 0.98 + 0.01


@pytest.mark.parametrize("margin", [0.0, 0.7])
@pytest.mark.parametrize("centering", [0.0, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hard_labels_give_the_published_reward_loss(
    margin: float, centering: float, dtype: torch.dtype
) -> None:
    """TRL's RewardTrainer: mean of -logsigmoid(chosen - rejected - margin) + c mean of (chosen + rejected)^2."""
    a, b, p = (x.to(dtype) for x in reward_tensors(3, 32))
    p = p.round()
    assert 5 < p.sum() < 27, "chosen must be on both sides"
    total = 0.0
    for reward_a, reward_b, label in zip(a.tolist(), b.tolist(), p.tolist(), strict=True):
        chosen, rejected = (reward_a, reward_b) if label == 1 else (reward_b, reward_a)
        total += math.log1p(math.exp(-(chosen - rejected - margin))) + centering * (chosen + rejected) ** 2
    knobs = {**PLAIN, "margin": margin, "centering": centering}
    loss = bradley_terry_loss(a, b, p, **knobs)[0].item()
    assert loss == pytest.approx(total / 32, abs=1e-6)
    # mutations: reversed labels, and the margin with the opposite sign
    assert bradley_terry_loss(a, b, 1 - p, **knobs)[0].item() != pytest.approx(total / 32, abs=1e-2)
    if margin:
        turned = bradley_terry_loss(a, b, p, **{**knobs, "margin": -margin})[0].item()
        assert turned != pytest.approx(total / 32, abs=1e-2)


def test_a_soft_label_is_the_mean_over_hard_labels_drawn_from_it() -> None:
    """Also with margin and centering; smoothing s means a label that is flipped with probability s."""
    a, b, p = reward_tensors(4, 12)
    knobs = {**PLAIN, "margin": 0.4, "centering": 0.02}
    one, zero = torch.ones_like(p), torch.zeros_like(p)
    for i in range(12):
        x, y = a[i : i + 1], b[i : i + 1]
        hard = [bradley_terry_loss(x, y, h[i : i + 1], **knobs)[0].item() for h in (zero, one)]
        for s in (0.0, 0.2):
            drawn = p[i].item() * (1 - s) + (1 - p[i].item()) * s
            soft = bradley_terry_loss(x, y, p[i : i + 1], **{**knobs, "label_smoothing": s})[0].item()
            assert soft == pytest.approx((1 - drawn) * hard[0] + drawn * hard[1], abs=1e-12)


def one_sided(difference: torch.Tensor, p: torch.Tensor, margin: float) -> torch.Tensor:
    """The wrong margin: D shifted once, whichever side is preferred."""
    s = torch.nn.functional.logsigmoid
    return -(p * s(difference - margin) + (1 - p) * s(margin - difference))


@pytest.mark.parametrize("p", [0.5, 0.6, 0.9, 0.3])
def test_the_margin_moves_the_minimum_away_from_zero_and_never_across(p: float) -> None:
    """Without a margin the best D is logit(p); with one it is further out, and at p = 0.5 it stays 0."""
    grid = torch.linspace(-4, 4, 401, dtype=torch.float64)
    labels = torch.full_like(grid, p)

    def best(margin: float) -> float:
        knobs = {**PLAIN, "margin": margin}
        losses = [
            bradley_terry_loss(d, 0 * d, q, **knobs)[0].item()
            for d, q in zip(grid.split(1), labels.split(1), strict=True)
        ]
        return grid[losses.index(min(losses))].item()

    logit = math.log(p / (1 - p))
    assert best(0.0) == pytest.approx(logit, abs=0.02)
    if p == 0.5:
        assert best(1.0) == pytest.approx(0.0, abs=1e-9)
        assert grid[one_sided(grid, labels, 1.0).argmin()].item() == pytest.approx(1.0), "mutation"
    else:
        # hand-solved: p (1 + e^(D+m)) = (1 - p) e^(D+m) (1 + e^(D-m)) is a quadratic in e^D
        m, odds = 1.0, p / (1 - p)
        half = (1 - odds) * math.exp(m) / 2
        expected = math.log(-half + math.sqrt(half**2 + odds))
        assert best(m) == pytest.approx(expected, abs=0.02)
        assert abs(expected) > abs(logit) + 0.3 and expected * logit > 0


def test_only_a_margin_on_both_sides_survives_a_swap() -> None:
    d, p = torch.tensor([0.3, -1.0], dtype=torch.float64), torch.tensor([0.8, 0.4], dtype=torch.float64)
    knobs = {**PLAIN, "margin": 0.7}
    both = [bradley_terry_loss(x, 0 * x, q, **knobs)[0].item() for x, q in ((d, p), (-d, 1 - p))]
    assert both[0] == pytest.approx(both[1], abs=1e-12)
    assert one_sided(d, p, 0.7).mean() != pytest.approx(one_sided(-d, 1 - p, 0.7).mean().item(), abs=1e-2)


@pytest.mark.parametrize("seed", range(4))
def test_bradley_terry_gradient_by_finite_differences(seed: int) -> None:
    a, b, p = reward_tensors(seed, 5)
    weight = torch.rand(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    knobs = {"margin": 0.3, "label_smoothing": 0.1, "temperature": 0.5, "centering": 0.05, "weight": weight}
    rewards = torch.stack((a, b)).requires_grad_()
    bradley_terry_loss(rewards[0], rewards[1], p, **knobs)[0].backward()
    step, base = 1e-6, rewards.detach()
    for side in range(2):
        for i in range(5):
            moved = []
            for sign in (1, -1):
                x = base.clone()
                x[side, i] += sign * step
                moved.append(bradley_terry_loss(x[0], x[1], p, **knobs)[0].item())
            slope = (moved[0] - moved[1]) / (2 * step)
            assert rewards.grad[side, i].item() == pytest.approx(slope, abs=1e-8)
            # mutation: without the weights the slope differs
            assert abs(slope * weight.sum().item() / 5 / weight[i].item() - slope) > 1e-6


def test_harden_by_hand() -> None:
    p = torch.tensor([0.0, 0.49, 0.5, 0.5000001, 0.51, 1.0], dtype=torch.float64)
    assert harden(p).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0, 1.0]
    assert torch.equal(harden(1 - p), 1 - harden(p))
    assert torch.equal(harden(harden(p)), harden(p))
    assert p.round().tolist() != harden(p).tolist(), "mutation: rounding decides 0.5"


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_confidence_weight_against_the_oracle(exponent: float) -> None:
    p = [0.0, 0.1, 0.3, 0.5, 0.75, 1.0]
    weights = confidence_weight(torch.tensor(p, dtype=torch.float64), exponent).tolist()
    assert weights == pytest.approx([(2 * abs(x - 0.5)) ** exponent for x in p], abs=1e-12)
    assert weights == pytest.approx(
        confidence_weight(1 - torch.tensor(p, dtype=torch.float64), exponent).tolist()
    )
    # by hand at p = 0.75: halfway, so 1/2 to the power; p = 0.5 counts only if all count equally
    assert weights[4] == pytest.approx(0.5**exponent)
    assert weights[3] == (1.0 if exponent == 0 else 0.0) and weights[0] == weights[5] == 1.0
    if exponent:
        assert weights[4] != pytest.approx(0.25**exponent), "mutation: |p - 0.5| without the factor 2"


def test_confidence_weights_must_not_favour_the_undecided() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        confidence_weight(torch.tensor([0.5]), -1.0)


def test_a_pair_of_weight_zero_changes_nothing() -> None:
    """With an exponent, an undecided pair might as well be absent, even if it is the whole batch."""
    a, b, p = reward_tensors(7, 4)
    p[2] = 0.5
    knobs = {**PLAIN, "centering": 0.1}
    weight = confidence_weight(p, 1.0)
    kept = [0, 1, 3]
    whole = bradley_terry_loss(a, b, p, **{**knobs, "weight": weight})[0]
    part = bradley_terry_loss(a[kept], b[kept], p[kept], **{**knobs, "weight": weight[kept]})[0]
    assert whole.item() == pytest.approx(part.item(), abs=1e-12)
    assert bradley_terry_loss(a, b, p, **knobs)[0].item() != pytest.approx(whole.item(), abs=1e-3)
    alone = a[2:3].clone().requires_grad_()
    none = bradley_terry_loss(alone, b[2:3], p[2:3], **{**knobs, "weight": weight[2:3]})[0]
    none.backward()
    assert none.item() == 0.0 and alone.grad.item() == 0.0


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
    loss, metrics = ppo_policy_loss(logp, torch.zeros_like(logp), adv, mask, clip=0.2, mean="token")
    assert loss.item() == pytest.approx(0.15, abs=1e-12)
    assert metrics["clip_fraction"].item() == 1.0
    assert metrics["ratio_max_deviation"].item() == pytest.approx(0.5, abs=1e-12)
    # mutations: max instead of min, and the wrong sign, are far off
    assert loss.item() != pytest.approx(-(1.5 - 1.2 + 0.8 - 0.5) / 4, abs=1e-3)


@pytest.mark.parametrize("seed", range(15))
def test_policy_loss_against_the_oracle(seed: int) -> None:
    (logp, old, adv), mask = tokens(seed, 3)
    loss, metrics = ppo_policy_loss(logp, old, adv, mask, clip=0.2, mean="token")
    expected, expected_metrics = policy_oracle(logp.tolist(), old.tolist(), adv.tolist(), mask.tolist(), 0.2)
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    assert {k: v.item() for k, v in metrics.items()} == pytest.approx(expected_metrics, abs=1e-12)


def test_first_step_has_ratio_one_and_the_policy_gradient() -> None:
    (logp, adv), mask = tokens(0, 2)
    logp.requires_grad_()
    loss, metrics = ppo_policy_loss(logp, logp.detach(), adv, mask, clip=0.2, mean="token")
    loss.backward()
    assert metrics["ratio_max_deviation"].item() == 0.0 and metrics["approx_kl"].item() == 0.0
    assert metrics["clip_fraction"].item() == 0.0 and metrics["ratio_mean"].item() == 1.0
    expected = torch.where(mask, -adv / mask.sum(), 0.0)
    assert torch.allclose(logp.grad, expected, atol=1e-15, rtol=0)


@pytest.mark.parametrize("mean", ["token", "sequence", "constant"])
@pytest.mark.parametrize("seed", range(5))
def test_means_of_the_policy_losses_against_the_oracle(seed: int, mean) -> None:  # type: ignore[no-untyped-def]
    """GRPO's mean over responses weights a token by its response's length; PPO's weights all equally, and so does
    Dr. GRPO's, whatever else is in the minibatch."""
    (logp, old, adv), mask = tokens(seed, 3)
    mask[3] = False  # counts nothing, so it is not a row of the mean
    clip, reinforce = [], []
    for b in range(3):
        kept = [t for t in range(6) if mask[b, t]]
        rows = []
        for t in kept:
            r, a = math.exp(logp[b, t] - old[b, t]), adv[b, t].item()
            rows.append((-min(r * a, min(max(r, 0.8), 1.2) * a), -a * logp[b, t].item()))
        if rows:
            clip.append([x for x, _ in rows])
            reinforce.append([y for _, y in rows])
    losses = (
        (clip, ppo_policy_loss(logp, old, adv, mask, clip=0.2, mean=mean)[0]),
        (reinforce, reinforce_loss(logp, adv, mask, mean=mean)),
    )
    for rows, loss in losses:
        token = sum(map(sum, rows)) / sum(map(len, rows))
        sequence = sum(sum(row) / len(row) for row in rows) / len(rows)
        constant = sum(sum(row) / 6 for row in rows) / len(rows)  # the constant is the tensors' six positions
        wanted = {"token": token, "sequence": sequence, "constant": constant}
        assert loss.item() == pytest.approx(wanted.pop(mean), abs=1e-12)
        assert all(loss.item() != pytest.approx(other, abs=1e-5) for other in wanted.values())


def test_likelihood_of_chosen_responses_by_hand() -> None:
    """Rows of 2, 1 and 2 tokens; the first and the last are chosen: (1 + 2 + 4 + 6) / 4, and means (1.5 + 5) / 2."""
    logp = torch.tensor([[-1.0, -2.0, 9.0], [-3.0, 9.0, 9.0], [-4.0, -6.0, 9.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, False]])
    chosen = torch.tensor([1.0, 0.0, 1.0])[:, None].expand(3, 3)
    assert learnt_mask(chosen, mask).sum(1).tolist() == [2, 0, 2]
    old = torch.full((3, 3), -2.0)
    own = {
        mean: POLICY_LOSSES["nll"].compute(logp, old, chosen, mask, clip=0.2, mean=mean)[0]
        for mean in ("token", "sequence", "constant")
    }
    assert own["token"].item() == 13 / 4, "not 13 / 5, over all tokens"
    assert own["sequence"].item() == 6.5 / 2, "not 6.5 / 3, over all rows"
    assert own["constant"].item() == pytest.approx(13 / 6)
    assert own["token"].item() == sft_loss(logp[[0, 2]], mask[[0, 2]])[0].item()
    own["token"].backward()
    assert logp.grad is not None and logp.grad[1].eq(0).all() and logp.grad[0, :2].eq(-0.25).all()
    none, metrics = POLICY_LOSSES["nll"].compute(logp, old, 0 * chosen, mask, clip=0.2, mean="token")
    assert none.item() == 0, "a part without a chosen response adds nothing"
    assert metrics["ratio_max_deviation"].item() == pytest.approx(math.e - 1), "over all responses"


def test_reinforce_has_the_policy_gradient_and_none_for_the_advantage() -> None:
    (logp, adv), mask = tokens(2, 2)
    logp.requires_grad_(), adv.requires_grad_()
    loss = reinforce_loss(logp, adv, mask, mean="token")
    loss.backward()
    assert torch.allclose(logp.grad, torch.where(mask, -adv / mask.sum(), 0.0), atol=1e-15, rtol=0)
    assert adv.grad is None
    # on the first step it is PPO's gradient
    again = logp.detach().clone().requires_grad_()
    ppo_policy_loss(again, logp.detach(), adv.detach(), mask, clip=0.2, mean="token")[0].backward()
    assert torch.allclose(again.grad, logp.grad, atol=1e-15, rtol=0)


@pytest.mark.parametrize("mean", ["token", "sequence", "constant"])
def test_gradients_by_finite_differences(mean) -> None:  # type: ignore[no-untyped-def]
    (logp, old, adv), mask = tokens(4, 3)
    logp.requires_grad_()
    knobs = {"mean": mean}
    assert torch.autograd.gradcheck(
        lambda x: ppo_policy_loss(x, old, adv, mask, clip=0.2, **knobs)[0], [logp]
    )
    assert torch.autograd.gradcheck(lambda x: reinforce_loss(x, adv, mask, **knobs), [logp])
    for kind in ("k1", "k2", "k3"):
        assert torch.autograd.gradcheck(lambda x, k=kind: kl_loss(x, old, mask, kind=k, **knobs), [logp])
        assert not torch.autograd.gradcheck(
            lambda x, k=kind: kl_loss(x.detach() + 0.5 * (x - x.detach()), old, mask, kind=k, **knobs),
            [logp],
            raise_exception=False,
        ), "mutation: half of the gradient"


def test_sequence_means_of_micro_batches_add_up() -> None:
    (logp, old, adv), mask = tokens(5, 3)
    mask[2:] = torch.tensor([[True] * 6, [False] * 6])
    whole = reinforce_loss(logp, adv, mask, mean="sequence")
    rows = [slice(0, 1), slice(1, 3), slice(3, 4)]
    count = mask.any(1).sum()
    parts = [reinforce_loss(logp[i], adv[i], mask[i], mean="sequence", normalizer=count) for i in rows]
    assert sum(parts).item() == pytest.approx(whole.item(), abs=1e-12)
    wrong = [reinforce_loss(logp[i], adv[i], mask[i], mean="sequence", normalizer=mask.sum()) for i in rows]
    assert sum(wrong).item() != pytest.approx(whole.item(), abs=1e-4), "mutation: a count of tokens"
    with pytest.raises(ValueError, match="token, sequence, constant"):
        reinforce_loss(logp, adv, mask, mean="rows")


def test_a_response_of_one_token_counts_as_a_whole_row() -> None:
    # -A log p is 6 in the first row, 1 and 3 in the second: row means 6 and 2
    logp, adv = torch.tensor([[-6.0, 9.0], [-1.0, -3.0]]), torch.ones(2, 2)
    mask = torch.tensor([[True, False], [True, True]])
    assert reinforce_loss(logp, adv, mask, mean="sequence").item() == pytest.approx((6 + 2) / 2)
    assert reinforce_loss(logp, adv, mask, mean="token").item() == pytest.approx(10 / 3)


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


def test_returns_without_spread_explain_nothing() -> None:
    """1 - var / 0 would be minus infinity, and an alarm."""
    values, mask = torch.tensor([[0.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool)
    _, metrics = ppo_value_loss(values, values, torch.ones(1, 2), mask, clip=0.2)
    assert math.isnan(metrics["explained_variance"].item())


# --- properties of all --------------------------------------------------------------------------------

TOKEN_LOSSES = {
    "sft": (1, lambda x, m, **k: sft_loss(x[0], m, **k)),
    "policy": (3, lambda x, m, **k: ppo_policy_loss(*x, m, clip=0.2, mean="token", **k)),
    "value": (3, lambda x, m, **k: ppo_value_loss(*x, m, clip=0.2, **k)),
    "reinforce": (2, lambda x, m, **k: (reinforce_loss(*x, m, mean="token", **k), {})),
    "kl": (2, lambda x, m, **k: (kl_loss(*x, m, kind="k3", mean="token", **k), {})),
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
    # mutation: the mean of the parts' means differs
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
