"""Progress for people: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from rlaif.errors import UserError

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

logger = logging.getLogger(__name__)


class Progress:
    """`mode`: auto (bars on a terminal), true or false."""

    def __init__(self, mode: str | bool) -> None:
        if mode not in ("auto", True, False):
            raise UserError(f"trainer.progress={mode} is not known: write auto, true or false")
        self.bars = sys.stderr.isatty() if mode == "auto" else bool(mode)
        self._phases: list[_Phases] = []

    def close(self) -> None:
        """Remove a bar that an error left on the terminal (a bar hides the cursor)."""
        for phases in self._phases:
            phases.close()

    @contextmanager
    def note(self, text: str) -> Iterator[None]:
        """Log how long something short took, if that was noticeable."""
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        if seconds > 1:
            logger.info("%s: %.1f s", text, seconds)

    @contextmanager
    def task(self, text: str, total: int) -> Iterator[Callable[[int], None]]:
        """A long task of `total` items; yields `advance(n)`."""
        started, done = time.perf_counter(), 0
        with _bar() if self.bars and total else nullcontext() as bar:
            number = None if bar is None else bar.add_task(text, total=total)

            def advance(items: int) -> None:
                nonlocal done
                done += items
                if bar is not None and number is not None:
                    bar.advance(number, items)

            yield advance
        seconds = time.perf_counter() - started
        if seconds > 1 and done:
            logger.info("%s: %d in %.1f s (%.1f/s)", text, done, seconds, done / seconds)

    def phases(self, who: str) -> Callable[[str, int, int], None]:
        """A callback (phase, done, total) for the labeler: one bar per phase, or a line at its end."""
        self._phases.append(_Phases(who, self.bars))
        return self._phases[-1]


class _Phases:
    """Follows phases that begin with `done` = 0 and end with `done` = `total`."""

    def __init__(self, who: str, bars: bool) -> None:
        self._who, self._bars = who, bars
        self._started = 0.0
        self._bar: RichProgress | None = None

    def __call__(self, phase: str, done: int, total: int) -> None:
        if done == 0:
            self._started = time.perf_counter()
            if self._bars:
                self._bar = _bar()
                self._bar.start()
                self._bar.add_task(f"{self._who}: {phase}", total=total)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done)
        if done < total:
            return
        self.close()
        seconds = time.perf_counter() - self._started
        if seconds > 1:
            logger.info("%s: %d %s in %.1f s", self._who, total, phase, seconds)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _bar() -> RichProgress:
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        speed_estimate_period=900.0,  # steps of RL take half a minute: a short window would guess wildly
    )
