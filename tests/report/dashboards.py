"""Dashboards for tests: a layout with every kind of panel, and a comparison that has a value of every metric."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from synthetic_runs import write_run

from rlaif.options.dashboard import DashboardOptions
from rlaif.options.read import read
from rlaif.report.dashboard.layout import Layout, layout_of
from rlaif.report.dashboard.wandb_runs import selection
from rlaif.report.dashboard.wandb_spec import report, specification, workspace
from rlaif.report.page import page_content, render_report
from rlaif.tracking.runs import RunRecord, load_run

EVERY_KIND: dict[str, Any] = {
    "name": "every",
    "title": "Every kind",
    "sections": {
        "comparison": {
            "title": "Arms",
            "panels": {
                "arms": {"kind": "arms", "metrics": ["eval/win_rate", "rm/ece"]},
                "estimates": {
                    "kind": "forest",
                    "title": "Estimates",
                    "metrics": ["eval/win_rate", "rm/accuracy"],
                },
                "path": {"kind": "parallel", "metrics": ["label/alignment", "rm/ece", "eval/win_rate"]},
                "steps": {
                    "kind": "scatter",
                    "x": "label/alignment",
                    "metrics": ["rm/accuracy"],
                    "title": "Steps",
                },
                "cost": {"kind": "table", "title": "Cost", "metrics": ["label/usd", "rl/seconds"]},
            },
        },
        "harm": {"panels": {"frontier": {"kind": "frontier"}}},
        "rl": {
            "title": "RL",
            "panels": {
                "proxy": {
                    "kind": "proxy_vs_judge",
                    "x": "rl/kl",
                    "metrics": ["rl/reward", "rl/reward_held_out"],
                    "judge": "eval/win_rate",
                    "judge_x": "eval/kl",
                },
                "curves": {"kind": "curves", "title": "Curves", "metrics": ["sft/loss", "rl/entropy"]},
                "over": {"kind": "curves", "x": "rl/track_kl", "metrics": ["rl/track_gold"]},
            },
        },
        "curve": {"panels": {"curve": {"kind": "curve"}}},
        "samples": {"part": "samples"},
        "runs": {"part": "runs"},
    },
}


def layout(values: Mapping[str, Any] = EVERY_KIND) -> Layout:
    """The layout that the configuration `values` describes."""
    return layout_of(read(DashboardOptions, values, "dashboard"))


def comparison(root: Path, names: Iterable[str], **changes: Any) -> RunRecord:
    """Arms `low` and `high` that have every one of the metrics `names`, in their summaries and their histories."""
    metrics = sorted(names)
    arms, histories = [], []
    for place, arm in enumerate(("low", "high")):
        values = {name: round(0.3 + 0.2 * place + 0.001 * index, 4) for index, name in enumerate(metrics)}
        bounds = {
            f"{name}_ci_{end}": values[name] + by
            for name in metrics
            for end, by in (("low", -0.1), ("high", 0.1))
        }
        arms.append({"arm": arm, **values, **bounds})
        histories += [
            {"arm": arm, "step": step, **dict.fromkeys(metrics, 0.1 * step + place)} for step in range(3)
        ]
    claim = {
        "id": "c01",
        "hypothesis": "High wins",
        "paper": "said so",
        "sentence": "Supported.",
        "verdict": "supported",
    }
    tables = {"arms": arms, "arm_histories": histories, "claim": [claim]} | changes
    return load_run(write_run(root, "20260101-a", stage="compare", tables=tables))


def drawn(own: Layout, record: RunRecord, folder: Path) -> dict[str, Any]:
    """The page's text, and the specifications of workspace and report."""
    chosen = selection([record])
    content = page_content([record], "t", own, "page")
    return {
        "page": render_report([record], folder / "page.html", title="t", layout=own).read_text(
            encoding="utf-8"
        ),
        "workspace": specification(workspace(own, chosen, entity="", project="rlaif")),
        "report": specification(report(own, chosen, content, entity="", project="rlaif")),
    }


def page_metrics(text: str) -> dict[str, set[str]]:
    """The metrics of each section of a page, by the section's title."""
    found: dict[str, set[str]] = {}
    for section in re.findall(r"<section data-section.*?</section>", text, re.DOTALL):
        title = re.search(r"<h2[^>]*>(.*?)</h2>", section)
        assert title is not None
        found[title[1]] = set(" ".join(re.findall(r'data-metrics="([^"]*)"', section)).split())
    return {title: names for title, names in found.items() if names}


def workspace_metrics(spec: Mapping[str, Any]) -> dict[str, set[str]]:
    """The same of a workspace."""
    sections = spec["spec"]["section"]["panelBankConfig"]["sections"]
    found = {section["name"]: set(_metrics(section["panels"])) for section in sections}
    return {title: names for title, names in found.items() if names}


def report_metrics(spec: Mapping[str, Any]) -> dict[str, set[str]]:
    """The same of a W&B report."""
    found, title = {}, ""
    for block in spec["spec"]["blocks"]:
        if block["type"] == "heading":
            title = block["children"][0]["text"]
        if block["type"] == "panel-grid":
            found[title] = set(_metrics(block["metadata"]["panelBankSectionConfig"]["panels"]))
    return {title: names for title, names in found.items() if names}


def _metrics(panels: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    axes = ("step", "sft/step", "rm/step", "rl/iteration")
    for panel in panels:
        config = panel["config"]
        columns = [column["accessor"] for column in config.get("columns", ())]
        for name in (config.get("xAxis"), config.get("yAxis"), *config.get("metrics", ()), *columns):
            if name is not None and name not in axes:
                yield name.removeprefix("summary:").removeprefix("summary_metrics.")
