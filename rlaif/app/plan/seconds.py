"""plan=true: what a command would reuse and build, and what it would cost."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache

import torch
from rich.table import Table

from rlaif.app.plan.machine import machine_rates
from rlaif.stages.common.context import Context
from rlaif.stages.common.stage import Rates, Work
from rlaif.stages.graph import Planned
from rlaif.tracking.text import duration, plain

START = 1.0  # seconds in which a stage loads weights and opens files


@cache
def matrix_rate(dtype: str, device: str) -> float:
    """Measured matrix rate in FLOP/s at a layer-like shape that fills the device, from about 0.1 s of multiplying."""
    rows, wide, deep = (8192, 8192, 4096) if device != "cpu" else (1024, 1536, 576)
    kind = getattr(torch, dtype)
    a, b = torch.randn(rows, deep, device=device).to(kind), torch.randn(wide, deep, device=device).to(kind)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        for _ in range(4):
            torch.nn.functional.linear(a, b)
        if device in ("cuda", "mps"):
            getattr(torch, device).synchronize()
        best = min(best, (time.perf_counter() - started) / 4)
    return 2 * rows * wide * deep / best


def seconds_of(work: Work, rates: Rates) -> float:
    """Seconds of `work` at these rates (tokens per second)."""
    return work.seconds + math.fsum(getattr(work, name) / rate for name, rate in asdict(rates).items())


def estimate_seconds(ctx: Context, plan: Sequence[Planned]) -> dict[str, float]:
    """Estimated seconds of each artifact that would be built, by its name; the machine is measured for it."""
    if all(p.exists for p in plan):
        return {p.name: 0.0 for p in plan}
    rates = machine_rates(ctx)
    return {p.name: 0.0 if p.exists else START + seconds_of(p.work, rates) for p in plan}


def total_seconds(ctx: Context, plan: Sequence[Planned]) -> float:
    """Estimated seconds of everything that would be built."""
    return math.fsum(estimate_seconds(ctx, plan).values())


def merge_plans(plans: Sequence[Sequence[Planned]], *, after: Sequence[Planned]) -> list[Planned]:
    """The plans of several jobs as one, each artifact once; what the plan `after` builds exists by then."""
    done = {p.name for p in after}
    merged = {p.name: p for plan in plans for p in plan}
    return [replace(p, exists=True, work=Work()) if p.name in done else p for p in merged.values()]


def _usd(works: Sequence[Work]) -> str:
    known = [work.usd for work in works if work.usd is not None]
    return plain(math.fsum(known)) if len(known) == len(works) else "unknown"


def _shown(work: Work) -> tuple[float, float, float]:
    """Tokens read, generated and trained on."""
    return work.forward + work.read, work.decoded + work.written, work.trained + work.ranked


def plan_table(ctx: Context, plan: Sequence[Planned], title: str) -> Table:
    """The plan as a table for the terminal."""
    seconds = estimate_seconds(ctx, plan)
    table = Table(title=title, header_style="bold")
    for name in ("stage", "artifact", "what", "tokens read", "generated", "trained on", "about", "USD"):
        table.add_column(name, justify="left" if name in ("stage", "artifact", "what") else "right")
    for p in plan:
        counts = (f"{n:,.0f}" if n else "" for n in _shown(p.work))
        table.add_row(
            p.kind,
            p.name,
            "reuse" if p.exists else "build",
            *counts,
            "" if p.exists else duration(seconds[p.name]),
            "" if p.exists else _usd([p.work]),
        )
    table.add_section()
    total = duration(sum(seconds.values()))
    table.add_row("total", "", "", "", "", "", total, _usd([p.work for p in plan]), style="bold")
    return table
