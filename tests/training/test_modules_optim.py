"""The schedule, the parameter groups and what picks out the response, by hand."""

import math

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from rlaif.data.datamodule import EncodedRow, collate_sequences
from rlaif.stages.common.training.logprobs import response_hidden, response_logprobs, scatter_counted
from rlaif.stages.common.training.optim import OptimOptions, build_optimizer, clip_each_group, schedule_factor


def _options(schedule, warmup, total, lr=1.0):
    return OptimOptions(lr, 0.0, 1e-8, schedule, warmup, total, gradient_clip=0.0)


def test_schedules_by_hand():
    linear = schedule_factor(_options("linear", 0.0, 4))
    assert [linear(step) for step in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    cosine = schedule_factor(_options("cosine", 0.0, 4))
    # 0.5 (1 + cos(pi s / 4)): cos is 1, sqrt(1/2), 0, -sqrt(1/2), -1.
    half = math.sqrt(0.5)
    expected = [1.0, 0.5 * (1 + half), 0.5, 0.5 * (1 - half), 0.0]
    assert [cosine(step) for step in range(5)] == pytest.approx(expected)
    constant = schedule_factor(_options("constant", 0.0, 4))
    assert [constant(step) for step in (0, 3, 9)] == [1.0, 1.0, 1.0]


def test_warmup_is_linear_and_reaches_the_peak():
    # 20 % of 10 steps: two steps of warm-up, 1/2 and 2/2.
    factor = schedule_factor(_options("linear", 0.2, 10))
    assert [factor(0), factor(1)] == [0.5, 1.0]
    # The decay takes the other eight.
    assert [factor(step) for step in range(2, 11)] == pytest.approx([1 - i / 8 for i in range(9)])


@pytest.mark.parametrize("warmup", [0, 3, 10])
def test_schedules_are_those_of_transformers(warmup):
    """Theirs counts the step before: in the warm-up it is one step behind, where its first rate is zero."""
    total = 40
    for name, theirs in (
        ("cosine", get_cosine_schedule_with_warmup),
        ("linear", get_linear_schedule_with_warmup),
    ):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        expected = theirs(optimizer, warmup, total).lr_lambdas[0]
        factor = schedule_factor(_options(name, warmup / total, total))
        assert [factor(step) for step in range(warmup)] == [expected(step + 1) for step in range(warmup)]
        decay = range(warmup, total + 1)  # later, their cosine would rise again
        assert [factor(step) for step in decay] == pytest.approx([expected(s) for s in decay], abs=1e-12)
    # By hand: 0.5 (1 + cos(pi (s - w) / (T - w))), which is 1 at the warm-up's end and half way 0.5.
    middle = (warmup + total) / 2
    cosine = schedule_factor(_options("cosine", warmup / total, total))
    assert cosine(warmup) == 1.0
    assert cosine(middle) == pytest.approx(0.5)
    counted_from_zero = 0.5 * (1 + math.cos(math.pi * middle / total))
    assert (cosine(middle) == pytest.approx(counted_from_zero, abs=1e-2)) == (warmup == 0)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="triangular"):
        _options("triangular", 0.0, 1)


def test_groups_have_their_own_learning_rate():
    first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    built = build_optimizer([([first], 1.0), ([second], 10.0)], _options("constant", 0.0, 1, lr=0.02))
    assert [group["lr"] for group in built["optimizer"].param_groups] == pytest.approx([0.02, 0.2])
    assert built["lr_scheduler"]["interval"] == "step"


def test_each_group_is_clipped_on_its_own():
    policy, value = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [policy]}, {"params": [value]}], lr=1.0)

    def gradients():
        policy.grad, value.grad = torch.tensor([0.3, 0.4]), torch.tensor([400.0])

    gradients()
    clip_each_group(optimizer, 1.0)
    # The policy's norm is 0.5 and stays; the critic's 400 becomes 1.
    assert policy.grad.tolist() == pytest.approx([0.3, 0.4])
    assert value.grad.tolist() == pytest.approx([1.0], rel=1e-5)
    gradients()
    torch.nn.utils.clip_grad_norm_([policy, value], 1.0)  # one norm for all starves the policy
    assert policy.grad.norm() < 0.01
    gradients()
    clip_each_group(optimizer, 0.0)
    assert value.grad.item() == 400.0


@pytest.mark.parametrize("trainable", ["full", "top:1"])
def test_response_logprobs_equal_a_pass_of_each_row_alone(tiny_model, trainable):
    model = tiny_model(trainable)
    top = model.trunk.new_top()
    with torch.no_grad():
        top.norm.weight.mul_(10)  # the tiny model's distributions are nearly uniform otherwise
    generator = torch.Generator().manual_seed(1)
    rows = []
    for prompt, response in ((3, 5), (1, 1), (7, 2), (2, 9)):
        ids = torch.randint(3, 250, (prompt + response,), generator=generator)
        features = model.trunk(ids[None])[0]
        rows.append(EncodedRow(ids, features[:prompt], features[prompt:]))
    batch = collate_sequences(rows)
    with torch.no_grad():
        ours = response_logprobs(top, batch, temperature=0.7)
        for row, got in zip(rows, ours, strict=True):
            logits = top.logits(top(torch.cat((row.prompt, row.response))[None]))[0] / 0.7
            expected = torch.zeros(batch.ids.shape[1])
            for t in range(row.prompt_length, len(row.ids)):
                expected[t] = logits[t - 1].log_softmax(-1)[row.ids[t]]
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
            late = logits[row.prompt_length].log_softmax(-1)[row.ids[row.prompt_length]]
            assert (late - expected[row.prompt_length]).abs() > 1e-3, "one position late must be seen"


def test_scatter_counted_puts_values_back_in_place():
    mask = torch.tensor([[False, True, True], [False, False, True]])
    assert scatter_counted(torch.tensor([1.0, 2.0, 3.0]), mask).tolist() == [[0, 1, 2], [0, 0, 3]]


def test_hidden_states_come_row_by_row(tiny_model):
    model = tiny_model("top:2")
    top = model.trunk.new_top()
    ids = torch.randint(3, 250, (2, 6), generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 2:4] = mask[1, 1:6] = True
    features = model.trunk(ids)
    with torch.no_grad():
        whole = top(features)
        expected = torch.cat([whole[0, 1:3], whole[1, 0:5]])
        torch.testing.assert_close(response_hidden(top, features, mask), expected, rtol=0, atol=1e-5)
