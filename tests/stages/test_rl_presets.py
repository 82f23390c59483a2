"""Every preset of `rl` runs through its stage, and combinations that make no sense are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from rlaif.app.compose import resolved
from rlaif.errors import UserError
from rlaif.ops import ALGORITHMS
from rlaif.options.read import read
from rlaif.options.training import RLOptions
from rlaif.stages.rl.online.options import check_rl
from rlaif.stages.rl.stage import family
from rlaif.tracking.glossary import unknown
from rlaif.tracking.runs import RunRecord

CONF = Path(__file__).resolve().parents[2] / "conf"
EVERY = sorted(file.stem for file in (CONF / "rl").glob("[!_]*.yaml"))
PRESETS = [
    name for name in EVERY if name not in ("best_of_n", "dpo", "online_dpo", "sft_preferred", "sft_revisions")
]


@pytest.fixture(scope="module")
def node() -> Callable[..., Any]:
    """`node("rloo", beta=0.1)`: the preset's options with these changed, as a job reads them."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = {name: resolved(compose("config", overrides=[f"rl={name}"]).rl) for name in EVERY}
    return lambda preset, **changes: read(RLOptions, composed[preset] | changes, "rl")


def test_the_presets_are_those_of_the_interface() -> None:
    assert EVERY == [
        "best_of_n",
        "dpo",
        "drgrpo",
        "grpo",
        "online_dpo",
        "ppo",
        "ppo_huang2024",
        "raft",
        "reinforce",
        "reinforce_lee2023",
        "rloo",
        "sft_preferred",
        "sft_revisions",
    ]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_runs(pipeline: RunRecord, run: Callable[..., RunRecord], node, preset: str) -> None:
    # A seed of its own: another test may have trained the same policy in this root.
    record = run("stage=rl", f"rl={preset}", "rl.num_epochs=1", "seeds.rl=77")
    summary, values = record.summary, node(preset)
    assert summary["rl/iterations"] == 2
    assert abs(summary["rl/ratio_first"] - 1) <= 1e-5
    assert summary["rl/kl_coefficient"] == values.beta
    assert ("rl/explained_variance" in summary) == ("rl/value_loss" in summary) == (values.value != "none")
    assert ("rl/kl_loss" in summary) == (values.kl == "loss")
    assert ("rl/clip_fraction" in summary) == (values.loss == "clip")
    assert unknown([name for name in summary if name.startswith("rl/")]) == []
    assert [row.reused for row in record.lineage] == [False, *[True] * 4], "only RL differs"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_goes_together(node, preset: str) -> None:
    values = node(preset)
    check_rl(values)
    assert values.algorithm == preset.split("_")[0]
    assert values.advantage == ALGORITHMS[values.algorithm].advantage


