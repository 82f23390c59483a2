"""From raw numbers to rewards, by hand."""

from __future__ import annotations

import math
from statistics import fmean, pvariance, variance

import pytest
import torch

from rlaif.ops import combine_members, empty_last, length_reward

# Three members and two responses.
MEMBERS = torch.tensor([[1.0, -2.0], [2.0, 0.0], [6.0, 2.0]])


@pytest.mark.parametrize(
    ("how", "coefficient", "wanted"),
    [
        ("mean", 9.0, [3.0, 0.0]),
        ("min", 9.0, [1.0, -2.0]),
        # Variances 14/3 and 8/3.
        ("mean_minus_variance", 0.0, [3.0, 0.0]),
        ("mean_minus_variance", 0.5, [3.0 - 7 / 3, -4 / 3]),
    ],
)
def test_members_by_hand(how, coefficient, wanted) -> None:
    assert combine_members(MEMBERS, how, coefficient=coefficient).tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("shape", [(2, 7), (5, 3, 2)])
def test_members_by_a_plain_loop(shape) -> None:
    rewards = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    flat = rewards.reshape(shape[0], -1)
    columns = [flat[:, i].tolist() for i in range(flat.shape[1])]
    got = combine_members(rewards, "mean_minus_variance", coefficient=0.7)
    assert got.shape == shape[1:]
    assert got.flatten().tolist() == pytest.approx([fmean(c) - 0.7 * pvariance(c) for c in columns])
    assert got.flatten().tolist() != pytest.approx([fmean(c) - 0.7 * variance(c) for c in columns]), "Bessel"
    least = combine_members(rewards, "min", coefficient=0.0)
    assert least.flatten().tolist() == [min(c) for c in columns]
    # Members that agree are one reward model, whatever the rule.
    same = rewards[:1].expand(shape)
    for how in ("mean", "min", "mean_minus_variance"):
        torch.testing.assert_close(combine_members(same, how, coefficient=3.0), rewards[0])


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="max"):
        combine_members(MEMBERS, "max", coefficient=0.0)


def test_length_by_hand() -> None:
    tokens = torch.tensor([1, 8, 16, 32])
    assert length_reward(tokens, limit=32, target=None).tolist() == [1 / 32, 0.25, 0.5, 1.0]
    assert length_reward(tokens, limit=32, target=16).tolist() == [17 / 32, 0.75, 1.0, 0.5]
    assert length_reward(tokens, limit=32, target=1).tolist() == [1.0, 25 / 32, 17 / 32, 1 / 32]


def test_an_empty_response_is_below_every_text_and_as_good_as_another() -> None:
    rewards = torch.tensor([[0.4, 3.0], [-1.2, 0.0], [2.0, -0.3]])
    empty = torch.tensor([[False, True], [False, True], [True, False]])
    got = empty_last(rewards, empty)
    assert torch.equal(got[~empty], rewards[~empty]), "texts keep their rewards"
    assert len(set(got[empty].tolist())) == 1 and float(got[empty][0]) == pytest.approx(-1.2012, abs=1e-6)
    lower = empty_last(torch.tensor([-9.0, 1.0, 5.0]), torch.tensor([True, False, True]))
    assert lower.tolist() == [-9.0, 1.0, -9.0], "nor is its own score raised"
    # At this scale, fp32 cannot resolve thousandths.
    large = empty_last(torch.tensor([2e6, -3e6, 4e6]), torch.tensor([False, False, True]))
    assert large[2] < large[1]
    for all_or_none in (torch.zeros(3, 2, dtype=torch.bool), torch.ones(3, 2, dtype=torch.bool)):
        wanted = rewards if not all_or_none.any() else torch.full((3, 2), -1.2)
        assert torch.equal(empty_last(rewards, all_or_none), wanted)
    assert empty_last(torch.tensor([math.nan, 1.0]), torch.tensor([False, True])).isnan().all(), (
        "seen as broken"
    )
