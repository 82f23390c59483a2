"""A W&B run as people who know W&B expect it: axes, names, arms in a group, lineage, one command to upload it all."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from wandb_files import OfflineRun, offline_runs
from wandb_server import upload, wandb_server

from rlaif.io import read_json, read_jsonl
from rlaif.tracking import Run, WandbOptions
from rlaif.tracking.glossary import describe
from rlaif.tracking.wandb_run import AXES, sync_command

OFFLINE = WandbOptions("p", "offline", None, "ablation", "comparison", (), "text")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No login of the machine reaches a test, and W&B's caches stay in its folder."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    return tmp_path / "home"


def make(directory: Path, options: WandbOptions = OFFLINE, **changes: Any) -> Run:
    own: dict[str, Any] = {
        "stage": "compare",
        "config": {"labeler": {"cot": False}, "seed": 3},
        "overrides": ["experiments=x", "backend.api_key=sk-1234567"],
        "group": None,
        "name": "compare x",
    }
    return Run(directory=directory, wandb_options=options, **(own | changes))


def only(directory: Path) -> OfflineRun:
    (run,) = offline_runs(directory)
    return run


def test_each_stage_has_its_axis(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        run.log({"sft/loss": 2.0}, step=10)
        run.log({"rm/loss": 1.0, "rm/val_loss": 1.5}, step=4)
        run.log({"rl/kl": 0.25, "rl/reward": 1.0}, step=7)
        run.log({"label/n": 3.0}, step=1)
    found = only(tmp_path)
    assert found.history == [
        {"sft/loss": 2.0, "sft/step": 10},
        {"rm/loss": 1.0, "rm/val_loss": 1.5, "rm/step": 4},
        {"rl/kl": 0.25, "rl/reward": 1.0, "rl/iteration": 7},
        {"label/n": 3.0, "step": 1},
    ]
    expected = {"sft/*": "sft/step", "rm/*": "rm/step", "rl/*": "rl/iteration", "label/*": "step"}
    assert expected.items() <= found.axes.items()
    # Those with a best value are defined by themselves, and must not fall back to another axis.
    assert (found.axes["rm/val_loss"], found.axes["rl/reward"]) == ("rm/step", "rl/iteration")
    assert found.axes["rl/kl"] == "rl/iteration" and "rl/kl" not in found.hidden
    assert {"sft/step", "rm/step", "rl/iteration", "step"} == found.hidden
    # Two patterns that fit one name: W&B takes either.
    assert "*" not in found.axes and len({name for name in found.axes if name.endswith("*")}) > 5
    # The local record counts steps in one column.
    rows = [{k: v for k, v in row.items() if k != "time"} for row in read_jsonl(tmp_path / "history.jsonl")]
    assert rows[0] == {"step": 10, "sft/loss": 2.0}


def test_the_summary_keeps_the_last_kl_as_a_number(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        for step, value in enumerate((0.5, 0.2)):
            run.log({"rl/kl": value}, step=step)
    assert only(tmp_path).summary["rl/kl"] == 0.2


def test_axes_are_no_metrics() -> None:
    assert [axis for axis in AXES.values() if describe(axis) is not None] == []


def test_code_and_command_are_in_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlaif.tracking.run._git_commit", lambda: f"{'a' * 40}-dirty")
    with make(tmp_path / "dirty"):
        pass
    monkeypatch.setattr("rlaif.tracking.run._git_commit", lambda: "b" * 40)
    with make(tmp_path / "clean"):
        pass
    monkeypatch.setattr("rlaif.tracking.run._git_commit", lambda: None)
    with make(tmp_path / "wheel"):
        pass
    dirty, clean, wheel = (only(tmp_path / name) for name in ("dirty", "clean", "wheel"))
    assert (dirty.config["code"]["commit"], dirty.config["code"]["dirty"]) == ("a" * 40, True)
    assert (clean.config["code"]["commit"], clean.config["code"]["dirty"]) == ("b" * 40, False)
    assert (wheel.config["code"]["commit"], wheel.config["code"]["dirty"]) == (None, False)
    assert (dirty.commit, clean.commit, wheel.commit) == ("a" * 40, "b" * 40, "")
    assert dirty.config["command"] == "rlaif experiments=x 'backend.api_key=[redacted]'"
    assert dirty.config["code"]["version"] == dirty.config["versions"]["rlaif"]


def arms(run: Run) -> None:
    for arm, repeat in (("base", "seeds.rl=0"), ("base", "seeds.rl=1"), ("cot, long", "seeds.rl=0")):
        with run.arm(arm, repeat, {"labeler": {"cot": arm != "base"}, "seed": int(repeat[-1])}) as own:
            run.log({"rl/kl": 0.5}, step=1)
            own.log({"sft/loss": 2.0}, step=9)  # of another job: not in this one's history
            own.table("samples", [{"prompt": arm}])
            own.summary({"rl/reward": 0.25})


def test_arms_are_runs_of_one_group(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        arms(run)
        run.summary({"base/rl/reward": 0.25})
    comparison, *found = offline_runs(tmp_path)
    assert [one.group for one in (comparison, *found)] == ["ablation"] * 4
    assert [one.job_type for one in (comparison, *found)] == ["comparison", *["arm"] * 3]
    names = ["base, seeds.rl=0", "base, seeds.rl=1", "cot, long, seeds.rl=0"]
    assert sorted(one.name for one in found) == names
    assert len({one.id for one in (comparison, *found)}) == 4
    by_name = {one.name: one for one in found}
    assert by_name[names[2]].config["labeler"] == {"cot": True}
    assert [by_name[name].config["seed"] for name in names] == [0, 1, 0]
    assert [by_name[name].config["arm"] for name in names] == ["base", "base", "cot, long"]
    for one in found:
        assert one.history == [{"rl/kl": 0.5, "rl/iteration": 1}, {"sft/loss": 2.0, "sft/step": 9}]
        assert one.summary["rl/reward"] == 0.25 and one.exit == 0
        assert one.rows("samples") == [{"prompt": one.config["arm"]}]
        assert one.config["comparison"] == tmp_path.name
    assert comparison.history == [] and comparison.summary["base/rl/reward"] == 0.25
    rows = list(read_jsonl(tmp_path / "history.jsonl"))
    assert [(row["arm"], row["run"], row["step"], row["rl/kl"]) for row in rows] == [
        ("base", "seeds.rl=0", 1, 0.5),
        ("base", "seeds.rl=1", 1, 0.5),
        ("cot, long", "seeds.rl=0", 1, 0.5),
    ]


def test_what_only_the_comparison_knows_of_an_arm_is_its_last_word(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        arms(run)
        run.arm_summary("base", "seeds.rl=0", {}, {"rl/reward": 0.25})  # nothing new
        run.arm_summary("base", "seeds.rl=1", {}, {"rl/reward": 0.25, "eval/strength": 0.5})
    _, *found = offline_runs(tmp_path)
    added = [one for one in found if "eval/strength" in one.summary]
    assert len(found) == 4 and len(added) == 1
    assert added[0].id == next(
        one.id for one in found if one.name == "base, seeds.rl=1" and one is not added[0]
    )
    assert added[0].file.parent.name.endswith("-summary")  # both may be opened within a second


def test_a_failing_arm_fails_its_run_and_not_the_one_before(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), make(tmp_path) as run:
        with run.arm("a", "", {}):
            run.log({"rl/kl": 0.5}, step=1)
        with run.arm("b", "", {}):
            raise RuntimeError("out of memory")
    exits = {one.name: one.exit for one in offline_runs(tmp_path)}
    assert exits == {"compare x": 1, "a": 0, "b": 1}


def test_an_arm_whose_run_cannot_start_costs_the_comparison_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with make(tmp_path) as run:
        monkeypatch.setattr("rlaif.tracking.run.open_run", _gone)
        with run.arm("a", "", {}) as own:
            run.log({"rl/kl": 0.5}, step=1)
            own.summary({"rl/reward": 1.0})
        run.arm_summary("a", "", {}, {"rl/reward": 1.0})
    assert [one.name for one in offline_runs(tmp_path)] == ["compare x"]
    assert caplog.text.count("arm a has no W&B run: the service is gone") == 1
    assert next(read_jsonl(tmp_path / "history.jsonl"))["arm"] == "a"
    assert read_json(tmp_path / "meta.json")["state"] == "finished"


def _gone(*_: Any, **__: Any) -> None:
    raise ConnectionError("the service is gone")


def test_without_wandb_an_arm_still_has_its_rows(tmp_path: Path) -> None:
    with make(tmp_path, dataclasses.replace(OFFLINE, mode="disabled")) as run:
        arms(run)
    assert len(list(read_jsonl(tmp_path / "history.jsonl"))) == 3 and not (tmp_path / "wandb").exists()


def test_tables_and_alerts_follow_the_upload_policy(tmp_path: Path) -> None:
    for upload_policy in ("text", "metrics"):
        options = dataclasses.replace(OFFLINE, upload=upload_policy)
        with make(tmp_path / upload_policy, options) as run:
            run.alert("the judge", "may be guessing")
            with run.arm("a", "", {}) as own:
                own.table("judgements", [{"prompt": "private", "p": 0.5}])
    _, arm = offline_runs(tmp_path / "text")
    assert arm.rows("judgements") == [{"prompt": "private", "p": 0.5}]
    (comparison,) = (one for one in offline_runs(tmp_path / "text") if one.job_type == "comparison")
    assert comparison.rows("alerts") == [{"title": "the judge", "text": "may be guessing"}]
    assert comparison.alerts == 0  # it would be sent with the upload, days later
    assert [one.tables for one in offline_runs(tmp_path / "metrics")] == [{}, {}]
    files = [path for path in (tmp_path / "metrics" / "wandb").rglob("*") if path.is_file()]
    assert files and not any(b"private" in path.read_bytes() for path in files)


def test_lineage_and_upload_by_the_printed_command(tmp_path: Path, home: Path) -> None:
    """W&B's own command against a server: arms share what the first made, and no version is made twice."""
    root = tmp_path / "my root"
    directory = root / "runs" / "compare" / "20260101T000000Z-00000000"
    (tmp_path / "rm").mkdir()
    (tmp_path / "rm" / "weights").write_text("w")
    with make(directory) as run:
        for arm, used in (("first", False), ("second", True)):
            with run.arm(arm, "", {}) as own:
                run.log({"rl/kl": 0.5}, step=1)
                own.artifact(name="data-aa", kind="data", metadata={}, used=True)
                own.artifact(
                    name="rm-bb",
                    kind="rm",
                    path=tmp_path / "rm",
                    metadata={"parents": ["data-aa"]},
                    used=used,
                )
                own.artifact(name=f"rl-{arm}", kind="rl", metadata={"parents": ["rm-bb"]})
    _, first, second = sorted(offline_runs(directory), key=lambda one: (one.job_type == "arm", one.name))
    assert [(kind, name, used) for kind, name, used, _ in second.artifacts] == [
        ("dataset", "data-aa", True),
        ("reward-model", "rm-bb", True),
        ("policy", "rl-second", False),
    ]
    assert second.artifacts[2][3] == {"parents": ["rm-bb"]}
    assert first.digests["rm-bb"] == second.digests["rm-bb"]

    command = sync_command(root)
    with wandb_server() as server:
        upload(command, server, str(home))
        assert server.errors == []
        served = {one.name: one for one in server.runs.values()}
        assert set(served) == {"compare x", "first", "second"}
        assert {one.group for one in served.values()} == {"ablation"}
        assert (served["first"].used, served["first"].made) == ({"data-aa"}, {"rm-bb", "rl-first"})
        assert (served["second"].used, served["second"].made) == ({"data-aa", "rm-bb"}, {"rl-second"})
        assert [row["rl/kl"] for row in served["second"].history] == [0.5]
        again = upload(command, server, str(home))
    assert "No runs to sync" in again and len(server.runs) == 3


def test_the_command_quotes_the_folder(tmp_path: Path) -> None:
    assert sync_command(Path("/a b/c")) == "wandb sync '/a b/c'/runs/*/*/wandb/offline-run-*"


def test_an_artifact_with_many_metrics_is_accepted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """W&B takes 100 keys."""
    metrics = {f"rm/m{i}": i for i in range(150)}
    with make(tmp_path) as run:
        run.artifact(name="rm-aa", kind="rm", metadata={"metrics": metrics})
    assert only(tmp_path).artifacts[0][3] == {"metrics": json.loads(json.dumps(metrics))}
    assert "does not accept" not in caplog.text
