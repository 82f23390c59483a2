"""The run record on disk, and its W&B mirror read back from the files that W&B wrote."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb_files import wandb_records

import rlaif
from rlaif.errors import UserError
from rlaif.io import read_json, read_jsonl
from rlaif.io.lineage import ArtifactKey, LineageRow
from rlaif.tracking import Run, WandbOptions, run_directory
from rlaif.tracking.wandb_run import resolve_mode

OPTIONS = WandbOptions(
    project="rlaif-test",
    mode="offline",
    entity=None,
    group=None,
    job_type="rm",
    tags=("a", "b"),
    upload="text",
)
KEY = "a" * 40


@pytest.fixture(autouse=True)
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No W&B login of the machine reaches a test, and W&B's caches stay in the test's folder."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))


def make(directory: Path, wandb_options: WandbOptions | None = None, **changes: Any) -> Run:
    arguments: dict[str, Any] = {
        "stage": "rm",
        "config": {"lr": 1e-5, "model": {"name": "tiny", "max_new_tokens": 8}},
        "overrides": ["stage=rm", "seed=1"],
        "group": "ablation",
        "name": "rm-cot",
    }
    return Run(directory=directory, wandb_options=wandb_options, **(arguments | changes))


def exit_code(directory: Path) -> int:
    codes = [record.exit.exit_code for record in wandb_records(directory) if record.HasField("exit")]
    assert len(codes) == 1
    return int(codes[0])


def wandb_history(directory: Path) -> list[dict[str, Any]]:
    rows = []
    for record in wandb_records(directory):
        if record.HasField("history"):
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            rows.append({key: json.loads(value) for key, value in items.items() if not key.startswith("_")})
    return rows


def test_files_of_a_finished_run(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        assert read_json(tmp_path / "meta.json")["state"] == "running"
        assert read_json(run.summary_path) == {}
        run.log({"rm/loss": 0.7}, step=1)
        run.log({"rm/loss": float("nan"), "rm/accuracy": 0.5}, step=2)
        run.summary({"rm/accuracy": 0.5, "eval/judge": "a"})
        run.summary({"rm/accuracy": 0.75, "rm/ece": float("inf")})
        run.lineage(
            [
                LineageRow(
                    "sft",
                    "ab",
                    (ArtifactKey("data", "cd"),),
                    seed=1,
                    metrics={"sft/loss": math.nan},
                    config={"backend": {"api_key": "hidden", "name": "m"}, "lr": 0.1},
                    version=3,
                    data_hash="ef",
                )
            ]
        )
        run.table("samples", [{"prompt": "p", "n": 1}, {"prompt": "q", "score": float("nan")}])
        for text in ("the judge is the labeler", "it may be guessing", "the judge is the labeler"):
            run.alert("Judge", text)  # the third says nothing new
        assert run.wandb_run is None and run.summary_path == tmp_path / "summary.json"
    history = list(read_jsonl(tmp_path / "history.jsonl"))
    assert all(0 <= row.pop("time") < 5 for row in history)
    assert history == [{"step": 1, "rm/loss": 0.7}, {"step": 2, "rm/loss": None, "rm/accuracy": 0.5}]
    assert read_json(tmp_path / "summary.json") == {"rm/accuracy": 0.75, "eval/judge": "a", "rm/ece": None}
    assert read_json(tmp_path / "lineage.json") == [
        {
            "kind": "sft",
            "digest": "ab",
            "parents": [{"kind": "data", "digest": "cd"}],
            "seed": 1,
            "metrics": {"sft/loss": None},
            "created": None,
            "seconds": None,
            "bytes": None,
            "reused": True,
            "config": {"backend": {"api_key": "[redacted]", "name": "m"}, "lr": 0.1},
            "version": 3,
            "data_hash": "ef",
        }
    ]
    rows = list(read_jsonl(tmp_path / "tables" / "samples.jsonl"))
    assert rows == [{"prompt": "p", "n": 1}, {"prompt": "q", "score": None}]
    alerts = list(read_jsonl(tmp_path / "alerts.jsonl"))
    assert [(row["title"], row["text"]) for row in alerts] == [
        ("Judge", "the judge is the labeler"),
        ("Judge", "it may be guessing"),
    ]
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config == {"lr": 1e-5, "model": {"name": "tiny", "max_new_tokens": 8}}
    meta = read_json(tmp_path / "meta.json")
    assert (meta["state"], meta["error"], meta["wandb"]) == ("finished", None, None)
    assert (meta["stage"], meta["name"], meta["group"]) == ("rm", "rm-cot", "ablation")
    assert meta["overrides"] == ["stage=rm", "seed=1"]
    assert meta["started"] <= meta["finished"] and meta["started"].endswith("+00:00")
    assert set(meta["versions"]) == {"python", "rlaif", "torch", "transformers", "pytorch_lightning"}
    assert "git" in meta
    assert not (tmp_path / "wandb").exists()
    assert "NaN" not in "".join(path.read_text() for path in tmp_path.rglob("*.json*"))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UserError("rm.lr is -1; write a positive number"), "rm.lr is -1; write a positive number"),
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_a_failure_is_recorded_and_passed_on(tmp_path: Path, error: BaseException, sentence: str) -> None:
    with pytest.raises(type(error)) as caught, make(tmp_path):
        raise error
    assert caught.value is error
    meta = read_json(tmp_path / "meta.json")
    assert (meta["state"], meta["error"]) == ("failed", sentence)
    assert meta["finished"] is not None


def test_secrets_are_in_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_API_KEY", "sk-from-environment")
    config = {
        "backend": {"api_key": "sk-config", "copied": "sk-from-environment"},
        "hub": {"hf_token": "hf-config", "password": "pw-config", "client_secret": "cs-config"},
        "labeler": {"max_new_tokens": 32},
    }
    run = make(tmp_path, OPTIONS, config=config, overrides=["backend.api_key=sk-override"])
    with pytest.raises(RuntimeError), run:
        run.alert("server", "refused sk-from-environment")
        raise RuntimeError("refused key sk-from-environment")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["labeler"] == {"max_new_tokens": 32}
    assert read_json(tmp_path / "meta.json")["overrides"] == ["backend.api_key=[redacted]"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    content = b"".join(path.read_bytes() for path in files)
    assert b"max_new_tokens" in content and len(list(tmp_path.rglob("run-*.wandb"))) == 1
    for secret in (b"sk-config", b"sk-from", b"sk-override", b"hf-config", b"pw-config", b"cs-config"):
        assert secret not in content, secret


def test_wandb_does_not_record_the_command_line(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from rlaif.tracking import Run, WandbOptions
options = WandbOptions("p", "offline", None, None, "rm", (), "text")
with Run(directory=Path(sys.argv[1]), stage="rm", config={}, overrides=sys.argv[2:], group=None, name="n",
         wandb_options=options):
    pass
"""
    script = tmp_path / "train.py"
    script.write_text(code)
    command = [sys.executable, str(script), str(tmp_path / "run"), "backend.api_key=sk-override"]
    environment = os.environ | {"PYTHONPATH": str(Path(rlaif.__file__).parents[1])}
    subprocess.run(command, env=environment, capture_output=True, check=True)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert not [path for path in files if b"sk-override" in path.read_bytes()]


