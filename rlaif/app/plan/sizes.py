"""The sizes of a demo: the largest of a few fixed ones that fits the minutes it has on this machine."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlaif.app.compose import arm_composer
from rlaif.app.plan.machine import machine_rates
from rlaif.app.plan.seconds import START, seconds_of
from rlaif.options.job import Options
from rlaif.stages.common.context import Context
from rlaif.stages.common.stage import Rates, Work
from rlaif.stages.registry import STAGES
from rlaif.tracking.text import duration

logger = logging.getLogger(__name__)

SIZES = ("small", "medium", "large", "full")
FOR_STAGES = 0.85  # of the minutes: the rest is for start-up, reading the data and measuring the machine
_SIZED = (*STAGES, "pipeline", "compare")


@dataclass(frozen=True)
class Sized:
    """A job's options and words once its size is chosen, and why it was; `why` is empty if it was set by hand."""

    options: Options
    words: tuple[str, ...]
    why: str = ""


Agree = Callable[[str, Callable[[], Any]], Any]
"""What the first job of a sweep chooses, by name, is what all others take."""


def sized(options: Options, words: Sequence[str], agree: Agree | None = None) -> Sized:
    """The job at the size that `demo.size` asks for; jobs of a sweep `agree` on it, or they could not be compared.

    The chosen sizes are ordinary values, which other words of the command line and experiments override. Only runs on
    the embedded task are measured for: nobody's own data shrink with the machine.
    """

    def choose() -> tuple[str, str]:
        return _choice(options, words)

    by_hand = next((word.partition("=")[2] for word in words if word.startswith("size=")), None)
    size, fits = by_hand or options.demo.size, options.task.source == "docs" and options.stage in _SIZED
    if size == "auto" and fits and not options.models.tiny:
        chosen, why = agree("size", choose) if agree else choose()
        logger.info("demo.size=%s: %s", chosen, why)
        return replace(_at(options, words, chosen), why=why)
    if size in ("auto", "full"):
        return Sized(replace(options, demo=replace(options.demo, size="full")), tuple(words))
    return _at(options, words, size)


def _at(options: Options, words: Sequence[str], size: str) -> Sized:
    """The job at a size, as its own words would make it."""
    kept = [word for word in words if not word.startswith(("size=", "demo.size="))]
    chosen = [f"size={size}", f"demo.size={size}"]
    return Sized(arm_composer(kept)(chosen), (*kept, *chosen))


def _choice(options: Options, words: Sequence[str]) -> tuple[str, str]:
    """The largest size whose path fits, else the smallest; and the reason in words."""
    minutes, first = options.demo.minutes, Context(options, None)
    rates, told = machine_rates(first), []
    found, limit = SIZES[0], f"demo.minutes={minutes:g}"
    for size in SIZES:
        ctx = first.with_options(_at(options, words, size).options)
        seconds = path_seconds(ctx, rates)
        told.append(f"{size} would take about {duration(seconds)}")
        if seconds > FOR_STAGES * 60 * minutes:
            break
        found = size
    why = (
        f"the largest that fits {limit} on this machine" if len(told) > 1 else f"the smallest, beyond {limit}"
    )
    return found, f"{why} ({', '.join(told)})"


def path_seconds(ctx: Context, rates: Rates) -> float:
    """Seconds of the whole path to eval, whatever of it exists: a size must not depend on what is reused."""
    works: dict[str, Work] = {}

    def visit(kind: str) -> None:
        if kind not in works:
            works[kind] = STAGES[kind].work(ctx)
            for parent in STAGES[kind].parents(ctx):
                visit(parent)

    visit("eval")
    return math.fsum(START + seconds_of(work, rates) for work in works.values())
