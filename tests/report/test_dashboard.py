"""One layout draws the page, the W&B workspace and the W&B report, and these are as the package writes them.

After a change that is meant, write the snapshot anew: `PYTHONPATH=tests:tests/report python -m test_dashboard`.
"""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import wandb_workspaces.reports.v2.internal as report_models
import wandb_workspaces.workspaces as ws
import wandb_workspaces.workspaces.internal as workspace_models
from dashboards import EVERY_KIND, comparison, drawn, layout, page_metrics, report_metrics, workspace_metrics
from synthetic_runs import PATH_SUMMARY, full_run, ppo_history, write_run

from rlaif.errors import UserError
from rlaif.report.dashboard.layout import builtin_layout
from rlaif.report.dashboard.wandb_runs import RunSelection, selection
from rlaif.report.page import render_report
from rlaif.tracking.runs import load_run

CONF = Path(__file__).resolve().parents[2] / "conf" / "dashboard"
SNAPSHOT = Path(__file__).with_name("dashboard_snapshot.json")
BUILT_IN = sorted(file.stem for file in CONF.glob("*.yaml"))


def specifications(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What is written for W&B of a layout, on a comparison that has every metric."""
    own = layout(values)
    record = comparison(folder, {name for section in own.sections for name in section.names})
    found = drawn(own, record, folder)
    return {name: found[name] for name in ("workspace", "report")}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The layout with another value at a dotted place in its sections."""
    values = copy.deepcopy(EVERY_KIND)
    *parents, last = path.split(".")
    node = values["sections"]
    for part in parents:
        node = node[part]
    node[last] = value
    return values


def test_the_specification_is_the_snapshot(tmp_path: Path) -> None:
    assert specifications(EVERY_KIND, tmp_path) == json.loads(SNAPSHOT.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("comparison.panels.path.metrics", ["label/alignment", "rm/brier", "eval/win_rate"]),
        ("comparison.panels.steps.x", "label/kappa"),
        ("rl.panels.over.metrics", ["rl/track_proxy"]),
        ("rl.panels.proxy.judge_x", "eval/kl_bound"),
        ("comparison.title", "Others"),
    ],
)
def test_another_metric_is_another_specification(tmp_path: Path, path: str, value: Any) -> None:
    kept = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    found = specifications(changed(path, value), tmp_path)
    assert found["workspace"] != kept["workspace"] and found["report"] != kept["report"]


def test_the_packages_own_models_read_it_back_unchanged() -> None:
    """What it writes of what it has read is what was written: no field is unknown to it, none has another form."""
    kept = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    view = workspace_models.View.model_validate(kept["workspace"])
    assert json.loads(view.model_dump_json(by_alias=True, exclude_none=True)) == kept["workspace"]
    shown = report_models.ReportViewspec.model_validate(kept["report"])
    written = shown.model_dump_json(by_alias=True, exclude_none=True)
    assert json.loads(written.replace(',"inlineComments":[]', "")) == kept["report"], "of texts, on reading"
    read = ws.Workspace._from_model(view)
    assert [section.name for section in read.sections] == ["Arms", "Harm", "RL", "Samples"]
    kinds = [type(panel).__name__ for section in read.sections for panel in section.panels]
    assert {"BarPlot", "ScatterPlot", "LinePlot", "ParallelCoordinatesPlot"} <= set(kinds)
    assert "UnknownPanel" not in kinds


@pytest.mark.parametrize("name", BUILT_IN)
def test_page_workspace_and_report_have_the_same_metrics(tmp_path: Path, name: str) -> None:
    own = builtin_layout(name)
    record = comparison(tmp_path, {metric for section in own.sections for metric in section.names})
    found = drawn(own, record, tmp_path)
    expected = {section.title: set(section.names) for section in own.sections if section.names}
    assert len(expected) >= (1 if name == "labels" else 3)
    assert page_metrics(found["page"]) == expected
    assert workspace_metrics(found["workspace"]) == expected
    assert report_metrics(found["report"]) == expected


