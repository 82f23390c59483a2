"""Synthetic run directories. All numbers and texts here are invented test data."""

from __future__ import annotations

import math
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from rlaif.io.lineage import ArtifactKey, LineageRow
from rlaif.tracking import Run

ALIVE: list[Run] = []  # of the state running: a run's lock is held for as long as the run is there
CREATED = "2026-01-01T00:00:00.000000+00:00"

ROW = {"label/alignment": 0.78, "label/alignment_ci_low": 0.72, "label/alignment_ci_high": 0.83}
PATH_SUMMARY: dict[str, Any] = {
    **ROW,
    "label/alignment_n": 250,
    "label/alignment_mismatched": 0.91,
    "label/alignment_mismatched_ci_low": 0.83,
    "label/alignment_mismatched_ci_high": 0.95,
    "label/alignment_mismatched_n": 90,
    "label/alignment_truncated": 0.66,
    "label/alignment_truncated_ci_low": 0.55,
    "label/alignment_truncated_ci_high": 0.76,
    "label/alignment_truncated_worst": 0.6,
    "label/same_position_rate": 0.12,
    "label/unparsed_rate": 0.004,
    "label/tokens_in": 812345,
    "label/tokens_out": 2048,
    "label/tokens_cached": 401000,
    "label/usd": 0.0,
    "rm/accuracy": 0.71,
    "rm/accuracy_ci_low": 0.66,
    "rm/accuracy_ci_high": 0.76,
    "rm/gold_accuracy": 0.68,
    "rm/gold_accuracy_ci_low": 0.62,
    "rm/gold_accuracy_ci_high": 0.73,
    "rl/reward": 0.94,
    "rl/kl": 6.25,
    "eval/kl": 6.5,
    "rl/eos_rate": 0.97,
    "eval/win_rate": 0.63,
    "eval/win_rate_ci_low": 0.57,
    "eval/win_rate_ci_high": 0.69,
    "eval/p_value": 0.00004,
    "eval/win_rate_lc": 0.58,
    "eval/win_rate_lc_ci_low": 0.52,
    "eval/win_rate_lc_ci_high": 0.64,
    "eval/n": 256,
    "eval/judge": "detailed",
    "eval/rouge_l_policy": 0.213,
    "eval/rouge_l_baseline": 0.211,
    "eval/rouge_l_gain": 0.002,
    "eval/rouge_l_gain_ci_low": -0.004,
    "eval/rouge_l_gain_ci_high": 0.008,
    "eval/length_policy": 18.4,
    "eval/length_baseline": 15.1,
    "eval/copy_rate_policy": 0.41,
    "eval/copy_rate_baseline": 0.44,
    "eval/eos_rate_policy": 0.97,
    "eval/eos_rate_baseline": 0.95,
}
CONFIG: dict[str, Any] = {
    "stage": "pipeline",
    "labeler": {"name": "cot", "backend": "transformers", "batch_size": 32},
    "judge": {"name": "detailed", "backend": "encoder", "batch_size": 32},
    "backend": {"name": "model-one"},
    "rl": {"algorithm": "ppo", "lr": 3e-6},
    "paths": {"root": "somewhere-private"},
}
ATTACK = "<script>alert('x')</script> & <img src=http://example.invalid/a.png>"


def ppo_history(start: float = 0.1, end: float = 0.94, rows: int = 40) -> list[dict[str, Any]]:
    """A reward that climbs from `start` to `end` with a small ripple, KL from 0 to 6.25."""
    found = []
    for step in range(rows):
        share = step / (rows - 1)
        found.append(
            {
                "step": step,
                "rl/reward": start + (end - start) * share + 0.01 * math.sin(3.0 * step),
                "rl/kl": 6.25 * share,
                "rl/entropy": 2.0 - share,
                "rl/response_length": 15 + 3 * share,
                "rl/eos_rate": 0.95 + 0.02 * share,
            }
        )
    return found


def loss_history(stage: str, rows: int = 30) -> list[dict[str, Any]]:
    """A falling loss and a rising accuracy."""
    return [
        {
            "step": step,
            f"{stage}/loss": 0.4 + 0.3 * math.exp(-step / 8),
            f"{stage}/accuracy": 0.72 - 0.2 * math.exp(-step / 8),
        }
        for step in range(rows)
    ]


