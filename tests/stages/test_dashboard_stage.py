"""stage=dashboard as users run it: files without a login, views with one, and a sentence when W&B is not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import wandb
import wandb_workspaces.reports.v2.interface as reports
import wandb_workspaces.workspaces.internal as workspaces
from jobs import start_job

from rlaif.app.dashboard import saving, stage
from rlaif.errors import UserError
from rlaif.io import read_json


class Server:
    """Stands for W&B's: keeps the views that are saved, by id."""

    def __init__(self) -> None:
        self.views: dict[str, dict[str, Any]] = {}
        self.default_entity = "me"

    def projects(self, entity: str) -> list[Any]:
        return []

    def create_project(self, name: str, entity: str) -> None:
        self.created = (name, entity)

    def answer(self, api: Any, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        known = variables.get("id")
        if known is not None and known not in self.views:
            raise ValueError(f"no view {known}")
        key = known or f"view-{len(self.views)}"
        self.views[key] = dict(variables)
        view = {"id": key, "name": variables["name"], "displayName": variables["displayName"]}
        spec, project = (
            variables["spec"],
            {"name": variables["projectName"], "entityName": variables["entityName"]},
        )
        return {"upsertView": {"view": view | {"description": "", "spec": spec, "project": project}}}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    found = Server()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb, "Api", lambda *_, **__: found)
    monkeypatch.setattr(saving, "check_reachable", lambda: None)
    for module in (reports, workspaces):
        monkeypatch.setattr(module, "execute_graphql", found.answer)
    monkeypatch.setattr(reports, "get_app_url", lambda _: "https://wandb.example")
    monkeypatch.setattr(
        "wandb_workspaces.workspaces.interface.get_app_url", lambda _: "https://wandb.example"
    )
    return found


@pytest.fixture
def root(pipeline: Any, tmp_path: Path) -> Path:
    """A root with the run of a whole pipeline."""
    shutil.copytree(pipeline.path, tmp_path / "runs" / "pipeline" / pipeline.path.name)
    return tmp_path


def dashboard(root: Path, *words: str) -> Any:
    return start_job(["stage=dashboard", "profile=smoke", f"paths.root={root}", *words])


def test_without_a_login_the_specification_is_a_file(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "save", lambda *_: pytest.fail("nothing is saved"))
    record = dashboard(root, "tracking.mode=offline", "tracking.project=ours", "dashboard=rl")
    told = capsys.readouterr().out
    folder = root / "dashboards" / "rl"
    assert "since W&B's mode is offline" in told and f"W&B report: {folder / 'report.json'}" in told
    assert f"rlaif stage=dashboard profile=smoke paths.root={root} tracking.project=ours dashboard=rl" in told
    assert "tracking.mode=offline" not in told and "tracking.mode=online" in told
    assert (
        record.summary["dashboard/path"] == str(folder / "index.html")
        and "dashboard/report" not in record.summary
    )
    assert "<svg" in (folder / "index.html").read_text(encoding="utf-8")
    workspace, report = (read_json(folder / f"{name}.json") for name in ("workspace", "report"))
    assert workspace["project"] == report["project"]["name"] == "ours" and workspace["displayName"] == "RL"
    text = json.dumps([workspace, report])
    assert str(root) not in text and "http" not in text
    assert not list(record.path.glob("wandb/*")) and "dashboard" not in record.config


def test_with_one_it_is_saved_and_later_replaced(server: Server, root: Path, capsys: Any) -> None:
    first = dashboard(root, "tracking.mode=online")
    assert first.summary["dashboard/workspace"].startswith("https://wandb.example/me/rlaif?nw=")
    assert first.summary["dashboard/report"] == "https://wandb.example/me/rlaif/reports/Ablation--view-1"
    assert "W&B report: https://wandb.example/me" in capsys.readouterr().out
    assert {view["type"] for view in server.views.values()} == {"project-view", "runs"}
    kept = read_json(root / "dashboards" / "ablation" / "workspace.json")
    assert json.loads(server.views["view-0"]["spec"]) == kept["spec"]
    again = dashboard(root, "tracking.mode=online", "dashboard.sections.frontier=null")
    assert len(server.views) == 2 and again.summary["dashboard/report"] == first.summary["dashboard/report"]
    assert "Helpful" in kept["spec"]["section"]["panelBankConfig"]["sections"][1]["name"]
    assert "Helpful" not in server.views["view-0"]["spec"]
    server.views.clear()  # deleted by hand: a new one is made
    dashboard(root, "tracking.mode=online")
    assert len(server.views) == 2
    dashboard(root, "tracking.mode=online", "tracking.entity=team")
    assert len(server.views) == 4 and server.views["view-3"]["entityName"] == "team"


@pytest.mark.parametrize("mode", ["online", "auto"])
def test_a_server_that_is_not_there_is_a_sentence(
    server: Server, root: Path, monkeypatch: pytest.MonkeyPatch, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    def gone() -> None:
        raise OSError("accepts no connection")

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(saving, "check_reachable", gone)
    if mode == "online":
        with pytest.raises(UserError, match=r"did not save the dashboard \(accepts no connection\)"):
            dashboard(root, "tracking.mode=online")
    else:
        dashboard(root)
        assert "the same command tries again" in caplog.text
    assert (root / "dashboards" / "ablation" / "report.json").is_file() and not server.views


def test_a_metric_that_does_not_exist_stops_any_job_at_its_start(root: Path) -> None:
    word = "dashboard.sections.curves.panels.sft.metrics=[sft/los]"
    with pytest.raises(UserError, match="sft/los is no metric of the registry: did you mean sft/loss"):
        start_job(["stage=sft", "profile=smoke", "tracking=none", f"paths.root={root}", word])
    assert not (root / "runs" / "sft").exists()


def test_the_layout_is_that_of_the_report_too(root: Path) -> None:
    """Overrides reach the page of stage=report, and make no arm."""
    words = ["dashboard=labels", "dashboard.sections.lineage=null", "tracking=none"]
    record = start_job(["stage=report", "profile=smoke", f"paths.root={root}", *words])
    text = Path(str(record.summary["report/path"])).read_text(encoding="utf-8")
    assert "<h2>Lineage" not in text and "<h2>Labeler" in text and "<h2>Learning curves" not in text
