"""stage=dashboard: writes the page and both specifications, and saves these at W&B where there is a login."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif.app.dashboard.saving import save
from rlaif.errors import UserError
from rlaif.io import write_json
from rlaif.report.dashboard.layout import Layout, layout_of
from rlaif.report.dashboard.wandb_runs import selection
from rlaif.report.dashboard.wandb_spec import report, specification, workspace
from rlaif.report.page import page_content, render_report
from rlaif.stages.common.context import Context
from rlaif.tracking.redact import redact, redact_assignments
from rlaif.tracking.runs import RunRecord
from rlaif.tracking.wandb_run import WandbOptions, resolve_mode

logger = logging.getLogger(__name__)


def write_dashboard(
    ctx: Context, runs: Sequence[RunRecord], wandb: WandbOptions | None, words: Sequence[str]
) -> Mapping[str, str]:
    """Write `<paths.root>/dashboards/<name>/`, save what is for W&B, and print where everything is.

    `wandb` None: tracking is disabled, nothing is saved. `words` are the command's. Raises UserError if W&B cannot be
    reached and tracking.mode=online; the files are written by then.
    """
    layout = layout_of(ctx.options.dashboard)
    folder = ctx.root / "dashboards" / layout.name
    page = render_report(runs, folder / "index.html", title=layout.title, layout=layout)
    entity, project = (wandb.entity or "", wandb.project) if wandb else ("", "rlaif")
    models = _models(layout, runs, entity, project)
    for name, model in models.items():
        write_json(folder / f"{name}.json", specification(model))
    print(f"page: {page}")
    saved = _saved(models, folder, wandb, words)
    for name in models:
        print(f"W&B {name}: {saved.get(name) or folder / f'{name}.json'}")
    addresses = {"dashboard/workspace": saved.get("workspace"), "dashboard/report": saved.get("report")}
    return {"dashboard/path": str(page)} | {name: value for name, value in addresses.items() if value}


def _models(layout: Layout, runs: Sequence[RunRecord], entity: str, project: str) -> dict[str, Any]:
    chosen, content = selection(runs), page_content(runs, layout.title, layout, layout.name)
    return {
        "workspace": workspace(layout, chosen, entity=entity, project=project),
        "report": report(layout, chosen, content, entity=entity, project=project),
    }


def _saved(
    models: Mapping[str, Any], folder: Path, wandb: WandbOptions | None, words: Sequence[str]
) -> Mapping[str, str]:
    """The addresses at W&B; none, and a sentence that says why, if nothing was saved."""
    mode = "disabled" if wandb is None else resolve_mode(wandb.mode)
    if wandb is None or mode != "online":
        print(_later(wandb, mode, words))
        return {}
    try:
        return save(models, folder / "saved.json")
    except Exception as error:  # W&B's own types are many
        text = redact(str(error)).splitlines()
        sentence = f"W&B did not save the dashboard ({text[0] if text else type(error).__name__})"
        told = f"{sentence}: its specification is in {folder}; the same command tries again"
        if wandb.mode == "online":
            raise UserError(told) from error
        logger.warning("%s", told)
        return {}


def _later(wandb: WandbOptions | None, mode: str, words: Sequence[str]) -> str:
    """What is to be done to save the dashboard at W&B."""
    own = [redact_assignments(word) for word in words]
    kept = [word for word in own if word != "tracking=none" and not word.startswith("tracking.mode=")]
    why = "there is no W&B login"
    if wandb is None:
        why = "tracking is disabled"
    elif wandb.mode != "auto" or mode == "disabled":
        why = f"W&B's mode is {mode}"
    command = shlex.join(["rlaif", *kept, "tracking.mode=online"])
    return f"Not saved at W&B, since {why}. After `wandb login` this saves it: {command}"
