"""How long the report of hundreds of runs takes, and how large it is.

    python experiments/benchmarks/report_scale.py --runs 500            # --profile: where the time goes

Writes synthetic reward-model runs (a labeler each, 300 steps of history, 200 test items) through the project's own
run record, reads them back and renders their page; none of its numbers mean anything. The aim is 30 s and 20 MB for
500 runs, without writing them.
"""

from __future__ import annotations

import argparse
import cProfile
import math
import pstats
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from rlaif.io.lineage import ArtifactKey, LineageRow
from rlaif.report.page import render_report
from rlaif.tracking import Run
from rlaif.tracking.runs import find_runs

STEPS, ITEMS = 300, 200
CREATED = "2026-01-01T00:00:00.000000+00:00"


def _bounded(name: str, value: float, half: float = 0.06) -> dict[str, float]:
    return {name: value, f"{name}_ci_low": value - half, f"{name}_ci_high": value + half}


def _history(place: int, rng: random.Random) -> list[dict[str, float]]:
    return [
        {
            "rm/loss": 0.4 + 0.3 * math.exp(-step / 60) + 0.02 * rng.random(),
            "rm/train_accuracy": 0.7 - 0.2 * math.exp(-step / 60) + 1e-4 * place + 0.02 * rng.random(),
            "rm/lr": 1e-5 * (1 - step / STEPS),
        }
        for step in range(STEPS)
    ]


def _items(skill: float, rng: random.Random) -> list[dict[str, Any]]:
    return [
        {
            "id": f"pair-{item}",
            "prompt_id": f"prompt-{item}",
            "rm/gold_accuracy": float(rng.random() < skill),
            "label/alignment_worst": float(rng.random() < skill),
            "label/alignment_half": float(rng.random() < skill),
        }
        for item in range(ITEMS)
    ]


def write_runs(root: Path, count: int) -> None:
    """Runs of `stage=rm` that differ in two keys, each of an arm of its own."""
    for place in range(count):
        rng, skill = random.Random(place), 0.55 + 0.3 * place / max(1, count - 1)
        labels, model = f"{place:016x}", f"{place + 2**40:016x}"
        overrides = {"labeler.temperature": place // 20 / 10, "rm.lr": (1 + place % 20) * 1e-6}
        run = Run(
            directory=root / "runs" / "rm" / f"20260101-{place:06d}",
            stage="rm",
            config={"stage": "rm", "rm": {"lr": overrides["rm.lr"]}, "labeler": {"name": f"l{place // 20}"}},
            overrides=[f"{key}={value:g}" for key, value in overrides.items()],
            group=None,
            name=f"run-{place}",
            wandb_options=None,
        )
        with run:
            run.summary(
                _bounded("rm/gold_accuracy", skill)
                | _bounded("rm/accuracy", skill + 0.02)
                | _bounded("label/alignment", skill - 0.03)
            )
            for step, row in enumerate(_history(place, rng)):
                run.log(row, step)
            run.lineage(
                [
                    LineageRow("data", "da7a" * 4, (), 0, {}, CREATED, 3, 9e5, place > 0),
                    LineageRow("label", labels, (ArtifactKey("data", "da7a" * 4),), 0, {}, CREATED, 9, 9e5),
                    LineageRow("rm", model, (ArtifactKey("label", labels),), 0, {}, CREATED, 60, 3e7),
                ]
            )
            run.table("items", _items(skill, rng))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_runs(root, options.runs)
        profile = cProfile.Profile()
        if options.profile:
            profile.enable()
        start = time.perf_counter()
        runs = find_runs(root)
        read = time.perf_counter()
        page = render_report(runs, root / "report.html", title="Scale")
        end = time.perf_counter()
        profile.disable()
        beside = ", ".join(
            f"{file.name} {file.stat().st_size / 1e6:.1f} MB" for file in sorted(root.glob("*.csv"))
        )
        print(
            f"{options.runs} runs: read {read - start:.1f} s, rendered {end - read:.1f} s, "
            f"page {page.stat().st_size / 1e6:.2f} MB{f'; beside it {beside}' if beside else ''}"
        )
        if options.profile:
            pstats.Stats(profile).sort_stats("cumulative").print_stats(45)


if __name__ == "__main__":
    main()