def test_offline_run_mirrors_everything(tmp_path: Path) -> None:
    started = time.monotonic()
    with make(tmp_path, OPTIONS) as run:
        assert run.wandb_run is not None and run.wandb_run.offline
        run.log({"rm/loss": 0.7}, step=10)
        run.log({"rm/loss": float("nan")}, step=20)
        run.summary({"rm/accuracy": 0.75})
        run.table("samples", [{"prompt": "p", "tags": ["x"]}, {"score": 1}])
        run.lineage(
            [LineageRow("sft", "ab", (ArtifactKey("data", "cd"),), seed=1, metrics={"sft/loss": math.nan})]
        )
        run.alert("t", "offline: no call to the server")
    assert time.monotonic() - started < 10
    assert exit_code(tmp_path) == 0
    records = wandb_records(tmp_path)
    started_run = next(record.run for record in records if record.HasField("run"))
    assert started_run.project == "rlaif-test" and started_run.run_group == "ablation"
    assert started_run.job_type == "rm" and list(started_run.tags) == ["a", "b"]
    assert started_run.display_name == "rm-cot"
    config = {item.key: json.loads(item.value_json) for item in started_run.config.update}
    assert config["lr"] == 1e-5 and config["model"] == {"name": "tiny", "max_new_tokens": 8}
    assert set(config["versions"]) >= {"torch", "rlaif"}
    history = wandb_history(tmp_path)
    assert history[0] == {"rm/loss": 0.7, "rm/step": 10}
    assert history[1]["rm/step"] == 20 and str(history[1]["rm/loss"]).lower() == "nan"
    tables = list(tmp_path.glob("wandb/offline-run-*/files/media/table/tables/samples*.table.json"))
    assert len(tables) == 1
    table = read_json(tables[0])
    assert table["columns"] == ["prompt", "tags", "score"]
    assert table["data"] == [["p", "['x']", None], [None, None, 1]]
    meta = read_json(tmp_path / "meta.json")["wandb"]
    assert meta["mode"] == "offline" and f"run-{meta['id']}.wandb" in str(list(tmp_path.rglob("*.wandb")))


