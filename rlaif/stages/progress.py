"""Progress for people: rich bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rlaif.errors import UserError

logger = logging.getLogger(__name__)


class Progress:
    """`mode`: auto (bars on a terminal), true or false."""

    def __init__(self, mode: str | bool) -> None:
        if mode not in ("auto", True, False):
            raise UserError(f"trainer.progress={mode} is not known: write auto, true or false")
        self.bars = sys.stderr.isatty() if mode == "auto" else bool(mode)

    @contextmanager
    def note(self, text: str) -> Iterator[None]:
        """Say that something short begins, and how long it took if that was noticeable."""
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        if seconds > 1:
            logger.info("%s: %.1f s", text, seconds)

    @contextmanager
    def task(self, text: str, total: int) -> Iterator[Callable[[int], None]]:
        """A long task of `total` items; yields `advance(n)`."""
        started, done = time.perf_counter(), 0

        def count(items: int) -> None:
            nonlocal done
            done += items

        if not self.bars or total == 0:
            yield count
        else:
            with _bar() as bar:
                number = bar.add_task(text, total=total)

                def advance(items: int) -> None:
                    count(items)
                    bar.advance(number, items)

                yield advance
        seconds = time.perf_counter() - started
        if seconds > 1 and done:
            logger.info("%s: %d in %.1f s (%.1f/s)", text, done, seconds, done / seconds)

    def phases(self, who: str) -> Callable[[str, int, int], None]:
        """A callback (phase, done, total) for the labeler: one bar, or a line at each phase's end."""
        state: dict[str, object] = {"phase": None, "started": 0.0, "bar": None, "number": None, "last": 0}

        def report(phase: str, done: int, total: int) -> None:
            if state["phase"] != phase or done < int(str(state["last"])):
                state.update(phase=phase, started=time.perf_counter())
                if self.bars:
                    bar = _bar()
                    bar.start()
                    state.update(bar=bar, number=bar.add_task(f"{who}: {phase}", total=total))
            state["last"] = done
            bar = state["bar"]
            if bar is not None:
                bar.update(state["number"], completed=done)  # type: ignore[attr-defined]
            if done >= total:
                if bar is not None:
                    bar.stop()  # type: ignore[attr-defined]
                seconds = time.perf_counter() - float(str(state["started"]))
                if seconds > 1:
                    logger.info("%s: %d %s in %.1f s", who, total, phase, seconds)
                state.update(phase=None, bar=None, last=0)

        return report


def _bar():
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