def test_every_built_in_layout_is_named_as_its_file() -> None:
    assert {"ablation", "labels", "rl"} <= set(BUILT_IN)
    assert [builtin_layout(name).name for name in BUILT_IN] == BUILT_IN
    first = next(section for section in builtin_layout().sections if section.panels)
    assert {"eval/win_rate", "label/alignment", "rm/accuracy", "label/usd", "rl/seconds"} <= set(first.names)


def test_the_layout_decides_order_and_content_of_the_page(tmp_path: Path) -> None:
    own = layout()
    record = comparison(tmp_path, {name for section in own.sections for name in section.names})
    text = drawn(own, record, tmp_path)["page"]
    places = [text.index(f"<h2>{title}") for title in ("Arms", "Harm", "RL", "Runs and configuration")]
    assert places == sorted(places) and "<h2>Lineage" not in text
    turned = {**EVERY_KIND, "sections": dict(reversed(EVERY_KIND["sections"].items()))}
    text = drawn(layout(turned), record, tmp_path)["page"]
    places = [text.index(f"<h2>{title}") for title in ("Runs and configuration", "RL", "Harm", "Arms")]
    assert places == sorted(places)


def test_what_no_run_has_is_left_out_and_said(tmp_path: Path) -> None:
    record = comparison(tmp_path, {"eval/win_rate", "rm/accuracy"})
    text = drawn(layout(), record, tmp_path)["page"]
    (line,) = [line for line in text.splitlines() if "left-out" in line and "<p" in line]
    assert "no run has their metrics: Arms (path); Steps; Cost; Harm; RL (proxy); Curves; RL (over)." in line
    assert "Metrics left out, since no run has them: rm/ece." in line
    assert "<h2>Harm" not in text and "compare arms" not in line
    single = load_run(full_run(tmp_path))
    text = render_report([single], tmp_path / "one.html", title="t", layout=layout()).read_text()
    (line,) = [line for line in text.splitlines() if "left-out" in line and "<p" in line]
    assert "since they compare arms: Arms (arms); Arms (path); Steps; Cost." in line


def test_the_tested_metric_leads_whatever_the_layout_shows(tmp_path: Path) -> None:
    """A layout without it changes no verdict, and its table has it all the same."""
    for index, (label, win) in enumerate((("cot", 0.9), ("base", 0.45))):
        won = [{"id": str(i), "prompt_id": str(i), "eval/win_rate": float(i < 100 * win)} for i in range(100)]
        write_run(
            tmp_path,
            f"run-{index}",
            stage="eval",
            summary=PATH_SUMMARY | {"eval/win_rate": win, "rm/ece": 0.1 * index},
            overrides=[f"labeler={label}"],
            tables={"items": won},
        )
    runs = [load_run(path) for path in sorted((tmp_path / "runs" / "eval").iterdir())]
    own = layout(changed("comparison.panels.arms.metrics", ["rm/ece", "rm/accuracy"]))
    text = render_report(runs, tmp_path / "page.html", title="t", layout=own).read_text()
    assert "labeler=cot is best: win rate 90.0%" in text
    table = text[text.index("<h2>Arms") : text.index("Every pair of arms")]
    assert "win rate" in table and "RM ECE" in table
    assert "The same in all arms: RM accuracy 71.0%." in table


def test_the_numbers_are_in_the_report_with_intervals(tmp_path: Path) -> None:
    found = specifications(EVERY_KIND, tmp_path)["report"]
    texts = [block["content"] for block in found["spec"]["blocks"] if block["type"] == "markdown-block"]
    (table,) = [text for text in texts if text.startswith("| arm")]
    assert "| high |" in table and "| low |" in table and "%)" in table
    assert any("c01: High wins" in text and "Supported." in text for text in texts)
    assert any(text.startswith("### Cost\n\n| Arm | label USD | RL time |") for text in texts)


def test_arms_are_named_without_addresses_and_folders(tmp_path: Path) -> None:
    own = layout()
    arms = [
        {
            "arm": "model.name=/secret/place/small, backend.base_url=http://host.internal:8000/v1",
            "eval/win_rate": 0.6,
        },
        {"arm": "labeler=cot", "eval/win_rate": 0.5},
    ]
    record = comparison(tmp_path, (), arms=arms)
    found = drawn(own, record, tmp_path)
    for name in ("workspace", "report"):
        text = json.dumps(found[name])
        assert not [word for word in ("secret", "host.internal", "://", str(tmp_path)) if word in text], name
    assert "| model.name=small, backend.base_url=address-" in json.dumps(found["report"])


