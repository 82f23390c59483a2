"""rl=online_dpo as a stage: who labels, what is asked once, what is counted, and what is refused."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from jobs import job_context

from rlaif.errors import UserError
from rlaif.ops import PREFERENCE_LOSSES, PointLoss, algorithm_title
from rlaif.stages.graph import Graph
from rlaif.stages.registry import STAGES
from rlaif.stages.rl.online_pairs.labels import LabelerLabels, reward_labels
from rlaif.tracking.glossary import unknown
from rlaif.tracking.runs import RunRecord

OWN = {"robust": ["rl.label_smoothing=0.1"], "orpo": ["rl.nll_weight=1"], "sft": ["rl.nll_weight=1"]}
LOSSES = [name for name, loss in PREFERENCE_LOSSES.items() if not isinstance(loss, PointLoss)]
SCRIPTED = ["stage=rl", "rl=online_dpo", "labeler=scripted", "labeler.scripted.rule=longer"]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_on_the_policys_own_pairs(
    pipeline: RunRecord, run: Callable[..., RunRecord], loss: str
) -> None:
    # A seed of its own: another test may have trained the same policy in this root.
    record = run(*SCRIPTED, "seeds.rl=79", f"rl.loss={loss}", *OWN.get(loss, []))
    summary = record.summary
    assert [row.kind for row in record.lineage] == ["rl", "sft"], "no pair is sampled or labelled before"
    assert [row.reused for row in record.lineage] == [False, True]
    drawn = sum(
        summary[f"rl/{n}"] for n in ("train_pairs", "equal_dropped", "unread_dropped", "dropped_pairs")
    )
    assert drawn == 16 and summary["rl/iterations"] == 2
    assert math.isfinite(summary["rl/loss"]) and "rl/reward" not in summary
    assert unknown([name for name in summary if name.startswith("rl/")]) == []
    rows = [row for row in record.history if "rl/loss" in row]
    assert len(rows) == 2 and {"rl/kl", "rl/entropy", "rl/response_length", "rl/eos_rate"} <= rows[0].keys()
    assert rows[0]["rl/kl"] == pytest.approx(0, abs=1e-3)
    assert algorithm_title("online_dpo", "ipo") == "online IPO"


def test_no_answer_is_paid_for_twice(pipeline, run: Callable[..., RunRecord], warm_root, copied_root) -> None:
    """A forced rebuild, and another root with the same label store, learn the same from stored answers alone."""
    words = [*SCRIPTED, "seeds.rl=80"]
    first = run(*words).summary
    assert first["rl/tokens_in"] > 0 and first["rl/reused"] == 0 and first["rl/usd"] == 0
    forced = run(*words, "force=true").summary
    assert forced["rl/tokens_in"] == 0 and forced["rl/reused"] >= forced["rl/train_pairs"]
    root = copied_root(["sft"])
    for file in warm_root.glob("labels.sqlite*"):
        shutil.copy(file, root / file.name)
    elsewhere = run(*words, root=root).summary
    assert elsewhere["rl/tokens_in"] == 0 and elsewhere["rl/reused"] == forced["rl/reused"]
    for name in ("rl/loss", "rl/kl", "rl/margin", "rl/train_pairs"):
        assert first[name] == forced[name] == elsewhere[name]


def test_without_pairs_nobody_is_asked(context) -> None:
    labels, metrics = LabelerLabels(context("rl=online_dpo", "labeler=scripted"))(None, {})
    assert labels == {} and metrics["rl/tokens_in"] == metrics["rl/reused"] == metrics["rl/usd"] == 0


def test_unread_labels_are_dropped_and_counted(pipeline, run: Callable[..., RunRecord]) -> None:
    words = [*SCRIPTED, "seeds.rl=81", "labeler.order=first", "labeler.scripted.unparsed_rate=0.4"]
    record = run(*words, "labeler.max_unparsed=1")
    summary = record.summary
    assert 0 < summary["rl/unread_dropped"] < 16
    assert summary["rl/train_pairs"] == 16 - summary["rl/unread_dropped"] - summary["rl/equal_dropped"]
    (said,) = [row["text"] for row in record.alerts if row["title"] == "pairs left out"]
    assert f"of 16 pairs, {summary['rl/unread_dropped']} have no readable label" in said
    with pytest.raises(
        UserError, match="an iteration's judgements could not be read, more than labeler.max_un"
    ):
        run(*words, "seeds.rl=82", "labeler.max_unparsed=0.1")


def test_the_labelers_budget_is_the_whole_runs(pipeline, run: Callable[..., RunRecord], tmp_path) -> None:
    """The first iteration's labels leave no room for the second's."""
    words = [*SCRIPTED, "seeds.rl=83", "labeler.max_seconds=0.000001", "labeler.batch_size=64"]
    with pytest.raises(UserError, match="labeler.max_seconds=1e-06 has no room for another batch"):
        run(*words)


@pytest.mark.parametrize("reward", ["rm", "length", "random", "direct"])
def test_any_reward_labels(pipeline, run: Callable[..., RunRecord], reward: str) -> None:
    words = ["labeler=score"] if reward == "direct" else []
    record = run("stage=rl", "rl=online_dpo", f"reward={reward}", "seeds.rl=84", *words)
    summary = record.summary
    assert ("rm" in [row.kind for row in record.lineage]) == (reward == "rm")
    assert {"rl/reward", "rl/score", "rl/reward_std", "rl/reward_start", "rl/reward_scale"} <= summary.keys()
    assert ("rl/reward_held_out" in summary) == (reward == "rm")
    assert ("rl/usd" in summary) == (reward == "direct") and "rl/tokens_in" not in summary
    assert summary["rl/unread_dropped"] == 0 and summary["rl/train_pairs"] > 0
    assert unknown([name for name in summary if name.startswith("rl/")]) == []


def test_a_reward_is_tracked_as_by_its_siblings(pipeline, run: Callable[..., RunRecord]) -> None:
    record = run(
        "stage=rl",
        "rl=online_dpo",
        "reward=length",
        "seeds.rl=85",
        "rl.track.every=1",
        "rl.track.num_prompts=4",
    )
    assert len([row for row in record.history if "rl/track_kl" in row]) == 3
    assert record.summary["rl/track_iteration"] == 2


def _reward(values, unread=()):
    def score(rollout):
        return torch.tensor(values)

    score.measures, score.unread = {"rl/reward_unparsed_rate": len(unread) / len(values)}, unread
    return score


def test_preferences_of_a_reward_by_hand(context) -> None:
    """sigmoid of the lead in standard deviations, after the penalties; no label where a reward was not read."""
    ctx = context("rl=online_dpo", "reward=length", "rl.missing_eos_penalty=3", "rl.length_penalty=0.5")
    lengths, finished = torch.tensor([2, 4, 3, 3, 1, 1]), torch.tensor([True, True, False, True, True, True])
    rollout = SimpleNamespace(finished=finished, lengths=lambda: lengths)
    label = reward_labels(ctx, _reward([1.0, 1.0, 2.0, 0.0, 0.5, -1.5]))
    labels, metrics = label(rollout, {0: None, 1: None, 2: None})
    # Scores 0 and -1; 2 - 3 - 1.5 = -2.5 and -1.5; 0 and -2.
    assert labels == pytest.approx({n: 1 / (1 + math.exp(-d)) for n, d in enumerate((1.0, -1.0, 2.0))})
    assert metrics["rl/reward"] == pytest.approx(0.5) and metrics["rl/score"] == pytest.approx(-7 / 6)
    assert metrics["rl/reward_std"] == pytest.approx(math.sqrt(7 / 6))
    labels, metrics = reward_labels(ctx, _reward([0.0] * 6, unread=(3,)))(rollout, {0: None, 1: None})
    assert list(labels) == [0] and metrics["rl/reward_unparsed_rate"] == pytest.approx(1 / 6)


def test_an_unreadable_score_is_no_label(pipeline, run: Callable[..., RunRecord]) -> None:
    """reward=direct gives RL the lowest score in its place; a preference would be made up."""
    record = run(
        *("stage=rl", "rl=online_dpo", "reward=direct", "labeler=score", "labeler.backend=scripted"),
        *("labeler.scripted.unparsed_rate=0.2", "labeler.max_unparsed=1", "seeds.rl=86"),
    )
    summary = record.summary
    assert summary["rl/unread_dropped"] > 0
    assert summary["rl/train_pairs"] + summary["rl/unread_dropped"] + summary["rl/equal_dropped"] == 16


def test_its_identity_holds_what_it_reads(warm_root: Path) -> None:
    def name(*words: str) -> str:
        place = ["profile=smoke", "tracking=none", f"paths.root={warm_root}", "stage=rl", "rl=online_dpo"]
        plan = Graph(job_context([*place, *words]), STAGES).plan("rl")
        return next(part.name for part in plan if part.kind == "rl")

    own, rewarded = name(), name("reward=length")
    for same in (
        "rm.lr=1",
        "rl.max_rows=3",
        "rl.minibatch_rollouts=8",
        "rl.missing_eos_penalty=1",
        "rl.alarms.kl=1",
    ):
        assert name(same) == own, same
    for same in ("rm.hard_labels=true", "seeds.rm=1", "labeler=scripted", "rl.alarms.kl=1"):
        assert name("reward=length", same) == rewarded, same
    others = (
        "labeler=scripted",
        "rl.beta=0.2",
        "rm.hard_labels=true",
        "seeds.rm=1",
        "seeds.rl=1",
        "rl.ppo_epochs=1",
    )
    for other in (*others, "rl.temperature=0.9", "rl.batch_size=4"):
        assert name(other) != own, other
    for other in ("rl.missing_eos_penalty=1", "rl.beta=0.2", "reward.target=3", "rl.track.every=2"):
        assert name("reward=length", other) != rewarded, other


def test_the_plan_counts_the_labels(pipeline, context) -> None:
    """Two iterations of eight pairs, each response drawn once and each pair read in both orders."""
    few, more = (
        STAGES["rl"].work(context("rl=online_dpo", "labeler=base", f"rl.num_epochs={n}")) for n in (1, 2)
    )
    drawn, once = (
        few.decoded,
        STAGES["rl"].work(context("rl=online_dpo", "labeler=base", "labeler.order=first")),
    )
    assert more.decoded == 2 * drawn and more.trained == 2 * few.trained
    assert once.forward < few.forward and once.decoded == drawn
    rewarded = STAGES["rl"].work(context("rl=online_dpo", "reward=length"))
    assert rewarded.forward < once.forward and rewarded.decoded == drawn


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rl.loss=clip"], "rl.loss=clip is not one of rl=online_dpo: write sigmoid"),
        (["rl.loss=kto"], "rl.loss=kto compares .*, which rl=online_dpo does not run: write another rl.loss"),
        (["rl.beta=0"], "rl.beta=0 weighs nothing in rl=online_dpo"),
        (["rl.micro_batch_size=64"], "rl.micro_batch_size=64 is larger than rl.batch_size=16"),
        (["rm.labels=gold"], "rm.labels=gold: rl=online_dpo .*: write rm.labels=ai"),
        (["rm.n=8"], "rm.n=8 .*: write rm.n=null"),
        (["labeler.min_alignment=0.6"], "labeler.min_alignment=0.6 is not checked by rl=online_dpo"),
        (["rl.track.every=2"], "rl.track.every=2 tracks a reward, but reward=none has none"),
        (["reward=direct"], "reward=direct needs a score of each response"),
        (
            ["reward=length", "rl.missing_eos_score=-1"],
            "rl.missing_eos_score .*: write rl.missing_eos_penalty=0",
        ),
        (["rl.algorithm=grpo"], "rl.advantage is missing: write rl=grpo"),
    ],
)
def test_what_makes_no_sense_is_refused(run, tmp_path: Path, words, message) -> None:
    with pytest.raises(UserError, match=message):
        run("stage=rl", "rl=online_dpo", "labeler=base", *words, root=tmp_path / "root")
    assert not list((tmp_path / "root").glob("artifacts/*-*"))


def test_the_path_to_the_evaluation_needs_no_labels_beforehand(
    pipeline, run: Callable[..., RunRecord]
) -> None:
    record = run("stage=eval", "rl=online_dpo", "labeler=scripted")
    assert [row.kind for row in record.lineage] == ["eval", "rl", "sft"]
    assert "eval/win_rate" in record.summary and "eval/reward_gain" not in record.summary
