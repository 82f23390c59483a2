"""Turns of one conversation stay together: in the reward model's split, in what RL holds out, and in every interval."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import pytest
from pair_rows import label_rows

from rlaif.data.files.conversations import opening
from rlaif.data.files.custom import load_custom
from rlaif.data.files.hh import load_hh
from rlaif.data.files.readers import HubPart
from rlaif.data.files.rows import Splitting
from rlaif.models.weights import Normalization
from rlaif.records import Pair, Preference, Sample
from rlaif.stages.common.measures.win_rate import compare, win_rate_items, win_rate_report
from rlaif.stages.common.preferences.data import _split
from rlaif.stages.eval.answers import Policy
from rlaif.stages.eval.stage import judge_policies
from rlaif.stages.label.alignment import alignment_items, alignment_report
from rlaif.stages.rm.accuracy import reward_report
from rlaif.stages.rm.scored_pairs import scored_pairs
from rlaif.stats import paired_test, proportion_interval
from rlaif.study.items import seed_scores

FRACTIONS = {
    "test_fraction": 0.1,
    "validation_fraction": 0.1,
    "gold_fraction": 0.1,
    "max_rows": None,
    "seed": 0,
}
WORDS = ["alpha", "beta", "gamma", "delta", "eps", "zeta", "eta", "theta", "iota", "kappa"]


def conversations(count: int = 120, turns: int = 3) -> list[tuple[list[str], str, str]]:
    """(history, chosen, rejected) of each turn; a later turn quotes the chosen answers."""
    noise, rows = random.Random(0), []
    for c in range(count):
        history = [f"question {c} {noise.choice(WORDS)}"]
        for _ in range(turns):
            good, bad = (f"{' '.join(noise.choices(WORDS, k=6))} {end}" for end in ("good", "bad"))
            rows.append((list(history), good, bad))
            history += [good, f"and {' '.join(noise.choices(WORDS, k=3))}"]
    return rows


def text(turns: list[str]) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(turns))


def messages(turns: list[str]) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


def as_hh(path, rows):
    lines = [{"chosen": text([*h, good]), "rejected": text([*h, bad])} for h, good, bad in rows]
    path.write_text("\n".join(map(json.dumps, lines)))
    return load_hh(
        name="helpful", paths=[str(path)], hub=HubPart("train", None), splitting=Splitting(**FRACTIONS)
    )


def as_custom(path, rows, prompt, answer):
    lines = [
        {"prompt": prompt(h), "response_a": answer(good), "response_b": answer(bad), "label": 1.0}
        for h, good, bad in rows
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return load_custom(
        path=str(path), hub=HubPart("train", None), columns={}, splitting=Splitting(**FRACTIONS)
    )


TASKS = {
    "hh": as_hh,
    "custom text": lambda path, rows: as_custom(path, rows, text, str),
    "custom messages": lambda path, rows: as_custom(path, rows, messages, lambda t: messages(["", t])[1:]),
    "custom text after a system's turn": lambda path, rows: as_custom(
        path, rows, lambda h: f"System: Be kind.{text(h)}", str
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_no_conversation_is_in_two_parts(name, tmp_path) -> None:
    task = TASKS[name](tmp_path / "rows.jsonl", conversations())
    ctx = SimpleNamespace(
        options=SimpleNamespace(rm=SimpleNamespace(test_fraction=0.2, validation_fraction=0.1)), task=task
    )
    parts = _split(ctx, label_rows(task.pairs, [1.0] * len(task.pairs)))
    first = {
        key: {one.pair.prompt.split("question ")[1].split()[0] for one in part} for key, part in parts.items()
    }
    assert not first["train"] & first["test"] and not first["train"] & first["validation"]
    assert not first["validation"] & first["test"]
    assert sum(map(len, parts.values())) == len(task.pairs) and all(len(part) > 20 for part in parts.values())
    assert 0.1 < len(parts["test"]) / len(task.pairs) < 0.3
    said = "\n".join(one.pair.prompt for one in parts["train"])
    assert not any(one.pair.response_a in said or one.pair.response_b in said for one in parts["test"])
    splits = [
        {p.prompt.split("question ")[1].split()[0] for p in part}
        for part in (task.train, task.validation, task.test)
    ]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 120
    gold, trained = (
        {p.prompt.split("question ")[1].split()[0] for p in ps} for ps in (task.gold_pairs, task.pairs)
    )
    assert gold and not gold & trained


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("Open a file", "Open a file"),
        ("Human: Open a file", "Open a file"),
        ("\n\nHuman: Open a file\n\nAssistant: How?\n\nHuman: So", "Open a file"),
        ("User: Open a file\n\nAssistant: How?", "Open a file"),
        ("System: Be kind.\n\nHuman: Open a file\n\nAssistant: How?", "Open a file"),
        ("Assistant: Hi!\n\nHuman: Open a file\n\nAssistant: How?\n\nHuman: So", "Open a file"),
        ("Human: Two\n\nparagraphs\n\nAssistant: How?", "Two\n\nparagraphs"),
        ("System: Be kind.", "System: Be kind."),
        ("def f():\n\nHuman: this is no turn", "def f():\n\nHuman: this is no turn"),
        ("Human: \n\nAssistant: What?", "Human: \n\nAssistant: What?"),
    ],
)
def test_a_conversation_is_named_by_its_first_human_turn(prompt, wanted) -> None:
    assert opening(prompt) == wanted


def test_every_interval_resamples_conversations() -> None:
    """30 conversations of 4 turns that go all one way: 120 prompts, but 30 draws."""
    right = [float(c % 3 > 0) for c in range(30) for _ in range(4)]
    pairs = [
        Pair(str(i), f"p{i}", "p", "good", "bad", "policy", 1.0, "human", group=f"c{i // 4}")
        for i in range(120)
    ]
    p = [0.9 if r else 0.1 for r in right]
    preferences = [
        Preference(pair.id, x, x, None, 1, "ok", "logprob") for pair, x in zip(pairs, p, strict=True)
    ]
    together = proportion_interval(right, [pair.group for pair in pairs])
    apart = proportion_interval(right, range(120))
    assert together.high - together.low > 1.7 * (apart.high - apart.low)
    least = 0.8 * (together.high - together.low)

    def width(report, name):
        return report[f"{name}_ci_high"] - report[f"{name}_ci_low"]

    assert width(alignment_report(pairs, preferences, []), "label/alignment") > least
    scores = [(1.0, 0.0) if r else (0.0, 1.0) for r in right]
    rows = scored_pairs(label_rows(pairs, [0.9] * 120, [(3, 4)] * 120), [scores], [Normalization(1.0, 0.0)])
    assert width(reward_report(rows, temperature=None), "rm/accuracy") > least
    made = compare(pairs, preferences, [(3, 4), (4, 3)] * 60, tie_margin=0.02)
    assert width(win_rate_report(made, seed=0), "eval/win_rate") > least
    for items, name in (
        (alignment_items(pairs, preferences), "label/alignment"),
        (win_rate_items(made), "eval/win_rate"),
    ):
        assert {cluster for cluster, _ in seed_scores([items], name).values()} == {f"c{c}" for c in range(30)}


def test_an_evaluation_resamples_the_rewards_of_a_conversation_together(
    context, tmp_path, monkeypatch
) -> None:
    """Twelve answers of three conversations, also where the reward has nothing to say of one in the middle."""
    ctx = context("judge=scripted")
    samples = [
        Sample(f"p{i}", f"Question {i}", f"Answer {i}", 2, True, group=f"c{i // 4}", ids=(5 + i, 6))
        for i in range(12)
    ]
    monkeypatch.setattr("rlaif.stages.eval.stage.answers", lambda *rest: samples)
    policy = Policy(ctx.model().trunk.new_top().frozen_copy())
    for left_out in (set(), {5}):
        rewards = [None if i in left_out else (float(i // 4), 0.0) for i in range(12)]
        reward = SimpleNamespace(of_pairs=lambda sides, rows, rewards=rewards: rewards)
        found = judge_policies(ctx, tmp_path, policy, policy, reward, every=True)
        kept = [i for i in range(12) if i not in left_out]
        gains = [float(i // 4) for i in kept]
        wanted, _ = paired_test(gains, [0.0] * len(kept), [f"c{i // 4}" for i in kept])
        apart, _ = paired_test(gains, [0.0] * len(kept), kept)
        assert (found["eval/reward_gain"], found["eval/reward_gain_ci_low"]) == (wanted.estimate, wanted.low)
        assert found["eval/reward_gain_ci_high"] == wanted.high
        assert wanted.high - wanted.low > 1.5 * (apart.high - apart.low) > 0
    silent = SimpleNamespace(of_pairs=lambda sides, rows: [None] * 12)
    assert "eval/reward_gain" not in judge_policies(ctx, tmp_path, policy, policy, silent, every=True)