SAMPLES = [
    {
        "prompt": f"Summarise function number {index}: def f(x): return x + {index}",
        "policy": ATTACK if index == 0 else f"Return the sum of x and {index}.",
        "baseline": f"A function, number {index}, that takes one argument and returns something.",
        "reference": f"Add {index} to x.",
        "outcome": ("win", "win", "loss", "tie", "win", "loss")[index % 6],
        "p_policy": (0.9, 0.8, 0.2, 0.5, 0.7, 0.1)[index % 6],
    }
    for index in range(14)
]
LINEAGE = [
    LineageRow("data", "da7a" * 4, (), 0, {}, CREATED, 3.2, 900_000, reused=True),
    LineageRow("sft", "5f7a" * 4, (ArtifactKey("data", "da7a" * 4),), 0, {}, CREATED, 61, 28_000_000, False),
    LineageRow("pairs", "9a1b" * 4, (ArtifactKey("data", "da7a" * 4),), 0, {}, CREATED, 8, 1_200_000, False),
    LineageRow(
        "labels", "1abe" * 4, (ArtifactKey("pairs", "9a1b" * 4),), 0, {}, CREATED, 240, 600_000, False
    ),
    LineageRow("rm", "4e0d" * 4, (ArtifactKey("labels", "1abe" * 4),), 1, {}, CREATED, 55, 28_000_000, False),
    LineageRow(
        "rl",
        "bb00" * 4,
        (ArtifactKey("sft", "5f7a" * 4), ArtifactKey("rm", "4e0d" * 4)),
        1,
        {},
        CREATED,
        312,
        28_000_000,
        False,
    ),
    LineageRow(
        "eval",
        "e0a1" * 4,
        (ArtifactKey("rl", "bb00" * 4), ArtifactKey("sft", "5f7a" * 4)),
        0,
        {},
        CREATED,
        70,
        90_000,
        False,
    ),
]


class Halted(Exception):
    """What ends a run that is to have failed."""


def write_run(
    root: Path,
    identifier: str,
    *,
    stage: str = "pipeline",
    summary: dict[str, Any] | None = None,
    overrides: list[str] | None = None,
    config: dict[str, Any] | None = None,
    history: list[dict[str, Any]] | None = None,
    lineage: list[LineageRow] | None = None,
    alerts: list[dict[str, Any]] | None = None,
    tables: dict[str, list[dict[str, Any]]] | None = None,
    state: str = "finished",
    group: str | None = None,
) -> Path:
    """One run's directory, written by tracking itself. `state` is `finished`, `failed` or `running`."""
    path = root / "runs" / stage / identifier
    run = Run(
        directory=path,
        stage=stage,
        config=CONFIG if config is None else config,
        overrides=overrides or [],
        group=group,
        name=identifier,
        wandb_options=None,
    )
    with ExitStack() as ends:
        ends.enter_context(suppress(Halted))
        if state == "running":
            ALIVE.append(run.__enter__())
        else:
            ends.enter_context(run)
        run.summary(summary or {})
        for place, row in enumerate(history or []):
            run.log({k: v for k, v in row.items() if k not in ("step", "time")}, row.get("step", place))
        run.lineage(lineage or [])
        for alert in alerts or []:
            run.alert(alert["title"], alert["text"])
        for name, rows in (tables or {}).items():
            run.table(name, rows)
        if state == "failed":
            raise Halted
    return path


def full_run(root: Path, identifier: str = "20260101-a", **changes: Any) -> Path:
    """A whole pipeline run; `changes` override summary entries by name (`eval_win_rate=` and so on)."""
    summary = PATH_SUMMARY | {key.replace("_", "/", 1): value for key, value in changes.items()}
    history = [*loss_history("sft"), *loss_history("rm"), *ppo_history()]
    tables = {
        "samples": SAMPLES,
        "reliability": [
            {
                "low": 0.1 * k,
                "high": 0.1 * k + 0.1,
                "n": 20 + 5 * k,
                "mean_predicted": 0.1 * k + 0.05,
                "mean_observed": 0.1 + 0.08 * k,
            }
            for k in range(10)
        ],
        "judgements": [
            {"prompt": "Which is better?", "response_a": ATTACK, "response_b": "b", "p_a": 0.8, "text": "1"}
        ],
    }
    return write_run(
        root,
        identifier,
        summary=summary,
        history=history,
        lineage=LINEAGE,
        tables=tables,
        alerts=[
            {"level": "warning", "title": "Low choice mass", "text": "mean 0.41 on the two choice tokens"}
        ],
    )