@pytest.mark.parametrize(
    ("preset", "changes", "words"),
    [
        ("ppo", {"algorithm": "rloo"}, "rl.algorithm=rloo .* rl.advantage=gae: write rl=rloo"),
        ("ppo", {"advantage": "grpo"}, "rl.algorithm=ppo .* rl.advantage=grpo: write rl=ppo"),
        ("ppo", {"value": "both"}, "rl.value=both .*: write shared, separate or none"),
        ("ppo", {"loss": "mse"}, "rl.loss=mse .*: write clip, reinforce or nll"),
        ("ppo", {"loss_mean": "row"}, "rl.loss_mean=row .*: write token, sequence or constant"),
        ("ppo", {"kl": "both"}, "rl.kl=both .*: write reward or loss"),
        ("ppo", {"kl_estimator": "k4"}, "rl.kl_estimator=k4 .*: write k1, k2 or k3"),
        ("ppo", {"kl_controller": "pid"}, "rl.kl_controller=pid .*: write fixed or adaptive"),
        ("ppo", {"value": "none"}, "rl.advantage=gae needs a critic: write rl.value=shared"),
        ("rloo", {"value": "shared"}, "rl.advantage=rloo reads no critic: write rl.value=none"),
        ("drgrpo", {"advantage": "grpo"}, "rl.algorithm=drgrpo .* rl.advantage=grpo: write rl=drgrpo"),
        ("drgrpo", {"value": "shared"}, "rl.advantage=drgrpo reads no critic: write rl.value=none"),
        ("rloo", {"samples_per_prompt": 1, "minibatch_rollouts": 8}, "rl.samples_per_prompt=1 .*: write 2"),
        ("grpo", {"samples_per_prompt": 1, "minibatch_rollouts": 8}, "rl.samples_per_prompt=1 .*: write 2"),
        ("grpo", {"whiten_rewards": True}, "rl.whiten_rewards .*: write rl.whiten_rewards=false"),
        ("rloo", {"gamma": 0.9}, "rl.gamma=0.9 .*: write rl.gamma=1"),
        ("rloo", {"ppo_epochs": 4}, "rl.ppo_epochs=4 .*: write rl.ppo_epochs=1 or rl.loss=clip"),
        ("raft", {"loss": "clip"}, "rl.loss=clip .* rl.advantage=raft only chooses .*: write rl.loss=nll"),
        ("grpo", {"loss": "nll"}, "rl.loss=nll .* rl.advantage=grpo chooses none: write rl=raft"),
        (
            "raft",
            {"whiten_advantages": True},
            "rl.whiten_advantages=true .*: write rl.whiten_advantages=false",
        ),
        ("raft", {"minibatch_rollouts": 2}, "rl.minibatch_rollouts=2 must be a multiple .*_per_prompt=4"),
        ("raft", {"value": "shared"}, "rl.advantage=raft reads no critic: write rl.value=none"),
        ("ppo", {"kl": "loss"}, "rl.kl_estimator=k1 .*: write rl.kl_estimator=k2 or k3"),
        (
            "ppo",
            {"kl_estimator": "k2"},
            "rl.kl_estimator=k2 as a reward .*: write rl.kl_estimator=k1, or rl.kl=loss",
        ),
        (
            "rloo",
            {"kl": "reward", "kl_estimator": "k3"},
            "rl.kl_estimator=k3 as a reward .*: write rl.kl_estimator=k1",
        ),
        ("grpo", {"kl": "reward"}, "rl.kl_estimator=k3 as a reward"),
        ("ppo", {"kl_estimator": "k3", "kl_controller": "adaptive"}, "rl.kl_estimator=k3 as a reward"),
        ("reinforce_lee2023", {"beta": 1.0}, "rl.convex_kl=true .*: write an rl.beta below 1"),
        ("reinforce_lee2023", {"kl_controller": "adaptive"}, "rl.convex_kl=true .* rl.kl_controller=fixed"),
        ("ppo", {"kl_controller": "adaptive", "beta": 0.0}, "rl.kl_controller=adaptive .* above 0"),
        ("ppo", {"kl_controller": "adaptive", "kl_target": 0.0}, "rl.kl_target=0.0 .* above 0"),
        ("ppo", {"kl_controller": "adaptive", "kl_horizon": 0}, "rl.kl_horizon=0 .* above 0"),
        ("ppo", {"beta": -0.1}, "rl.beta=-0.1 .*: write a number from 0"),
        ("ppo", {"max_kl": 0.0}, "rl.max_kl=0.0 .*: write a number above 0, or null"),
        ("ppo", {"temperature": 0.0}, "rl.temperature=0.0 .*: write a number above 0"),
        ("ppo", {"minibatch_rollouts": 0}, "rl.minibatch_rollouts=0 .*: write a whole number from 1"),
        ("ppo", {"minibatch_rollouts": 5}, "rl.minibatch_rollouts must divide"),
        ("ppo", {"missing_eos_score": -1.0}, "rl.missing_eos_score .*: write rl.missing_eos_penalty=0"),
    ],
)
def test_what_makes_no_sense_is_refused(node, preset: str, changes: dict[str, Any], words: str) -> None:
    check_rl(node(preset))
    with pytest.raises(UserError, match=words):
        check_rl(node(preset, **changes))


def test_an_unknown_algorithm_is_named() -> None:
    with pytest.raises(
        UserError,
        match="rl.algorithm=a2c .*: write ppo, reinforce, rloo, grpo, drgrpo, raft, dpo, online_dpo, best_of_n or "
        "sft_revisions",
    ):
        family("a2c")
    assert family("ppo") is not family("dpo")


def test_a_refusal_comes_before_anything_is_built(run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rl.samples_per_prompt=1"):
        run("stage=rl", "rl=rloo", "rl.samples_per_prompt=1", root=tmp_path / "root")
    assert not list((tmp_path / "root").glob("artifacts/*-*"))