def test_the_runs_of_wandb_are_those_of_the_page(tmp_path: Path) -> None:
    assert selection([comparison(tmp_path, ["eval/win_rate"])]) == RunSelection(
        ("arm",), (), ("20260101-a",), ("arm",)
    )
    config = {"labeler": {"name": "cot"}, "rm": {"lr": 0.1}}
    runs = [
        load_run(
            write_run(
                tmp_path / "sweep",
                f"run-{place}",
                stage="rm",
                config=config,
                overrides=[f"labeler={labeler}", f"rm.lr={lr}", "seed=1"],
                group=f"group-{place}",
            )
        )
        for place, (labeler, lr) in enumerate((("cot", 0.1), ("base", 0.2)))
    ]
    found = selection(runs)
    assert found == RunSelection(("rm",), ("group-0", "group-1"), (), ("labeler.name", "rm.lr"))
    filters = [(one.key.name, one.op, one.value) for one in found.filters]
    assert len(filters) == 2 and filters[0][2] == ["rm"] and filters[1][2] == ["group-0", "group-1"]
    alone = load_run(write_run(tmp_path / "alone", "a", stage="rl", history=ppo_history(rows=3)))
    assert selection([alone]) == RunSelection(("rl",), (), (), ())


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (
            "rl.panels.over.metrics",
            ["rl/track_gol"],
            "panels.over: rl/track_gol is no metric .*did you mean rl/track_gold",
        ),
        ("rl.panels.over.metrics", ["low/eval/win_rate"], "is a metric of one arm: write eval/win_rate"),
        ("rl.panels.over.x", "zzz", "zzz is no metric of the registry: the documentation lists"),
        (
            "rl.panels.over.metric",
            ["rl/kl"],
            "panels.over.metric is not a configuration key: did you mean metrics",
        ),
        ("rl.panels.over.kind", "line", "panels.over.kind=line is not known: write arms, table, forest"),
        ("rl.panels.over", {"metrics": ["rl/kl"]}, "panels.over.kind is missing: write one of arms, table"),
        ("rl.panels.proxy.judge", None, "panels.proxy.judge is missing: kind: proxy_vs_judge needs it"),
        (
            "rl.panels.curves.judge",
            "eval/win_rate",
            "curves.judge has no meaning with kind: curves: leave it out",
        ),
        ("harm.panels.frontier.metrics", ["rl/kl"], "frontier.metrics has no meaning with kind: frontier"),
        (
            "comparison.panels.path.metrics",
            ["rl/kl"],
            "path.metrics has 1 names: kind: parallel takes 2 to 12",
        ),
        ("comparison.panels.path.metrics", [], "path.metrics has 0 names"),
        ("rl.panels", "rl/kl", "sections.rl.panels=rl/kl is not a group of settings"),
        ("rl", {"title": "RL"}, "sections.rl must have either panels or a part"),
        ("runs.part", "run", "sections.runs.part=run is not known: write claim, diagnosis"),
    ],
)
def test_a_slip_in_the_layout_is_one_sentence(path: str, value: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        layout(changed(path, value))


@pytest.mark.parametrize("name", ["../up", "a/b", "", " ", "-x"])
def test_a_dashboard_is_named_as_a_folder(name: str) -> None:
    with pytest.raises(UserError, match=r"dashboard\.name"):
        layout({**EVERY_KIND, "name": name})


def test_null_removes_a_section_and_a_panel() -> None:
    own = layout(changed("rl.panels.over", None))
    assert [panel.name for panel in own.sections[2].panels] == ["proxy", "curves"]
    assert "rl" not in [section.name for section in layout(changed("rl", None)).sections]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        text = json.dumps(specifications(EVERY_KIND, Path(place)), indent=1, sort_keys=True)
    SNAPSHOT.write_text(text + "\n", encoding="utf-8")
