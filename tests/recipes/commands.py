"""Runs the recipes' commands in the copy of the checkout that has the recipes applied, and writes `told.json` there."""

from __future__ import annotations

import json
import traceback
from typing import Any

import torch
from jobs import CODE, start_job

import rlaif
from rlaif.labelers import TemplateSet
from rlaif.labelers.prompts import PromptStrategy
from rlaif.ops.advantages import ALGORITHMS, Horizon
from rlaif.records import Pair

BASE = ("profile=smoke", "tracking=none", f"paths.root={CODE / 'outputs'}", "sft.enabled=false")
LABEL = ("stage=label", "task=riddles", "labeler.scripted.rule=shorter")
COMMANDS = {
    "An RL algorithm": ("stage=rl", "rl=median", "reward=length", "rl.samples_per_prompt=4"),
    "A labeler prompt": (*LABEL, "labeler=strict", "labeler.backend=scripted"),
    "A task": (*LABEL, "labeler=detailed", "labeler.backend=scripted"),
    "A metric": ("stage=pipeline", "rl=reinforce", "reward=length"),
    "A backend": (*LABEL, "labeler=base", "backend=shortest"),
    "A reward": ("stage=rl", "rl=reinforce", "reward=brevity"),
}


def prompt(preamble: str, task: str) -> str:
    """The prompt of one pair, without exemplars."""
    strategy = PromptStrategy(TemplateSet.load(CODE / "conf" / "templates" / task), preamble, 0, False)
    return strategy.verdict(Pair("x", "x", "PROMPT", "ONE", "TWO", "dataset"), "ab", None).user


def outcome(words: tuple[str, ...]) -> dict[str, Any]:
    try:
        record = start_job([*BASE, *words])
    except Exception:
        return {"error": traceback.format_exc()[-3000:]}
    assert record is not None
    names = {key: record.config[key].get("name") for key in ("labeler", "judge", "task")}
    return {**record.summary, **{f"name of {key}": name for key, name in names.items()}}


def reported() -> dict[str, Any]:
    """The page of the only pipeline, and how many rows of its history have the recipe's metric."""
    outputs = CODE / "outputs"
    (page,), (history,) = (
        outputs.glob("reports/pipeline-*.html"),
        outputs.glob("runs/pipeline/*/history.jsonl"),
    )
    rows = history.read_text().splitlines()
    return {"page": page.read_text(), "history": sum("rl/question_rate" in row for row in rows)}


def main() -> None:
    assert rlaif.__file__.startswith(str(CODE)), "the copy must be what runs"
    told = {title: outcome(words) for title, words in COMMANDS.items()}
    scores, mask = torch.tensor([[1.0], [2.0], [6.0]]), torch.ones(3, 1, dtype=torch.bool)
    advantages, _ = ALGORITHMS["median"].estimate(scores, 0 * scores, mask, Horizon(1.0, 1.0, 3))
    told["An RL algorithm"]["advantages"] = advantages.flatten().tolist()
    told["A labeler prompt"]["prompt"] = prompt("strict", "docs")
    told["A task"]["prompt"] = prompt("detailed", "riddles")
    told["A metric"] |= reported()
    (CODE / "told.json").write_text(json.dumps(told))


main()
