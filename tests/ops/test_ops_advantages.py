"""Advantages of whole responses: hand-worked numbers, plain loops, and the policy gradient by enumeration."""

import itertools
import math

import pytest
import torch

from rlaif.ops.advantages import (
    best_of_group,
    drgrpo_advantages,
    grpo_advantages,
    penalised_scores,
    reinforce_advantages,
    rloo_advantages,
)


def scores_of(seed: int, groups: int, size: int) -> torch.Tensor:
    return torch.randn(groups * size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(
        3
    )


# --- REINFORCE ----------------------------------------------------------------------------------------


def test_reinforce_by_hand() -> None:
    # gamma 0.5, rewards 1, 2, (9 masked), 4: returns 1 + 1 + 1 = 3, 2 + 2 = 4, 4; baselines 1, 5, 2
    rewards = torch.tensor([[1.0, 2.0, 9.0, 4.0]])
    baseline = torch.tensor([[1.0, 5.0, 9.0, 2.0]])
    mask = torch.tensor([[True, True, False, True]])
    advantages, returns = reinforce_advantages(rewards, baseline, mask, gamma=0.5)
    assert returns.tolist() == [[3.0, 4.0, 0.0, 4.0]]
    assert advantages.tolist() == [[2.0, -1.0, 0.0, 2.0]]
    # mutation: the token's reward alone, instead of the return to go, gives 1 - 1 = 0 at the first token
    assert advantages[0, 0] != rewards[0, 0] - baseline[0, 0]


@pytest.mark.parametrize("seed", range(10))
def test_reinforce_against_a_loop(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    rewards, baseline = (torch.randn(4, 7, generator=g, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(4, 7, generator=g) < 0.6
    gamma = [1.0, 0.7][seed % 2]
    advantages, returns = reinforce_advantages(rewards, baseline, mask, gamma=gamma)
    for b in range(4):
        kept = [t for t in range(7) if mask[b, t]]
        for i, t in enumerate(kept):
            wanted = sum(gamma ** (j - i) * rewards[b, kept[j]].item() for j in range(i, len(kept)))
            assert returns[b, t].item() == pytest.approx(wanted, abs=1e-12)
            assert advantages[b, t].item() == pytest.approx(wanted - baseline[b, t].item(), abs=1e-12)
    assert not advantages[~mask].any() and not returns[~mask].any()


# --- groups -------------------------------------------------------------------------------------------


def test_groups_by_hand() -> None:
    # groups (1, 2, 6) and (5, 5, 2)
    scores = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 2.0], dtype=torch.float64)
    assert rloo_advantages(scores, 3).tolist() == [-3.0, -1.5, 4.5, 1.5, 1.5, -3.0]
    # means 3 and 4, variances (4 + 1 + 9) / 3 and (1 + 1 + 4) / 3
    sd = math.sqrt(14 / 3), math.sqrt(2)
    wanted = [-2 / sd[0], -1 / sd[0], 3 / sd[0], 1 / sd[1], 1 / sd[1], -2 / sd[1]]
    assert grpo_advantages(scores, 3).tolist() == pytest.approx(wanted, abs=2e-4)
    assert drgrpo_advantages(scores, 3).tolist() == [-2.0, -1.0, 3.0, 1.0, 1.0, -2.0]
    # mutations: Bessel's correction, and groups that are strided instead of adjacent
    assert grpo_advantages(scores, 3).tolist() != pytest.approx(
        [w * math.sqrt(2 / 3) for w in wanted], abs=1e-1
    )
    strided = rloo_advantages(scores.view(3, 2).T.flatten(), 3).view(2, 3).T.flatten()
    assert strided.tolist() != rloo_advantages(scores, 3).tolist()


def test_the_best_of_a_group_by_hand() -> None:
    """The first of equal scores; a group below zero has a best response too."""
    scores = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 2.0, -3.0, -2.0, -2.0])
    assert best_of_group(scores, 3).tolist() == [0, 0, 1, 1, 0, 0, 0, 1, 0]
    assert best_of_group(torch.zeros(4), 2).tolist() == [1, 0, 1, 0]
    assert best_of_group(scores, 3).dtype == scores.dtype


