"""Losses, gradients and rewards that are not finite end a run before anything is made of them."""

from __future__ import annotations

import pytest
import torch
from ppo_cases import make_module, train

from rlaif.data.datamodule import TextDataModule
from rlaif.errors import UserError
from rlaif.stages.common.training.likelihood import LikelihoodModule
from rlaif.stages.common.training.optim import OptimOptions, require_finite


def test_a_value_is_named_with_its_place() -> None:
    require_finite(torch.tensor([1.0, -3e38]), "reward", "rl at iteration 2")
    with pytest.raises(UserError, match=r"rl at iteration 2: the reward is not finite .* in 2 of 3 places"):
        require_finite(torch.tensor([float("nan"), 1.0, float("inf")]), "reward", "rl at iteration 2")


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_training_stops_at_the_step_whose_loss_is_not_finite(
    tiny_model, encode_row, make_bare_trainer, clip
) -> None:
    model = tiny_model("top:1")
    top = model.trunk.new_top()
    rows = [encode_row(model, "ask", f"say {i}") for i in range(4)]
    before = [parameter.detach().clone() for parameter in top.parameters()]
    data = TextDataModule.sft_view(rows, rows, batch_size=2, micro_batch_size=2, seed=0)
    module = LikelihoodModule(top, OptimOptions(1e-3, 0.0, 1e-8, "constant", 0.0, 8, gradient_clip=clip))
    with torch.no_grad():
        top.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="sft at step 1: the loss is not finite"):
        make_bare_trainer(2, limit_val_batches=0).fit(module, data)
    moved = [not torch.equal(a, b) for a, b in zip(before, top.parameters(), strict=True)]
    assert sum(moved) == 1, "the step was not taken: the spoiled weight alone differs"


def test_rl_names_the_iteration_and_what_is_not_finite(tiny_model, tmp_path) -> None:
    def spoiled(rollout):
        scores = torch.ones(len(rollout))
        scores[0] = float("nan")
        return scores

    module = make_module(tiny_model("top:1"), iterations=2, critic="shared", reward=spoiled)
    with pytest.raises(UserError, match=r"rl at iteration 1: the reward is not finite .* in 1 of \d+ places"):
        train(module, tmp_path / "reward", 2)
    module = make_module(tiny_model("top:1"), iterations=2, critic="shared")
    with torch.no_grad():
        module.reference.norm.weight[0] = float("inf")
    with pytest.raises(
        UserError, match="rl at iteration 1: the reference policy's log-probability is not finite"
    ):
        train(module, tmp_path / "reference", 2)
    assert not list(tmp_path.rglob("*.ckpt")) and not module.history
