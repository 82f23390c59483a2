"""What doctor and plan say of models: the memory they take, against real tensors, and what the probe found."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from jobs import job_context
from torch import nn
from zoo.family import family

from rlaif.app.plan import models
from rlaif.app.plan.models import (
    ModelMemory,
    attention_path,
    check_memory,
    check_training,
    models_of,
    verdict_lines,
)
from rlaif.errors import UserError
from rlaif.models.load import ModelSpec
from rlaif.models.parts.probe import Verdict
from rlaif.models.parts.rows import RowsKind
from rlaif.models.parts.shapes import CacheShape
from rlaif.models.sizes import ModelSizes
from rlaif.stages.common.stage import Work
from rlaif.stages.graph import Planned

FOUND = Verdict(True, True, RowsKind("self_attn", "norm", "o_proj"), (CacheShape(3, 64, 64),) * 30, "")


def _bytes(module: nn.Module) -> int:
    return sum(weight.nbytes for weight in module.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("trainable", ["top:2", "full", "lora:3"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_memory_is_that_of_a_real_trunk_and_role(name, trainable, dtype) -> None:
    """`gpt2` keeps linear layers in a class of its own; of `mixtral`'s experts a token uses some, all are stored."""
    trunk = family(name).trunk(trainable, getattr(torch, dtype))
    spec = ModelSpec("hub", name, None, trainable, dtype, "cpu", False, 4.0)
    found = ModelMemory.of(spec, ModelSizes.of(family(name).whole.config))
    role = trunk.new_top()
    # A top owns the final norm too, which is not counted: 4 bytes more for each of its weights.
    assert found.base == pytest.approx(_bytes(trunk.lm), abs=4 * 64)
    assert found.role == pytest.approx(_bytes(role), abs=4 * 64)
    for weight in role.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer = torch.optim.AdamW(role.parameters())
    optimizer.step()
    moments = sum(s[k].nbytes for s in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq"))
    gradients = sum(weight.grad.nbytes for weight in role.parameters())
    assert found.training == pytest.approx(moments + gradients, abs=12 * 64)
    assert found.reading == 4 * sum(weight.numel() for weight in family(name).whole.parameters())


@pytest.fixture
def ctx(tmp_path):
    return job_context(["profile=smoke", "stage=rm", "trainer=cpu", f"paths.root={tmp_path}"])


def _have(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    monkeypatch.setattr(models, "memory_bytes", lambda device: size)


def test_weights_that_do_not_fit_are_refused(ctx, monkeypatch) -> None:
    memory = models.memory_of(ctx.model_spec)
    for size in (memory.reading, None):
        _have(monkeypatch, size)
        check_memory(ctx)
    _have(monkeypatch, memory.reading - 1)
    with pytest.raises(
        UserError, match=r"model.name=tiny: \d+ KiB of weights.* memory of this machine: write a smaller"
    ):
        check_memory(ctx)


def test_training_that_does_not_fit_is_refused_unless_nothing_is_left_to_train(ctx, monkeypatch) -> None:
    memory = models.memory_of(ctx.model_spec)
    row = Planned("rm", "rm-0", exists=False, work=Work(ranked=10.0))
    _have(monkeypatch, memory.trained)
    check_training(ctx, [row])
    _have(monkeypatch, memory.trained - 1)
    for done in (replace(row, exists=True), replace(row, work=Work(forward=10.0))):
        check_training(ctx, [done])
    with pytest.raises(
        UserError, match=r"AdamW's state with model.trainable=top:1 .*write model.trainable=top:1 or lora:8"
    ):
        check_training(ctx, [row])


def test_each_model_of_a_job_is_told_once(tmp_path) -> None:
    words = ["profile=smoke", "trainer=cpu", f"paths.root={tmp_path}", "judge=reference"]
    assert list(models_of(job_context(words))) == ["policy"], "the labeler runs on the policy's base"
    other = [*words, "models.tiny=false", "model=hub", f"model.name={tmp_path}", "model.trainable=full"]
    other += ["backend.source=embedded", "backend.name=embedded"]
    assert list(models_of(job_context(other))) == ["policy", "labeler"]


@pytest.mark.parametrize(
    "changed, path, said",
    [
        (
            {},
            "packed rows",
            ["22 KiB of keys and values per token", "top:K: possible", "bfloat16: possible"],
        ),
        (
            {
                "patterns": False,
                "rows": None,
                "shapes": (),
                "why": "packed pairs: logits differ by 2 of their spread",
            },
            "one text per row",
            [
                "one text per row, .*packed pairs: logits differ by 2",
                "top:K: possible",
                "last layer: at all positions",
            ],
        ),
        (
            {"split": False, "why": "split: KeyError"},
            "packed rows",
            [r"top:K: not possible.*split: KeyError.*lora:R"],
        ),
        (
            {"bf16": "its forward: RuntimeError"},
            "packed rows",
            [r"bfloat16: not possible \(its forward: RuntimeError"],
        ),
    ],
)
def test_the_probes_verdict_in_words(changed, path, said) -> None:
    verdict = replace(FOUND, **changed)
    lines = verdict_lines(verdict, "bfloat16")
    assert attention_path(verdict) == path and len(lines) == 4
    for words in said:
        assert any(re.search(words, line) for line in lines), words
