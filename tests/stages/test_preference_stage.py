"""rl=dpo as a stage: the pairs and labels of a reward model, every loss, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from jobs import job_context

from rlaif.errors import UserError
from rlaif.ops import PREFERENCE_LOSSES
from rlaif.stages.eval.section import same_judge
from rlaif.stages.graph import Graph
from rlaif.stages.registry import STAGES
from rlaif.tracking.glossary import unknown
from rlaif.tracking.runs import RunRecord

OWN = {"robust": ["rl.label_smoothing=0.1"], "orpo": ["rl.nll_weight=1"], "sft": ["rl.nll_weight=1"]}


@pytest.mark.parametrize("loss", list(PREFERENCE_LOSSES))
def test_every_loss_trains_on_the_reward_models_pairs(
    pipeline: RunRecord, run: Callable[..., RunRecord], loss: str
) -> None:
    # A seed of its own: another test may have trained the same policy in this root.
    record = run("stage=rl", "rl=dpo", "seeds.rl=78", f"rl.loss={loss}", *OWN.get(loss, []))
    summary = record.summary
    assert [row.kind for row in record.lineage] == ["rl", "sample", "label", "sft"]
    assert [row.reused for row in record.lineage] == [False, True, True, True], "no reward model is built"
    assert summary["rl/train_pairs"] == pipeline.summary["rm/train_pairs"]
    assert summary["rl/label_alignment"] == pipeline.summary["rm/label_alignment"]
    assert math.isfinite(summary["rl/loss"]) and math.isfinite(summary["rl/val_loss"])
    assert unknown([name for name in summary if name.startswith("rl/")]) == []
    steps = [row for row in record.history if "rl/loss" in row]
    assert len(steps) == 2 * math.ceil(summary["rl/train_pairs"] / 32)
    assert steps[0]["rl/preferred_log_ratio"] == pytest.approx(0, abs=0.02), "it starts at the reference"


def test_labels_are_those_of_the_source(run: Callable[..., RunRecord]) -> None:
    """People's labels need no labeler; noise turns some of the same pairs' labels."""
    gold = run("stage=rl", "rl=dpo", "rm.labels=gold")
    assert [row.kind for row in gold.lineage] == ["rl", "sample", "sft"]
    assert gold.summary["rl/label_alignment"] == 1.0
    noisy = run("stage=rl", "rl=dpo", "rm.labels=gold", "rm.label_noise=0.4")
    turned = noisy.summary["rl/flipped_pairs"]
    assert 0 < turned < gold.summary["rl/train_pairs"] == noisy.summary["rl/train_pairs"]
    few = run("stage=rl", "rl=dpo", "rm.labels=gold", "rm.n=8")
    assert few.summary["rl/train_pairs"] == 8


def test_what_reward_models_alone_read_changes_nothing(warm_root: Path) -> None:
    """Its identity holds the labels' settings, and neither the reward model's nor the rollouts'."""

    def name(*words: str) -> str:
        place = ["profile=smoke", "tracking=none", f"paths.root={warm_root}", "stage=rl", "rl=dpo"]
        ctx = job_context([*place, *words])
        plan = Graph(ctx, STAGES).plan("rl")
        return next(part.name for part in plan if part.kind == "rl")

    own = name()
    for same in (
        "rm.lr=1",
        "rm.num_epochs=7",
        "rl.num_prompts=5",
        "rl.max_rows=3",
        "reward=rm",
        "sample.max_rows=2",
    ):
        assert name(same) == own, same
    for other in (
        "rl.beta=0.2",
        "rl.loss=ipo",
        "rm.n=8",
        "seeds.rm=1",
        "seeds.rl=1",
        "rm.labels=gold",
        "rl.nll_weight=1",
    ):
        assert name(other) != own, other


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rl.loss=clip"], "rl.loss=clip is not one of rl=dpo: write sigmoid, ipo, .* or sft"),
        (["rl.num_epochs=0.5"], "rl.num_epochs=0.5 must be a whole number"),
        (["rl.beta=0"], "rl.beta=0 weighs nothing"),
        (["rl.loss=robust"], "rl.label_smoothing=0, which is rl.loss=sigmoid: write how many are"),
        (["rl.loss=sft"], "rl.nll_weight=0 leaves nothing: write 1"),
        (["rl.micro_batch_size=64"], "rl.micro_batch_size=64 is larger than rl.batch_size=32"),
        (["rl.label_smoothing=0.5"], "rl.label_smoothing=0.5 .*below 0.5"),
        (["reward=rouge"], "reward=rouge has no meaning: write reward=none, or reward=rm"),
        (["rl.algorithm=ppo"], "rl.advantage is missing: write rl=ppo"),
        (
            ["rm.labels=gold", "people.simulated=never"],
            "rm.labels=gold trains on gold labels, but .* have none",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    run: Callable[..., RunRecord], tmp_path: Path, words, message
) -> None:
    with pytest.raises(UserError, match=message):
        run("stage=rl", "rl=dpo", *words, root=tmp_path / "root")
    assert not list((tmp_path / "root").glob("artifacts/*-*"))


def test_rollouts_need_a_reward(run: Callable[..., RunRecord], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="reward=none gives RL on rollouts nothing to maximise: write reward=rm"
    ):
        run("stage=rl", "reward=none", root=tmp_path / "root")


def test_a_policy_is_evaluated_without_a_reward_model(
    pipeline: RunRecord, run: Callable[..., RunRecord]
) -> None:
    record = run("stage=eval", "rl=dpo", "rm.labels=gold")
    summary = record.summary
    told = same_judge(summary, record.config)
    assert told and "what the simulated people preferred" in told, "judge and people read one encoder"
    assert "eval/win_rate" in summary and "eval/reward_gain" not in summary and "rm/accuracy" not in summary
    beside = run("stage=eval", "rl=dpo", "rm.labels=gold", "reward=rm").summary
    assert "eval/reward_gain" in beside and beside["eval/win_rate"] == summary["eval/win_rate"]
