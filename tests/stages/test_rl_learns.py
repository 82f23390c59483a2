"""What RL learns from the rewards of the stage, with the penalties that every reward meets."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
from ppo_cases import ALGORITHMS, letters, make_module, train

from rlaif.stages.common.context import Context
from rlaif.stages.common.rewards.kinds import make_reward

LIMIT = 24


@pytest.fixture
def short_task(context, tmp_path: Path) -> Callable[..., Context]:
    """`short_task(*overrides)`: a task whose references have 4 to 16 tokens of at most 24."""
    rows = [{"prompt": f"Say {i} letters.", "reference": "x" * (3 + i % 13)} for i in range(80)]
    file = tmp_path / "short.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = [
        "task=custom",
        f"task.path={file}",
        f"task.max_response_tokens={LIMIT}",
        "task.validation_fraction=0.5",
    ]
    return lambda *words: context(*own, *words)


def test_smoke_says_that_it_cannot_learn(run, pipeline) -> None:
    (said,) = [row["text"] for row in pipeline.alerts if row["title"] == "a policy that cannot learn"]
    assert "entropy 5.5" in said and "of at most 5.56 nats" in said and "profile=demo" in said


def lengths_of(model, ctx: Context, folder: Path, algorithm: str, iterations: int) -> list[float]:
    """Mean length in each iteration, from a policy that ends at every seventh token, under RL's own penalty."""
    options, critic = ALGORITHMS[algorithm]
    module = make_module(
        model,
        iterations=iterations,
        reward=make_reward(ctx, {}),
        critic=critic,
        options=replace(
            options, missing_eos_penalty=ctx.cfg.rl.missing_eos_penalty, max_response_tokens=LIMIT
        ),
        lr=1e-2,
        rollouts=128,
        eos_ids=tuple(letters(model).nonzero().flatten().tolist()),
        new_tokens=LIMIT,
    )
    train(module, folder, iterations)
    assert 0.85 < module.history[0]["rl/eos_rate"] < 0.97, "the limit is met, and the penalty paid"
    return [row["rl/response_length"] for row in module.history]


def test_a_reward_of_length_makes_responses_longer_for_all_that_a_missing_end_costs(
    short_task, tiny_model, tmp_path
) -> None:
    model = tiny_model("top:1")
    lengths = lengths_of(model, short_task("reward=length"), tmp_path / "scaled", "reinforce", 12)
    assert fmean(lengths[-4:]) > lengths[0] + 4
    # From 0 to 1, as it comes, a third of a response's length weighs a ninth of its missing end.
    ctx = short_task("reward=length", "reward.normalize_rows=0")
    lengths = lengths_of(model, ctx, tmp_path / "raw", "reinforce", 12)
    assert fmean(lengths[-4:]) < lengths[0] - 1


def test_dr_grpo_learns_it_too(short_task, tiny_model, tmp_path) -> None:
    ctx = short_task("reward=length")
    lengths = lengths_of(tiny_model("top:1"), ctx, tmp_path, "drgrpo", 18)
    assert fmean(lengths[-4:]) > lengths[0] + 4
