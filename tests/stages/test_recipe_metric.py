"""CONTRIBUTING: add a metric. Done as it says there, on scratch copies: a registry with one entry more, and its stage.

The metric is how many pairs the reward model hardly tells apart; of its two files the first is `glossary.yaml`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs import start_job
from wandb_files import wandb_records

from rlaif.io import read_jsonl
from rlaif.stages.registry import STAGES
from rlaif.tracking import glossary

NAME = "rm/margin_low"
ENTRY = f"""
  {NAME}: {{label: RM low margins, unit: fraction, range: "[0, 1]", format: percent, better: down,
    formula: test pairs whose rewards differ by less than 1 / test pairs}}
"""
SHOWN = [  # table, and the line it goes behind
    ("      rm/gold_accuracy: accuracy on gold\n", f"      {NAME}: low margins\n"),
    ("      rm/gold_accuracy: on gold\n", f"      {NAME}: pairs of low margin\n"),
    ("    rm: [rm/accuracy,", f" {NAME},"),
    ("  page_ranked_by: [", f"{NAME}, "),
]


@pytest.fixture
def scratch_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The first file: the entry, and where it is shown."""
    text = glossary.FILE.read_text(encoding="utf-8").replace("\n# A table is", f"{ENTRY}\n# A table is", 1)
    for line, more in SHOWN:
        assert text.count(line) == 1, line
        text = text.replace(line, line + more)
    file = tmp_path / "glossary.yaml"
    file.write_text(text, encoding="utf-8")
    monkeypatch.setattr(glossary, "FILE", file)
    glossary.registry.cache_clear()
    yield
    glossary.registry.cache_clear()


@pytest.fixture
def scratch_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second file: the stage measures it (here, out of what it has written)."""
    stage = STAGES["rm"]

    def build(ctx: Any, folder: Path, parents: Any) -> dict[str, Any]:
        metrics = stage.build(ctx, folder, parents)
        low = [abs(row["reward_a"] - row["reward_b"]) < 1 for row in read_jsonl(folder / "scores.jsonl")]
        return metrics | {NAME: sum(low) / len(low)}

    changed = {**STAGES, "rm": dataclasses.replace(stage, build=build)}
    monkeypatch.setattr("rlaif.app.job.STAGES", changed)


def test_a_metric_is_one_entry_and_one_line_of_its_stage(
    scratch_registry: None,
    scratch_stage: None,
    copied_root: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    root = copied_root(["sft", "sample", "label"])
    words = ["profile=smoke", "stage=rm", f"paths.root={root}"]
    first = start_job([*words, "tracking.mode=offline"], "sweep")
    shown = capsys.readouterr().out
    second = start_job([*words, "tracking=none", "rm.lr=0.02"], "sweep")
    swept = capsys.readouterr().out
    assert first is not None and second is not None
    shares = [float(record.summary[NAME]) for record in (first, second)]
    values = [f"{100 * share:.1f}%" for share in shares]
    assert len(set(values)) == 2
    # The result table and the terminal's ablation table.
    assert values[0] in next(line for line in shown.splitlines() if "low margins" in line)
    ablation = swept[swept.index("Arms") :]
    assert "RM low" in ablation and all(value in ablation for value in values)
    # The page: of a run its label, its section's fact and its formula; of a sweep, the best arm is the lower one.
    page = (root / "reports" / f"rm-{first.id}.html").read_text(encoding="utf-8")
    assert "pairs of low margin" in page and f"{NAME} – test pairs whose rewards differ by less" in page
    best = "rm.lr=0.02" if shares[1] < shares[0] else "default"
    sweep = (root / "reports" / "sweep-sweep.html").read_text(encoding="utf-8")
    assert f"{best} has the best RM low margins {min(values, key=lambda v: float(v[:-1]))}" in sweep
    # W&B: its summary has the run's value, and of a history it would keep the lowest.
    records = wandb_records(first.path)
    assert (NAME, True) in [(r.metric.name, r.metric.summary.min) for r in records if r.HasField("metric")]
    updates = [item for r in records if r.HasField("summary") for item in r.summary.update]
    assert [float(item.value_json) for item in updates if item.key == NAME] == [shares[0]]
