"""rl=best_of_n: the response with the highest reward is given, and the first draw is what any policy gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from jobs import job_context

from rlaif.data.encode import Cuts
from rlaif.errors import UserError
from rlaif.io import read_jsonl
from rlaif.stages.common.measures.text import rouge_l
from rlaif.stages.common.policies import policy_top
from rlaif.stages.common.rewards.kinds import make_reward
from rlaif.stages.eval.answers import (
    Policy,
    _chosen,
    _drawn,
    _every,
    _rewards,
    answers,
    load_baseline,
    load_policy,
)
from rlaif.stages.graph import Graph
from rlaif.stages.registry import STAGES
from rlaif.tracking.runs import RunRecord

WORDS = ["profile=smoke", "tracking=none", "stage=rl", "rl=best_of_n"]


@pytest.fixture(scope="module")
def built(warm_root: Path, pipeline: RunRecord) -> Callable[..., tuple]:
    """`built(*overrides)`: the context and the artifacts of a best-of-n policy."""

    def build(*words: str) -> tuple:
        ctx = job_context([*WORDS, f"paths.root={warm_root}", *words])
        graph = Graph(ctx, STAGES)
        graph.check("rl")
        graph.get("rl")
        return ctx, graph.built

    return build


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_best_response_is_given(built, count: int) -> None:
    """By ROUGE-L, which can be computed here without a reward: the first of the highest of the draws."""
    ctx, artifacts = built("reward=rouge", f"rl.best_of={count}")
    policy = load_policy(ctx, artifacts)
    assert policy.best_of == count
    given = answers(ctx, policy, "policy", Cuts())
    prompts = ctx.encoder.fitting(ctx.task.test, limit=ctx.options.eval.num_prompts)
    draws = [_drawn(ctx, policy.top, [(prompt, n) for prompt in prompts], "draws") for n in range(count)]
    different = 0
    for i, (prompt, sample) in enumerate(zip(prompts, given, strict=True)):
        scores = [rouge_l(draw[i].response, prompt.reference or "") for draw in draws]
        assert sample == draws[scores.index(max(scores))][i]
        different += sample != draws[0][i]
    # The first draw is the one that a policy without a choice gives.
    alone = answers(ctx, load_baseline(ctx, artifacts), "policy", Cuts())
    assert alone == draws[0]
    assert len({draw[0].response for draw in draws}) > 1, "draws of one prompt differ"
    assert different or all(not rouge_l(s.response, s.reference or "") for s in given)


def test_rewards_are_those_of_each_response(built) -> None:
    """An odd number of responses too; a response's reward does not depend on its neighbours."""
    ctx, artifacts = built("rl.best_of=3")
    reward, top = make_reward(ctx, artifacts), policy_top(ctx, artifacts)
    prompts = ctx.encoder.fitting(ctx.task.test, limit=4)
    every = [_drawn(ctx, top, [(prompt, n) for prompt in prompts], "draws") for n in range(3)]
    three = _rewards(ctx, reward, every)
    assert [len(row) for row in three] == [4, 4, 4]
    for n in range(3):
        (alone,) = _rewards(ctx, reward, [every[n]])
        assert alone == pytest.approx(three[n], abs=1e-5)
    assert len({round(value, 6) for row in three for value in row}) > 4


def test_the_unreadable_is_never_the_best(built) -> None:
    ctx, artifacts = built("rl.best_of=2")
    policy = load_policy(ctx, artifacts)

    class Deaf:
        """It reads nothing of the first half of the prompts."""

        def of_pairs(self, sides, rows):
            half = len(rows) // 2
            return [None if i < half else (0.0, 1.0) for i in range(len(rows))]

    prompts = ctx.encoder.fitting(ctx.task.test, limit=ctx.options.eval.num_prompts)
    deaf = Policy(policy.top, (), 2, Deaf())
    given = _chosen(ctx, deaf, _every(ctx, deaf, prompts, "policy"))
    draws = [_drawn(ctx, policy.top, [(prompt, n) for prompt in prompts], "draws") for n in range(2)]
    half = len(prompts) // 2
    assert given == [*draws[0][:half], *draws[1][half:]]


def test_it_is_evaluated_like_any_policy(pipeline: RunRecord, run: Callable[..., RunRecord]) -> None:
    record = run("stage=eval", "rl=best_of_n", "rl.best_of=4")
    summary = record.summary
    assert summary["rl/best_of"] == 4 and "rl/kl" not in summary and "eval/kl" not in summary
    assert summary["eval/kl_bound"] == pytest.approx(math.log(4) - 3 / 4)
    assert summary["eval/reward_policy"] > summary["eval/reward_baseline"], "the best of four has more reward"
    (name,) = [row.name for row in record.lineage if row.kind == "eval"]
    rows = read_jsonl(Path(record.root) / "artifacts" / name / "comparisons.jsonl")
    plain = run("stage=eval")
    (other,) = [row.name for row in plain.lineage if row.kind == "eval"]
    baselines = [
        {row["id"]: row["baseline_response"] for row in part}
        for part in (rows, read_jsonl(Path(plain.root) / "artifacts" / other / "comparisons.jsonl"))
    ]
    assert baselines[0] == baselines[1], "both meet the same baseline"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rl.best_of=1"], "rl.best_of=1 .*from 2"),
        (["eval.temperature=0"], "eval.temperature=0 always gives the same one"),
        (["reward=none"], "reward=none gives RL on rollouts nothing to maximise"),
        (["rl.algorithm=ppo"], "rl.loss is missing: write rl=ppo"),
    ],
)
def test_what_makes_no_sense_is_refused(
    run: Callable[..., RunRecord], tmp_path: Path, words, message
) -> None:
    with pytest.raises(UserError, match=message):
        run("stage=rl", "rl=best_of_n", *words, root=tmp_path / "root")


def test_it_has_no_weights_to_export(
    pipeline: RunRecord, run: Callable[..., RunRecord], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no weights of its own; write stage=sft"):
        run("stage=rl", "rl=best_of_n", f"export={tmp_path / 'whole'}")
    assert not (tmp_path / "whole").exists()
