"""Six things that a newcomer adds by following CONTRIBUTING.md, each in at most three files of the product."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from recipe_edits import CODE, PRODUCT, Edit, read_recipes

TITLES = ["An RL algorithm", "A labeler prompt", "A task", "A metric", "A backend", "A reward"]


def test_each_recipe_touches_at_most_three_files_and_they_share_none(scratch: Path) -> None:
    recipes = read_recipes()
    assert set(TITLES) <= set(recipes)
    touched = {title: {edit.file for edit in edits} for title, edits in recipes.items()}
    assert all(1 <= len(files) <= 3 for files in touched.values()), touched
    assert all(file.split("/")[0] in PRODUCT for files in touched.values() for file in files)
    assert changed(CODE, scratch) == set().union(*touched.values()), "nothing else may change"


def changed(old: Path, new: Path) -> set[str]:
    """Files of the product that are not the same in both."""

    def texts(root: Path) -> set[tuple[str, bytes]]:
        files = (file for name in PRODUCT for file in (root / name).rglob("*") if file.is_file())
        return {(str(file.relative_to(root)), file.read_bytes()) for file in files if file.suffix != ".pyc"}

    return {name for name, _ in texts(old) ^ texts(new)}


def test_an_edit_that_finds_no_place_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("KINDS = {\n}\n")
    with pytest.raises(ValueError):
        Edit("a.py", "in `ENGINES`", "x").apply(tmp_path)
    Edit("a.py", "in `KINDS`", "    1: 2,\n").apply(tmp_path)
    assert (tmp_path / "a.py").read_text() == "KINDS = {\n    1: 2,\n}\n"


@pytest.mark.parametrize("title", TITLES)
def test_its_command_runs(told: dict[str, dict[str, Any]], title: str) -> None:
    assert "error" not in told[title], told[title]["error"]


def test_an_algorithm_trains_on_its_own_advantages(told: dict[str, dict[str, Any]]) -> None:
    summary = told["An RL algorithm"]
    assert summary["advantages"] == [-1.0, 0.0, 4.0]
    assert summary["rl/iterations"] >= 2 and abs(summary["rl/ratio_first"] - 1) <= 1e-5
    assert "rl/clip_fraction" in summary and "rl/value_loss" not in summary


def test_a_prompt_begins_with_its_preamble_at_labeler_and_judge(told: dict[str, dict[str, Any]]) -> None:
    summary = told["A labeler prompt"]
    assert summary["prompt"].startswith("You are a strict examiner.")
    assert "<<<function\nPROMPT" in summary["prompt"], "the rest comes from the task"
    assert summary["name of labeler"] == summary["name of judge"] == "strict"
    assert summary["label/alignment"] == 1.0


def test_a_task_has_its_own_texts_and_the_common_ones(told: dict[str, dict[str, Any]]) -> None:
    summary = told["A task"]
    assert summary["name of task"] == "riddles"
    assert "<<<riddle\nPROMPT" in summary["prompt"] and "Which answer solves the riddle" in summary["prompt"]
    assert summary["prompt"].startswith("You compare answers."), "the common preamble"
    assert summary["label/alignment"] == 1.0 and summary["label/n"] > 0


def test_a_metric_is_in_the_summary_the_history_and_the_report(told: dict[str, dict[str, Any]]) -> None:
    """W&B gets what the summary and the history have (`tests/stages/test_recipe_metric.py`)."""
    summary = told["A metric"]
    assert 0 <= summary["rl/question_rate"] < 0.2, "random bytes seldom end in a question mark"
    assert summary["history"] == summary["rl/iterations"] >= 2
    explained = (
        '<abbr title="rl/question_rate – responses that end in a question mark / responses; unit: fraction; '
    )
    line = summary["page"].split(explained)[1].split("</tr>")[0]
    assert ">ends in a question</abbr>" in line and f">{100 * summary['rl/question_rate']:.1f}%<" in line


def test_a_backend_answers_and_is_free(told: dict[str, dict[str, Any]]) -> None:
    summary = told["A backend"]
    assert summary["label/alignment"] == 1.0, "the shorter answer is the right one in every riddle"
    assert summary["label/choice_mass"] == pytest.approx(1.0) and summary["label/unparsed_rate"] == 0
    assert summary["label/usd"] == 0


def test_a_reward_is_brought_to_the_scale_of_references(told: dict[str, dict[str, Any]]) -> None:
    summary = told["A reward"]
    assert "standard deviation 1 on" in summary["rl/reward_scale"]
    assert summary["rl/reward_raw_mean"] < -3, "references of several words"
    assert math.isfinite(summary["rl/reward"])