@pytest.mark.parametrize("size", [2, 3, 8])
def test_groups_against_a_loop(size: int) -> None:
    scores = scores_of(size, 5, size)
    values, rloo, grpo = scores.tolist(), rloo_advantages(scores, size), grpo_advantages(scores, size)
    drgrpo = drgrpo_advantages(scores, size)
    for i, score in enumerate(values):
        group = values[i // size * size : (i // size + 1) * size]
        others = [x for j, x in enumerate(group) if j != i % size]
        mean = sum(group) / size
        sd = math.sqrt(sum((x - mean) ** 2 for x in group) / size)
        assert rloo[i].item() == pytest.approx(score - sum(others) / (size - 1), abs=1e-12)
        assert grpo[i].item() == pytest.approx((score - mean) / (sd + 1e-4), abs=1e-12)
        assert drgrpo[i].item() == pytest.approx(score - mean, abs=1e-12)
        assert abs(drgrpo[i].item() - grpo[i].item()) > 1e-6, "mutation: the standard deviation"
        assert best_of_group(scores, size)[i].item() == (group.index(max(group)) == i % size)


@pytest.mark.parametrize("size", [2, 4])
def test_properties_of_groups(size: int) -> None:
    scores = scores_of(9, 6, size)
    rloo, grpo = rloo_advantages(scores, size), grpo_advantages(scores, size)
    assert torch.allclose(rloo.view(-1, size).sum(1), torch.zeros(6, dtype=torch.float64), atol=1e-12)
    rows = scores.view(-1, size)
    centred = (rows - rows.mean(1, keepdim=True)).flatten()
    assert torch.allclose(rloo, centred * size / (size - 1), atol=1e-12)
    assert torch.allclose(grpo.view(-1, size).std(1, correction=0), torch.ones(6).double(), atol=1e-2)
    # A prompt's difficulty drops out of all, its scale only out of GRPO.
    shift = torch.arange(6).repeat_interleave(size) * 10.0
    assert torch.allclose(rloo_advantages(scores + shift, size), rloo, atol=1e-10)
    assert torch.allclose(grpo_advantages(5 * scores + shift, size), grpo, atol=1e-3)
    assert torch.allclose(rloo_advantages(5 * scores, size), 5 * rloo, atol=1e-10)
    assert torch.allclose(drgrpo_advantages(5 * scores + shift, size), 5 * centred, atol=1e-10)
    equal = torch.full((size,), 0.1)
    assert rloo_advantages(equal, size).abs().max() < 1e-6 and grpo_advantages(equal, size).abs().max() < 1e-3


@pytest.mark.parametrize("size", [1, 0, 4])
def test_no_groups(size: int) -> None:
    for function in (rloo_advantages, grpo_advantages, drgrpo_advantages, best_of_group):
        with pytest.raises(ValueError, match=f"6 scores are not groups of {size}"):
            function(torch.zeros(6), size)


def policy_gradient(logits: torch.Tensor, rewards: torch.Tensor, size: int, estimator) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """The expected gradient of mean_i A_i log p(a_i) over every group of `size` actions, exactly."""
    p = logits.softmax(-1)
    total = torch.zeros_like(p)
    for actions in itertools.product(range(len(p)), repeat=size):
        drawn = torch.tensor(actions)
        score = (
            torch.nn.functional.one_hot(drawn, len(p)).to(p) - p
        )  # gradient of log p(a) with respect to the logits
        total += p[drawn].prod() * (estimator(rewards[drawn])[:, None] * score).mean(0)
    return total


def test_leaving_oneself_out_keeps_the_policy_gradient_unbiased() -> None:
    g = torch.Generator().manual_seed(0)
    logits, rewards = (torch.randn(4, generator=g, dtype=torch.float64) for _ in range(2))
    p = logits.softmax(-1)
    exact = p * (rewards - (p * rewards).sum())
    rloo = policy_gradient(logits, rewards, 3, lambda r: rloo_advantages(r, 3))
    assert torch.allclose(rloo, exact, atol=1e-12)
    assert torch.allclose(policy_gradient(logits, rewards, 1, lambda r: r), exact, atol=1e-12)
    # mutation: a baseline that includes the response itself scales the gradient by (k - 1) / k
    own = policy_gradient(logits, rewards, 3, lambda r: r - r.mean())
    assert torch.allclose(own, exact * 2 / 3, atol=1e-12) and not torch.allclose(own, exact, atol=1e-3)


def test_leaving_oneself_out_lowers_the_variance() -> None:
    """The variance of the estimated gradient, compared with no baseline, when rewards are far from zero."""
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    rewards, p = torch.tensor([10.0, 11.0, 9.0], dtype=torch.float64), None
    p = logits.softmax(-1)

    def spread(estimator) -> float:  # type: ignore[no-untyped-def]
        squares = torch.zeros((), dtype=torch.float64)
        for actions in itertools.product(range(3), repeat=2):
            drawn = torch.tensor(actions)
            score = torch.nn.functional.one_hot(drawn, 3).to(p) - p
            squares += p[drawn].prod() * (estimator(rewards[drawn])[:, None] * score).mean(0).square().sum()
        return squares.item()

    assert spread(lambda r: rloo_advantages(r, 2)) < 0.1 * spread(lambda r: r)


# --- penalties ----------------------------------------------------------------------------------------


def test_penalties_by_hand() -> None:
    scores = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    finished, lengths = torch.tensor([True, False, True]), torch.tensor([2, 4, 10])
    knobs = {"missing_eos_penalty": 1.5, "missing_eos_score": None, "length_penalty": 0.1}
    # 1 - 0.2; 2 - 1.5 - 0.4; 3 - 1
    wanted = [0.8, 0.1, 2.0]
    assert penalised_scores(scores, finished, lengths, **knobs).tolist() == pytest.approx(wanted)
    replaced = penalised_scores(
        scores, finished, lengths, **{**knobs, "missing_eos_score": -1.0, "missing_eos_penalty": 0.0}
    )
    assert replaced.tolist() == pytest.approx([0.8, -1.0, 2.0])
    free = {"missing_eos_penalty": 0.0, "missing_eos_score": None, "length_penalty": 0.0}
    assert torch.equal(penalised_scores(scores, finished, lengths, **free), scores)
    # mutation: penalising the responses that did end
    assert penalised_scores(scores, ~finished, lengths, **knobs).tolist() != pytest.approx(wanted)
