"""The measures of stage=eval beside the judge's: what they are of, and what they are called."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import pytest
import torch

from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.decoding.sampler import sample
from rlaif.inference.rollouts import RolloutCollector
from rlaif.io import digest, read_records, write_records
from rlaif.models.weights import load_reward, load_top
from rlaif.records import Pair, to_dict
from rlaif.stages.common.policies import policy_top
from rlaif.stages.common.rewards.kinds import make_reward
from rlaif.stages.common.rewards.reward import ModelReward
from rlaif.stages.common.rows import encode_pairs, response_ids
from rlaif.stages.graph import Graph
from rlaif.stages.registry import STAGES
from rlaif.tracking.glossary import unknown

JUDGED = ["stage=eval", "judge=scripted"]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "eval/kl"),
        (["eval.temperature=0"], "eval/log_ratio"),
        (["eval.top_k=3"], "eval/log_ratio"),
        (["eval.top_k=100000"], "eval/kl"),  # more than there are tokens: nothing is cut
    ],
)
def test_only_what_is_drawn_from_the_whole_distribution_gives_a_kl(words, name, pipeline, run) -> None:
    summary = run(*JUDGED, *words).summary
    assert [key for key in ("eval/kl", "eval/log_ratio") if key in summary] == [name]
    assert unknown(summary) == []


def _rollout(ctx):
    """Responses of the base model to test prompts, as RL draws them."""
    prompts = ctx.encoder.fitting(ctx.task.test)[:12]
    encoded = [ctx.encoder.prompt(p.prompt) for p in prompts]
    collector = RolloutCollector(
        prompts,
        encoded,
        ctx.encoder.decode,
        Decoding(ctx.cfg.task.max_response_tokens, 1.0),
        eos_ids=ctx.model().eos_ids,
        samples_per_prompt=1,
        max_rows=64,
        seed=0,
    )
    return collector.collect(ctx.model().trunk.new_top().frozen_copy(), range(len(prompts)), 0)


def test_the_reward_that_eval_prints_is_the_one_that_rl_saw(pipeline, context) -> None:
    """Text that is tokenised again has other ids, and an end that the policy did not write."""
    ctx = context()
    members = load_reward(ctx.model(), Graph(ctx, STAGES).get("rm").path)
    reward, rollout = ModelReward(ctx, members, lambda scores: scores.mean(dim=0)), _rollout(ctx)
    samples, pairs = rollout.samples(), [Pair.between(s, s) for s in rollout.samples()]
    written = [row[mask].tolist() for row, mask in zip(rollout.ids, rollout.response_mask, strict=True)]
    assert [list(s.ids) for s in samples] == written == [list(response_ids(ctx, p)[0]) for p in pairs]
    assert not all(s.finished for s in samples)
    assert [s.ids[-1] in ctx.model().eos_ids for s in samples] == [s.finished for s in samples]
    seen = reward(rollout).tolist()
    found = reward.of_pairs((samples, samples), encode_pairs(ctx, pairs, "pairs"))
    assert [a for a, _ in found] == pytest.approx(seen, abs=1e-5) == [b for _, b in found]
    read_again = [replace(p, ids_a=None, ids_b=None) for p in pairs]
    other = reward.of_pairs((samples, samples), encode_pairs(ctx, read_again, "pairs"))
    assert max(abs(a - b) for (a, _), b in zip(other, seen, strict=True)) > 0.1, "or nothing is tested here"


def test_sampled_pairs_keep_the_tokens_that_the_policy_wrote(pipeline, context, tmp_path) -> None:
    ctx = context()
    pairs = read_records(Graph(ctx, STAGES).get("sample").file("pairs.jsonl"), Pair)
    limit, differ = ctx.cfg.task.max_response_tokens, 0
    for pair in pairs:
        for ids, text in ((pair.ids_a, pair.response_a), (pair.ids_b, pair.response_b)):
            assert ids is not None and 0 < len(ids) <= limit and ctx.encoder.decode(ids) == text
            ended = ids[-1] in ctx.model().eos_ids
            assert ended or len(ids) == limit, "what did not end was cut at the limit"
            differ += list(ids) != ctx.encoder.response(text)
    assert differ > 0, "or nothing is tested here"
    write_records(tmp_path / "pairs.jsonl", pairs)
    assert read_records(tmp_path / "pairs.jsonl", Pair) == pairs
    rows = encode_pairs(ctx, pairs[:3], "pairs")
    assert [(len(row.a), len(row.b)) for row in rows] == [(len(p.ids_a), len(p.ids_b)) for p in pairs[:3]]


def test_a_text_of_a_file_has_no_ids_and_none_in_its_records() -> None:
    own = to_dict(Pair("x", "p", "prompt", "a", "b", "dataset"))
    assert not {"ids_a", "ids_b", "group"} & set(own) and own["gold"] is None
    assert to_dict(Pair("x", "p", "prompt", "a", "b", "policy", ids_a=(3, 4)))["ids_a"] == (3, 4)


def test_an_exported_reward_model_reads_the_tokens_that_the_policy_wrote(
    pipeline, context, run, tmp_path
) -> None:
    run("stage=rm", f"export={tmp_path}")
    ctx = context()
    rollout = _rollout(ctx)
    words = ["reward=hub", f"reward.name={tmp_path}", "reward.format=policy", "reward.dtype=float32"]
    hub = make_reward(context(*words, "reward.normalize_rows=0"), {})
    members = load_reward(ctx.model(), Graph(ctx, STAGES).get("rm").path)
    own = ModelReward(ctx, members, lambda scores: scores.mean(dim=0))
    torch.testing.assert_close(hub(rollout), own(rollout), atol=1e-4, rtol=0)


# What learns, quickly (as in test_held_out, whose artifacts it shares).
LEARNS = [
    "model.trainable=full",
    "rl.lr=0.03",
    "rl.ppo_epochs=1",
    "rl.prompts_per_iteration=4",
    "rl.num_epochs=1.5",
]
LEARNS += ["task.validation_fraction=0.3", "rl.held_out.num_prompts=6", "rl.held_out.every=4"]


@torch.no_grad()
def test_kl_and_gain_are_those_of_a_plain_loop(run, context) -> None:
    """From the stored policies alone: direction, temperature and sign."""
    words = [*LEARNS, "eval.temperature=0.7"]
    summary = run(*JUDGED, *words).summary
    ctx = context("judge=scripted", *words)
    graph, model = Graph(ctx, STAGES), ctx.model()
    policy, sft = load_top(model, graph.get("rl").path), policy_top(ctx, {"sft": graph.get("sft")})
    (member,) = load_reward(model, graph.get("rm").path)
    prompts = ctx.encoder.fitting(ctx.task.test, limit=ctx.cfg.eval.num_prompts)
    encoded = [ctx.encoder.prompt(p.prompt) for p in prompts]
    seeds = [int(digest([0, p.id], 15), 16) for p in prompts]
    decoding = Decoding(ctx.cfg.task.max_response_tokens, 0.7)
    written = [
        sample(top.frozen_copy(), encoded, seeds, decoding, eos_ids=model.eos_ids, max_rows=8)
        for top in (policy, sft)
    ]
    ratios, gains = [], []
    for start, own, other in zip(encoded, *written, strict=True):
        row, place = torch.tensor([[*start, *own.ids]]), torch.arange(len(start), len(start) + len(own.ids))
        features = model.trunk(row)
        new, old = (
            (top.logits(top(features))[0] / 0.7).log_softmax(-1)[place - 1, row[0, place]]
            for top in (policy, sft)
        )
        ratios.append(float((new - old).sum()))
        sides = (torch.tensor([[*start, *one.ids]]) for one in (own, other))
        a, b = (float(member.head(member.top(model.trunk(side)))[0, -1]) for side in sides)
        gains.append(a - b)
    assert summary["eval/kl"] == pytest.approx(fmean(ratios), abs=1e-3) and abs(fmean(ratios)) > 0.1
    assert summary["eval/reward_gain"] == pytest.approx(fmean(gains), abs=1e-3) and abs(fmean(gains)) > 0.01
    assert summary["eval/reward_win_rate"] == fmean((g > 0) + (g == 0) / 2 for g in gains)
