"""Runs by the names that users write, and the command line's short words for them."""

from __future__ import annotations

import re

import pytest
from synthetic_runs import write_run

from rlaif.app.command.words import arranged
from rlaif.errors import UserError
from rlaif.tracking.named import named_runs, short_name

STAGES = ("rm", "eval")
FIRST, SECOND, THIRD = "20260101T000000Z-11112222", "20260102T000000Z-3333444a", "20260103T000000Z-5555444a"


@pytest.fixture
def root(tmp_path):
    """Three finished runs, then one that runs, and a report about them."""
    write_run(tmp_path, FIRST, stage="rm")
    write_run(tmp_path, SECOND, stage="eval")
    write_run(tmp_path, THIRD, stage="rm")
    write_run(tmp_path, "20260104T000000Z-77778888", stage="rm", state="running")
    write_run(tmp_path, "20260105T000000Z-99990000", stage="report")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (FIRST, FIRST),
        ("11112222", FIRST),
        ("20260102", SECOND),
        ("latest", THIRD),
        ("latest~0", THIRD),
        ("latest~2", FIRST),
        ("77778888", "20260104T000000Z-77778888"),
    ],
)
def test_a_run_is_found_by_each_of_its_names(root, name, expected):
    assert [run.id for run in named_runs(root, [name], STAGES)] == [expected]


def test_a_run_is_found_by_its_folder_wherever_that_is(root, tmp_path_factory):
    elsewhere = write_run(tmp_path_factory.mktemp("other"), "20250101", stage="rm")
    found = named_runs(root, [f"{elsewhere}/", "latest"], STAGES)
    assert [run.id for run in found] == ["20250101", THIRD]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["2026010"], r"runs=2026010 fits 5 runs: write one of 20260105\S+ \(report\), 20260104"),
        (["444a"], r"runs=444a is no run of .*: write one of 20260105"),
        (["latest~3"], r"runs=latest~3: there are 3 finished runs, so write latest up to latest~2$"),
        ([FIRST, "11112222"], r"has 2026\S+ twice \(run 20260101T000000Z-11112222\)"),
        ([""], r"runs= is no run"),
    ],
)
def test_another_name_is_one_sentence_with_the_candidates(root, names, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        named_runs(root, names, STAGES)
    assert "\n" not in str(error.value)


def test_without_a_run_the_sentence_says_so(tmp_path):
    with pytest.raises(UserError, match="there is no run in"):
        named_runs(tmp_path, ["x"], STAGES)
    with pytest.raises(UserError, match=r"there are no finished runs: run a stage first$"):
        named_runs(tmp_path, ["latest"], STAGES)


def test_a_short_name_is_one_that_finds_the_run(root):
    (run,) = named_runs(root, [FIRST], STAGES)
    assert short_name(run) == "11112222"
    assert named_runs(root, [short_name(run)], STAGES)[0].id == FIRST


def test_short_words_are_settings_whose_names_no_grammar_changes(composed_runs):
    assert arranged(["stage=report", "watch=true"]) == ["stage=report", "report.watch=true"]
    assert arranged(["runs=", "stage=report"]) == ["runs=", "stage=report"], (
        "an empty one is Hydra's to refuse"
    )
    names = ["12345678", "1e234567", "latest~1", "outputs/runs/rm/2026-x", "it's"]
    assert composed_runs(arranged([f"runs={','.join(names)}"])) == names
    assert composed_runs(arranged(["runs=[a, b]"])) == ["a", "b"]


@pytest.fixture
def composed_runs():
    from jobs import job_context

    return lambda words: list(job_context(["stage=report", *words]).options.report.runs)


def test_short_words_need_the_report(tmp_path):
    from jobs import start_job

    for word, key in (("report.runs=[a]", "report.runs"), ("report.watch=true", "report.watch")):
        with pytest.raises(UserError, match=re.escape(f"{key} has no meaning with stage=rm")):
            start_job(["stage=rm", "profile=smoke", f"paths.root={tmp_path}", word])
