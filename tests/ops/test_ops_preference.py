"""Losses of preference optimisation against hand-worked numbers, a plain-loop oracle and properties."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rlaif.ops import PREFERENCE_LOSSES, PairLogprobs, PreferenceKnobs, preference_loss
from rlaif.ops.preference import algorithm_title, believed

NAMES = [name for name in PREFERENCE_LOSSES if name != "sft"]


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > -30 else x


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def log_odds(mean: float) -> float:
    return mean - math.log(1 - math.exp(mean))


def of_one(
    name: str, policy: list[float], reference: list[float], tokens: list[float], k: Any, z: float
) -> float:
    """The published loss of one pair whose first response is the preferred one."""
    ratios = [p - r for p, r in zip(policy, reference, strict=True)]
    means = [p / n for p, n in zip(policy, tokens, strict=True)]
    if k.length_normalized:
        ratios = [r / n for r, n in zip(ratios, tokens, strict=True)]
    ahead = k.beta * (ratios[0] - ratios[1])
    if name in ("sigmoid", "robust"):
        return -log_sigmoid(ahead - k.margin)
    if name == "ipo":
        return (ratios[0] - ratios[1] - (1 + 2 * k.margin) / (2 * k.beta)) ** 2
    if name == "hinge":
        return max(0.0, 1 + k.margin - ahead)
    if name == "simpo":
        return -log_sigmoid(k.beta * means[0] - k.beta * means[1] - k.margin)
    if name == "orpo":
        return -k.beta * log_sigmoid(log_odds(means[0]) - log_odds(means[1]) - k.margin)
    good, bad = k.beta * (ratios[0] - max(0.0, z)), k.beta * (ratios[1] - max(0.0, z))
    return ((1 - sigmoid(good)) + (1 - sigmoid(-bad))) / 2


def oracle(name: str, pairs: PairLogprobs, p_a: Tensor, k: PreferenceKnobs, weight: Tensor) -> float:
    """Pair by pair: the expectation over which response is the preferred one."""
    total, z = 0.0, 0.0 if pairs.mismatch is None else float(pairs.mismatch)
    rows = (x.tolist() for x in (pairs.policy, pairs.reference, pairs.tokens, p_a, weight))
    for policy, reference, tokens, p, w in zip(*rows, strict=True):
        e = k.label_smoothing
        p = (p - e) / (1 - 2 * e) if name == "robust" else p * (1 - e) + (1 - p) * e
        each = 0.0
        for share, order in ((p, (0, 1)), (1 - p, (1, 0))):
            sides = ([side[i] for i in order] for side in (policy, reference, tokens))
            each += share * of_one(name, *sides, k, z)
            each -= share * k.nll_weight * policy[order[0]] / tokens[order[0]]
        total += w * each
    return total / sum(weight.tolist())


def drawn(seed: int, count: int = 7) -> tuple[PairLogprobs, Tensor, Tensor]:
    """Pairs (a quarter of them certain, one of them even), soft labels and weights."""
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 12, (count, 2), generator=g).double()
    policy = -(torch.rand(count, 2, generator=g, dtype=torch.float64) * 2 + 0.05) * tokens
    reference = policy + torch.randn(count, 2, generator=g, dtype=torch.float64)
    p_a = torch.rand(count, generator=g, dtype=torch.float64)
    p_a[0], p_a[1], p_a[2] = 0.5, 1.0, 0.0
    mismatch = torch.randn((), generator=g, dtype=torch.float64)
    weight = torch.rand(count, generator=g, dtype=torch.float64)
    return PairLogprobs(policy, reference, tokens, mismatch), p_a, weight


KNOBS = [
    PreferenceKnobs(0.3),
    PreferenceKnobs(0.7, margin=0.4),
    PreferenceKnobs(0.5, label_smoothing=0.2),
    PreferenceKnobs(0.5, length_normalized=True),
    PreferenceKnobs(0.1, nll_weight=0.8),
    PreferenceKnobs(1.3, margin=0.2, label_smoothing=0.1, length_normalized=True, nll_weight=0.3),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("knobs", KNOBS)
def test_every_loss_is_that_of_the_loop(name: str, knobs: PreferenceKnobs) -> None:
    for seed in range(4):
        pairs, p_a, weight = drawn(seed)
        loss, _ = preference_loss(name, pairs, p_a, knobs, weight=weight)
        assert float(loss) == pytest.approx(oracle(name, pairs, p_a, knobs, weight), rel=1e-9), (name, seed)


def test_dpo_by_hand() -> None:
    # Log-ratios 2 and -1, beta 0.5: 1.5 ahead. -log sigmoid(1.5) = 0.20141, and with p = 0.75 a quarter of 1.70141.
    pairs = PairLogprobs(
        torch.tensor([[-3.0, -9.0]]), torch.tensor([[-5.0, -8.0]]), torch.tensor([[4.0, 4.0]])
    )
    certain, metrics = preference_loss("sigmoid", pairs, torch.tensor([1.0]), PreferenceKnobs(0.5))
    assert float(certain) == pytest.approx(0.201413, abs=1e-6)
    assert {name: float(value) for name, value in metrics.items()} == {
        "accuracy": 1.0,
        "margin": 1.5,
        "preferred_log_ratio": 2.0,
        "other_log_ratio": -1.0,
    }
    soft, _ = preference_loss("sigmoid", pairs, torch.tensor([0.75]), PreferenceKnobs(0.5))
    assert float(soft) == pytest.approx(0.75 * 0.201413 + 0.25 * 1.701413, abs=1e-6)
    turned, metrics = preference_loss("sigmoid", pairs, torch.tensor([0.0]), PreferenceKnobs(0.5))
    assert float(turned) == pytest.approx(1.701413, abs=1e-6)
    assert float(metrics["accuracy"]) == 0.0 and float(metrics["preferred_log_ratio"]) == -1.0


@pytest.mark.parametrize("name", NAMES)
def test_swapping_the_sides_mirrors_the_label(name: str) -> None:
    pairs, p_a, weight = drawn(5)
    knobs = PreferenceKnobs(0.6, margin=0.3, label_smoothing=0.1, nll_weight=0.2)
    turned = PairLogprobs(pairs.policy.flip(1), pairs.reference.flip(1), pairs.tokens.flip(1), pairs.mismatch)
    own, metrics = preference_loss(name, pairs, p_a, knobs, weight=weight)
    other, mirrored = preference_loss(name, turned, 1 - p_a, knobs, weight=weight)
    assert float(own) == pytest.approx(float(other), rel=1e-12)
    assert {k: float(v) for k, v in metrics.items()} == pytest.approx(
        {k: float(v) for k, v in mirrored.items()}
    )
    # The label matters: the same pairs under turned labels cost something else.
    assert float(preference_loss(name, pairs, 1 - p_a, knobs, weight=weight)[0]) != pytest.approx(float(own))


@pytest.mark.parametrize("name", NAMES)
def test_parts_add_up_to_the_batch(name: str) -> None:
    pairs, p_a, weight = drawn(6)
    knobs = PreferenceKnobs(0.4, nll_weight=0.5)
    whole, _ = preference_loss(name, pairs, p_a, knobs, weight=weight)
    added = 0.0
    for rows in (slice(0, 3), slice(3, 7)):
        part = PairLogprobs(pairs.policy[rows], pairs.reference[rows], pairs.tokens[rows], pairs.mismatch)
        loss, _ = preference_loss(name, part, p_a[rows], knobs, weight=weight[rows], normalizer=weight.sum())
        added += float(loss)
    assert added == pytest.approx(float(whole), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_raises_what_is_preferred(name: str) -> None:
    """Of a pair at the reference, the preferred response's log-probability rises and the other's falls."""
    policy = torch.tensor([[-6.0, -6.0]], dtype=torch.float64, requires_grad=True)
    start = PairLogprobs(
        policy, policy.detach(), torch.full((1, 2), 5.0), torch.tensor(0.0, dtype=torch.float64)
    )
    for p_a, sign in ((1.0, 1), (0.0, -1)):
        loss, _ = preference_loss(name, start, torch.tensor([p_a]), PreferenceKnobs(0.3))
        (slope,) = torch.autograd.grad(loss, policy)
        assert sign * slope[0, 0] < 0 < sign * slope[0, 1]


def test_robust_is_unbiased_under_flipped_labels() -> None:
    """Labels wrong with probability e, corrected for it, cost what the true ones cost (Chowdhury et al. 2024)."""
    pairs, truth, _ = drawn(7)
    truth, e = (truth > 0.5).double(), 0.2
    knobs = PreferenceKnobs(0.5, label_smoothing=e)
    true = preference_loss("sigmoid", pairs, truth, PreferenceKnobs(0.5))[0]
    kept, turned = (float(preference_loss("robust", pairs, y, knobs)[0]) for y in (truth, 1 - truth))
    assert (1 - e) * kept + e * turned == pytest.approx(float(true), rel=1e-12)
    # mutation: conservative labels are biased towards one half
    kept, turned = (float(preference_loss("sigmoid", pairs, y, knobs)[0]) for y in (truth, 1 - truth))
    assert (1 - e) * kept + e * turned != pytest.approx(float(true), rel=1e-3)


def test_metrics_leave_undecided_pairs_out() -> None:
    pairs, _, _ = drawn(8, count=4)
    even = torch.full((4,), 0.5, dtype=torch.float64)
    _, metrics = preference_loss("sigmoid", pairs, even, PreferenceKnobs(0.5))
    assert all(math.isnan(float(value)) for value in metrics.values())
    label = torch.tensor([0.5, 0.9, 0.2, 0.5], dtype=torch.float64)
    ratios = pairs.log_ratios
    preferred = (ratios[1, 0] + ratios[2, 1]) / 2
    _, metrics = preference_loss("sigmoid", pairs, label, PreferenceKnobs(0.5))
    assert float(metrics["preferred_log_ratio"]) == pytest.approx(float(preferred))
    # Equal scores count half.
    level = PairLogprobs(pairs.reference, pairs.reference, pairs.tokens)
    assert float(preference_loss("sigmoid", level, label, PreferenceKnobs(0.5))[1]["accuracy"]) == 0.5


def test_kto_is_held_to_its_reference_point() -> None:
    pairs, p_a, _ = drawn(9)
    with pytest.raises(ValueError, match="mismatched"):
        preference_loss(
            "kto", PairLogprobs(pairs.policy, pairs.reference, pairs.tokens), p_a, PreferenceKnobs(0.5)
        )
    losses = [
        float(
            preference_loss(
                "kto",
                PairLogprobs(
                    pairs.policy, pairs.reference, pairs.tokens, torch.tensor(z, dtype=torch.float64)
                ),
                p_a,
                PreferenceKnobs(0.5),
            )[0]
        )
        for z in (-3.0, 0.0, 2.0)
    ]
    assert losses[0] == losses[1] != losses[2], "a negative estimate of the KL is none"
    z = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    policy = pairs.policy.clone().requires_grad_()
    loss, _ = preference_loss(
        "kto", PairLogprobs(policy, pairs.reference, pairs.tokens, z), p_a, PreferenceKnobs(0.5)
    )
    loss.backward()
    assert z.grad is None and policy.grad is not None, "no gradient flows through the reference point"


def test_certain_responses_have_finite_odds() -> None:
    pairs = PairLogprobs(torch.tensor([[0.0, -2.0]]), torch.zeros(1, 2), torch.ones(1, 2))
    loss, _ = preference_loss("orpo", pairs, torch.tensor([1.0]), PreferenceKnobs(0.5))
    assert loss.isfinite()


def test_labels_and_titles() -> None:
    p = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    noisy = believed(p, 0.1, corrects=False)
    assert noisy.tolist() == pytest.approx([0.1, 0.34, 0.9])
    assert believed(noisy, 0.1, corrects=True).tolist() == pytest.approx(p.tolist(), abs=1e-12)
    with pytest.raises(ValueError, match="below 0.5"):
        believed(p, 0.5, corrects=True)
    assert algorithm_title("dpo", "ipo") == "IPO" and algorithm_title("grpo", "clip") == "GRPO"
    assert algorithm_title("dpo", "clip") is None and algorithm_title("none", "clip") is None


def test_sft_is_the_likelihood_of_the_preferred_response_alone() -> None:
    pairs, p_a, weight = drawn(11)
    loss, metrics = preference_loss("sft", pairs, p_a, PreferenceKnobs(0.1, nll_weight=1.0), weight=weight)
    each = []
    for policy, tokens, p in zip(pairs.policy.tolist(), pairs.tokens.tolist(), p_a.tolist(), strict=True):
        nll = [-x / n for x, n in zip(policy, tokens, strict=True)]
        each.append((nll[0] + nll[1]) / 2 if p == 0.5 else nll[p < 0.5])
    wanted = sum(w * x for w, x in zip(weight.tolist(), each, strict=True)) / float(weight.sum())
    assert float(loss) == pytest.approx(wanted, rel=1e-12)
    # What the labels are sure of does not matter, nor does the reference.
    sure = torch.where(p_a == 0.5, p_a, (p_a > 0.5).double())
    other = PairLogprobs(pairs.policy, pairs.reference + 1, pairs.tokens)
    again, _ = preference_loss("sft", other, sure, PreferenceKnobs(0.7, nll_weight=1.0), weight=weight)
    assert float(again) == pytest.approx(float(loss), rel=1e-12)
    assert 0 <= float(metrics["accuracy"]) <= 1
