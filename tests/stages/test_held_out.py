"""The reward on prompts that the reward model was not trained on: which these are, and what is told of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from safetensors.torch import load_file

from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.decoding.sampler import sample
from rlaif.io import digest, read_records
from rlaif.models.weights import load_reward, load_top
from rlaif.records import Pair
from rlaif.report.summary import result_table
from rlaif.stages.common.policies import policy_top
from rlaif.stages.common.sources import part_of
from rlaif.stages.graph import Graph
from rlaif.stages.registry import STAGES
from rlaif.stages.rl.online.held_out import make_held_out, unseen
from rlaif.stats import mean_interval
from rlaif.tracking.glossary import unknown

NAME = "rl/reward_held_out"
# What learns, quickly.
LEARNS = ["stage=rl", "model.trainable=full", "rl.lr=0.03", "rl.ppo_epochs=1", "rl.prompts_per_iteration=4"]
LEARNS += [
    "task.validation_fraction=0.3",
    "rl.held_out.num_prompts=6",
    "rl.held_out.every=4",
    "rl.num_epochs=1.5",
]


def _file(path: Path, conversations: int = 60) -> list[str]:
    """Labelled turns of conversations, of which the task holds out few as gold: the reward model learns from most."""
    rows = [
        {
            "prompt": f"Human: Question {c}?"
            + "".join(f"\n\nAssistant: Answer {t}.\n\nHuman: More?" for t in range(turn)),
            "response_a": f"Yes, {c} and {turn}.",
            "response_b": "No.",
            "label": float((c + turn) % 2),
        }
        for c in range(conversations)
        for turn in range(2)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "task=custom",
        f"task.path={path}",
        "task.gold_fraction=0.1",
        "task.validation_fraction=0.4",
        "task.test_fraction=0.1",
    ]


@torch.no_grad()
def _rewards(ctx, top, prompts, member) -> list[float]:
    """By single sequences, without rollouts, caches or batches."""
    model = ctx.model()
    encoded = [ctx.encoder.prompt(p.prompt) for p in prompts]
    seeds = [int(digest([0, 0, p.id, 0], 15), 16) for p in prompts]
    decoding = Decoding(ctx.options.task.max_response_tokens, 1.0)
    drawn = sample(top.frozen_copy(), encoded, seeds, decoding, eos_ids=model.eos_ids, max_rows=8)
    rows = [torch.tensor([[*start, *one.ids]]) for start, one in zip(encoded, drawn, strict=True)]
    return [float(member.head(member.top(model.trunk(row)))[0, -1]) + member.shift for row in rows]


def test_start_every_so_often_and_end_are_measured_and_told_with_an_interval(run, context) -> None:
    record = run(*LEARNS)
    summary, rows = record.summary, {row["step"]: row[NAME] for row in record.history if NAME in row}
    last = summary["rl/iterations"]
    assert list(rows) == [*range(0, last - 1, 4), last - 1] and last > 5 and unknown(summary) == []
    assert sum("rl/kl" in row or NAME in row for row in record.history) == last, "no rows of its own"
    ctx = context(*LEARNS)
    graph = Graph(ctx, STAGES)
    prompts = ctx.encoder.fitting(ctx.task.validation)[:6]
    (member,) = load_reward(ctx.model(), graph.get("rm").path)
    end = _rewards(ctx, load_top(ctx.model(), graph.get("rl").path), prompts, member)
    start = _rewards(ctx, policy_top(ctx, {"sft": graph.get("sft")}), prompts, member)
    told = (summary[f"{NAME}_start"], summary[NAME])
    assert told == pytest.approx((fmean(start), fmean(end)), abs=1e-4) and told[0] == rows[0]
    assert len({round(value, 2) for value in (*rows.values(), told[1])}) == len(rows) + 1, (
        "the policy has moved"
    )
    gains = [b - a for a, b in zip(start, end, strict=True)]
    wanted = mean_interval(gains, [p.cluster for p in prompts])
    told = [summary[f"{NAME}_gain{end}"] for end in ("", "_ci_low", "_ci_high")]
    assert (
        told == pytest.approx([wanted.estimate, wanted.low, wanted.high], abs=1e-3)
        and summary[f"{NAME}_n"] == 6
    )
    assert "reward (proxy), prompts new to it" in list(result_table(summary).columns[1].cells)


def test_measuring_does_not_move_the_policy(pipeline, run, warm_root) -> None:
    weights = []
    for words in ([], ["rl.held_out.every=null"]):
        record = run("stage=rl", "rl.lr=0.03", *words)
        assert (NAME in record.summary) == (not words) == any(NAME in row for row in record.history)
        row = record.lineage[0]
        weights.append(load_file(warm_root / "artifacts" / row.name / "top.safetensors"))
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_no_prompt_is_measured_whose_conversation_the_reward_model_knows(context, tmp_path, run) -> None:
    words = [*_file(tmp_path / "rows.jsonl"), "sft.enabled=false"]
    ctx = context(*words)
    known = {pair.cluster for pair in ctx.task.pairs if part_of(ctx, pair.cluster) != "test"}
    validation = ctx.task.validation
    assert sum(p.cluster in known for p in validation) > 10, "or nothing is tested here"
    fresh = unseen(ctx, validation)
    assert fresh == [p for p in validation if p.cluster not in known] != []
    # A conversation goes as a whole, though only some of its turns are pairs.
    fewer = replace(ctx.task, pairs=tuple(p for p in ctx.task.pairs if "More?" in p.prompt))
    opened = context(*words)
    opened.task = fewer
    assert unseen(opened, validation) == fresh
    # Whatever the reward model does not learn from: other rewards, and pairs that the policy writes.
    for other in (["reward=length"], ["sample.source=policy"]):
        assert unseen(context(*words, *other), validation) == list(validation)


def test_where_all_is_known_nothing_is_measured_and_it_is_said(context, tmp_path, caplog) -> None:
    ctx = context(*_file(tmp_path / "rows.jsonl"), "sft.enabled=false", "rm.test_fraction=0.0")
    assert make_held_out(ctx, None, None, None, 9) is None
    assert "is new to the reward model" in caplog.text and "rl.held_out.every=null" in caplog.text
    caplog.clear()
    for words in (["rl.held_out.every=null"], ["reward=length"], ["reward=rouge"]):
        assert make_held_out(context(*words), None, None, None, 9) is None
    assert "new to the reward model" not in caplog.text


def test_what_the_reward_model_read_is_what_the_rule_says(pipeline, context) -> None:
    """Sampled pairs are of training prompts alone: no validation prompt shares a conversation with one."""
    ctx = context()
    pairs = read_records(Graph(ctx, STAGES).get("sample").file("pairs.jsonl"), Pair)
    assert not {p.cluster for p in pairs} & {p.cluster for p in ctx.task.validation}
