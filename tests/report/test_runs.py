"""Reading run directories, whole and broken."""

import json

import pytest
from synthetic_runs import full_run, ppo_history, write_run

from rlaif.errors import UserError
from rlaif.tracking.runs import find_runs, interval, load_run, number, series


def test_a_whole_run_is_read_back(tmp_path):
    run = load_run(full_run(tmp_path))
    assert (run.stage, run.state, run.id) == ("pipeline", "finished", "20260101-a")
    assert run.summary["eval/win_rate"] == 0.63
    assert run.config["rl"]["algorithm"] == "ppo"
    assert len(run.table("samples")) == 14 and run.table("absent") == []
    assert run.problems == ()


def test_a_half_written_run_is_tolerated_and_named(tmp_path):
    path = full_run(tmp_path)
    with (path / "history.jsonl").open("a") as stream:
        stream.write('{"step": 99, "rl/rew')
    (path / "summary.json").write_text('{"eval/win')
    (path / "lineage.json").write_text("[{")
    (path / "config.yaml").unlink()
    run = load_run(path)
    assert run.summary == {} and run.lineage == () and run.config == {}
    assert len(run.history) == 100  # 30 + 30 + 40 whole lines, the broken one left out
    assert set(run.problems) == {
        "config.yaml is missing",
        "summary.json is not readable",
        "lineage.json is not readable",
        "history.jsonl, line 101 is not readable",
    }


def test_the_line_that_a_running_run_is_writing_is_not_there_yet(tmp_path):
    path = write_run(tmp_path, "20260101-a", history=ppo_history(rows=3), state="running")
    with (path / "history.jsonl").open("a") as stream:
        stream.write('{"step": 99, "rl/rew')
    run = load_run(path)
    assert len(run.history) == 3 and run.problems == ()
    with (path / "history.jsonl").open("a") as stream:
        stream.write('ard": 0.5}\n')
    assert load_run(path).history[-1] == {"step": 99, "rl/reward": 0.5}


def test_runs_of_one_second_are_in_the_order_of_their_start(tmp_path):
    """A directory's name tells the second, and then an id drawn at random."""
    for name, fraction in (("20260101T000000Z-f", "120"), ("20260101T000000Z-a", "950")):
        path = write_run(tmp_path, name)
        meta = json.loads((path / "meta.json").read_text())
        meta["started"] = f"2026-01-01T00:00:00.{fraction}+00:00"
        (path / "meta.json").write_text(json.dumps(meta))
    write_run(tmp_path, "20251231T235959Z-z")
    assert [run.path.name[-1] for run in find_runs(tmp_path)] == ["z", "f", "a"]


def test_find_runs_filters_and_orders(tmp_path):
    write_run(tmp_path, "20260102-b", stage="rm", group="sweep")
    write_run(tmp_path, "20260101-a", stage="sft")
    write_run(tmp_path, "20260103-c", stage="rm", state="running")
    (tmp_path / "runs" / "rm" / "20260104-d").mkdir()
    assert [run.id for run in find_runs(tmp_path)] == ["20260101-a", "20260102-b"]
    assert [run.id for run in find_runs(tmp_path / "runs", stage="rm")] == ["20260102-b"]
    assert [run.id for run in find_runs(tmp_path, group="sweep")] == ["20260102-b"]
    assert len(find_runs(tmp_path, state=None)) == 3
    assert find_runs(tmp_path / "nothing") == []


def test_a_missing_directory_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no such run directory"):
        load_run(tmp_path / "absent")


def test_numbers_intervals_and_series_leave_out_what_is_not_finite():
    nan = float("nan")
    assert number({"a": nan, "b": 2}, "a", "b") == 2.0
    assert number({"a": True, "b": "x", "c": float("inf")}, "a", "b", "c") is None
    assert interval({"m": 0.5, "m_ci_low": nan, "m_ci_high": 0.6}, "m") is None
    found = interval({"m": 0.5, "m_ci_low": 0.4, "m_ci_high": 0.6}, "m")
    assert (found.low, found.high) == (0.4, 0.6)
    rows = [{"step": 3, "m": 1.0}, {"step": 4, "m": nan}, {"step": 5, "other": 1}, {"step": 6, "m": 2}]
    assert series(rows, "m") == ([3.0, 6.0], [1.0, 2.0])
    assert len(series(ppo_history(rows=7), "rl/kl")[0]) == 7