def test_wandb_keeps_the_best_of_a_history_and_the_summarys_own_value(tmp_path: Path) -> None:
    """Which is best, the registry says; a metric without a direction keeps its last value."""
    with make(tmp_path, OPTIONS) as run:
        for step, value in enumerate((0.5, 0.2, 0.4)):
            run.log(
                {"rm/val_loss": value, "rm/val_accuracy": value, "rl/kl": value, "rl/reward": value}, step
            )
        run.summary({"rl/reward": 0.3})
    kept: dict[str, Any] = {}
    for record in wandb_records(tmp_path):
        if record.HasField("summary"):
            items = record.summary.update
            kept |= {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
    assert kept["rm/val_loss"] == {"min": 0.2} and kept["rm/val_accuracy"] == {"max": 0.5}
    assert (kept["rl/kl"], kept["rl/reward"]) == (0.4, 0.3)


def test_upload_policy_metrics_keeps_text_local(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "weights.txt").write_text("private weights")
    with make(tmp_path / "run", dataclasses.replace(OPTIONS, upload="metrics")) as run:
        run.table("samples", [{"prompt": "private text"}])
        run.artifact(name="sft-ab", kind="sft", path=source, metadata={"n": 1})
    uploaded = [path for path in (tmp_path / "run" / "wandb").rglob("*") if path.is_file()]
    assert uploaded and not any(b"private text" in path.read_bytes() for path in uploaded)
    assert (tmp_path / "run" / "tables" / "samples.jsonl").exists()


@pytest.mark.parametrize(
    ("upload", "files"), [("metrics", []), ("text", ["file"]), ("weights", ["weights.txt"])]
)
def test_artifact_mirror_follows_the_upload_policy(tmp_path: Path, upload: Any, files: list[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "weights.txt").write_text("w")
    with make(tmp_path / "run", dataclasses.replace(OPTIONS, upload=upload)) as run:
        run.artifact(name="sft-ab", kind="sft", path=source, metadata={"api_key": "x", "n": 1})
    sent = [record for record in wandb_records(tmp_path / "run") if record.HasField("request")]
    artifacts = [
        record.request.log_artifact.artifact for record in sent if record.request.HasField("log_artifact")
    ]
    artifacts += [
        record.artifact for record in wandb_records(tmp_path / "run") if record.HasField("artifact")
    ]
    assert [(artifact.name, artifact.type) for artifact in artifacts] == [("sft-ab", "sft")]
    assert json.loads(artifacts[0].metadata) == {"api_key": "[redacted]", "n": 1}
    contents = artifacts[0].manifest.contents
    assert len(contents) == len(files)
    assert [bool(entry.local_path) for entry in contents] == [upload == "weights"] * len(files)


def test_three_runs_in_one_process_with_a_failing_middle(tmp_path: Path) -> None:
    environment = dict(os.environ)
    directories = [tmp_path / name for name in ("one", "two", "three")]
    ids = []
    for index, directory in enumerate(directories):
        try:
            with make(directory, OPTIONS, name=f"job-{index}") as run:
                ids.append(run.wandb_run.id)  # type: ignore[union-attr]
                run.log({"rm/loss": float(index)}, step=index)
                if index == 1:
                    raise RuntimeError("middle")
        except RuntimeError as error:
            assert str(error) == "middle"
    assert len(set(ids)) == 3
    assert [exit_code(directory) for directory in directories] == [0, 1, 0]
    states = [read_json(directory / "meta.json")["state"] for directory in directories]
    assert states == ["finished", "failed", "finished"]
    histories = [wandb_history(directory) for directory in directories]
    assert histories == [[{"rm/loss": float(index), "rm/step": index}] for index in range(3)]
    assert os.environ.get("WANDB_MODE") == environment.get("WANDB_MODE") is None
    import wandb

    assert wandb.run is None


def test_a_user_error_prints_no_traceback(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError), make(tmp_path, OPTIONS):
        raise UserError("no such column")
    captured = capfd.readouterr()
    assert "Traceback" not in captured.err + captured.out
    assert captured.out == ""  # stdout's last line belongs to the command


@pytest.mark.parametrize(
    ("environment", "netrc", "expected"),
    [
        ({}, None, "offline"),
        ({"WANDB_API_KEY": KEY}, None, "online"),
        ({"WANDB_API_KEY": ""}, None, "offline"),
        ({}, f"machine api.wandb.ai login user password {KEY}\n", "online"),
        ({}, f"machine api.forge.coreweave.com login user password {KEY}\n", "online"),
        (
            {"WANDB_BASE_URL": "https://wandb.example.org"},
            f"machine api.wandb.ai login u password {KEY}\n",
            "offline",
        ),
        ({}, f"machine example.org login user password {KEY}\n", "offline"),
        ({}, "machine", "offline"),
        (
            {"WANDB_BASE_URL": "https://wandb.example.org"},
            f"machine wandb.example.org login u password {KEY}\n",
            "online",
        ),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, None, "offline"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, None, "disabled"),
    ],
)
def test_mode_auto(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    netrc: str | None,
    expected: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if netrc is not None:
        (tmp_path / "netrc").write_text(netrc)
        (tmp_path / "netrc").chmod(0o600)
    assert resolve_mode("auto") == expected
    assert resolve_mode("online") == "online" and resolve_mode("offline") == "offline"


def test_auto_goes_offline_when_the_server_is_away(tmp_path: Path) -> None:
    # In a process of its own: W&B reads the server's address once per process. Nothing listens on port 9.
    code = """
import sys
from pathlib import Path
from rlaif.errors import UserError
from rlaif.tracking import Run, WandbOptions, wandb_run
wandb_run._CONNECT_SECONDS = 1.0
for mode in ("auto", "online"):
    options = WandbOptions("p", mode, None, None, "rm", (), "text")
    run = Run(directory=Path(sys.argv[1]) / mode, stage="rm", config={}, overrides=[], group=None, name="n",
              wandb_options=options)
    try:
        with run:
            run.log({"rm/loss": 1.0}, step=1)
            print("body", mode)
    except UserError as error:
        print(error)
"""
    environment = os.environ | {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert len(lines) == 2 and lines[0] == "body auto", result.stdout + result.stderr
    assert lines[1].startswith("tracking.mode=online: ") and "127.0.0.1:9" in lines[1]
    assert lines[1].endswith("write tracking.mode=offline to track without the server")
    assert "tracking offline, `wandb sync` uploads it later" in result.stderr
    assert exit_code(tmp_path / "auto") == 0
    assert read_json(tmp_path / "auto" / "meta.json")["wandb"]["mode"] == "offline"
    meta = (tmp_path / "online" / "meta.json").read_text()
    assert json.loads(meta)["state"] == "failed" and KEY not in meta


def test_disabled_does_not_import_wandb(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from rlaif.tracking import Run, WandbOptions
options = WandbOptions("p", "disabled", None, None, "rm", (), "text")
with Run(directory=Path({str(tmp_path / "run")!r}), stage="rm", config={{}}, overrides=[], group=None,
         name="n", wandb_options=options) as run:
    run.log({{"rm/loss": 1.0}}, step=0)
    run.table("t", [{{"a": 1}}])
    assert run.wandb_run is None
print(sorted({{"wandb", "torch", "pytorch_lightning"}} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_options_name_the_allowed_values() -> None:
    with pytest.raises(
        UserError, match=r"tracking\.mode is 'on'; write one of auto, online, offline, disabled"
    ):
        dataclasses.replace(OPTIONS, mode="on")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"tracking\.upload is 'all'; write one of metrics, text, weights"):
        dataclasses.replace(OPTIONS, upload="all")  # type: ignore[arg-type]


def test_run_directory_is_new_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [run_directory(tmp_path, "rm") for _ in range(20)]
    assert len(set(paths)) == 20 and all(
        path.is_dir() and path.parent == tmp_path / "runs" / "rm" for path in paths
    )
    assert all(re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{8}", path.name) for path in paths)


def test_a_directory_holds_one_run(tmp_path: Path) -> None:
    with make(tmp_path):
        pass
    before = (tmp_path / "meta.json").read_text()
    with pytest.raises(UserError, match="already holds a run"), make(tmp_path):
        raise AssertionError("the body must not run")
    assert (tmp_path / "meta.json").read_text() == before


def test_reserved_and_nested_names_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), make(tmp_path) as run:
        with pytest.raises(ValueError, match="'step' is a reserved column"):
            run.log({"step": 1.0}, step=1)
        with pytest.raises(ValueError, match="the summary is flat"):
            run.summary({"rm/list": [1, 2]})  # type: ignore[dict-item]
        with pytest.raises(ValueError, match="leaves the tables folder"):
            run.table("../evil", [{"a": 1}])
    assert not (tmp_path / "history.jsonl").exists() and read_json(tmp_path / "summary.json") == {}
    assert not (tmp_path / "evil.jsonl").exists()
