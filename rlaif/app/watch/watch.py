"""Serve the report, and render it again whenever a run has written something, until Ctrl-C."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from markupsafe import Markup, escape

from rlaif.app.report import NEWEST_FIRST, choose_runs, write_chosen
from rlaif.app.watch.changes import RunChanges, written
from rlaif.app.watch.server import VERSION, Page, served
from rlaif.errors import UserError
from rlaif.stages.common.context import Context
from rlaif.tracking.runs import RunRecord

_EVERY = 1.0  # seconds between two looks at the run directories
_REST = 4  # times as long as a page took to render, it is not rendered again: at most a fifth of a core
_RECENT = 3600  # seconds before the start within which an unfinished run must have written something
_NAMED = 4  # unfinished runs that the bar names
_BODY = re.compile(r"<body[^>]*>")
_FILE_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>\n?')
_WAITING = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Report</title></head>'
    '<body style="font: 16px system-ui, sans-serif; margin: 40px">{}</body></html>\n'
)


def watch_report(ctx: Context, stop: threading.Event) -> None:
    """Serve the report of stage=report until Ctrl-C, SIGTERM or `stop`; raises UserError if the port is taken.

    A page is a file in `outputs/reports/` as without `watch`; what keeps it up to date is added as it is served.
    """
    changes, since = RunChanges(ctx.root, NEWEST_FIRST), time.time()
    page = Page(_live(_waiting("The report is being rendered."), ""))
    with _until_interrupted(), served(page, ctx.options.report.port) as address:
        print(f"watching: {address} (Ctrl-C ends it)", flush=True)
        while not stop.is_set():
            began = time.monotonic()
            if changes.look():
                _render(ctx, changes, since, page)
            stop.wait(max(_EVERY, _REST * (time.monotonic() - began)))


def _render(ctx: Context, changes: RunChanges, since: float, page: Page) -> None:
    """Show what the runs have by now; without any, what is waited for. If one is removed meanwhile, look again."""
    try:
        runs = choose_runs(ctx, [run for run in changes.runs() if _belongs(ctx, run, since)])
        text = write_chosen(ctx, runs).read_text(encoding="utf-8")
        page.show(_live(text, _states(runs)))
    except UserError as error:
        page.show(_live(_waiting(f"Waiting: {error}."), ""))
    except FileNotFoundError:
        return


def _belongs(ctx: Context, run: RunRecord, since: float) -> bool:
    """Whether the selection may have the run.

    An unfinished one must be of the named group or sweep, or have been written to shortly before the start or later:
    runs that failed long ago are no news.
    """
    options = ctx.options.report
    if options.sweep is not None:
        return True  # its ledger tells which
    if options.stage not in (None, run.stage) or options.group not in (None, run.group):
        return False
    return bool(run.state == "finished" or options.group or written(run.path) > since - _RECENT)


def _states(runs: Sequence[RunRecord]) -> str:
    """How many runs have finished, and what the others do."""
    counts = Counter(run.state for run in runs)
    told = f"{len(runs)} run{'s' if len(runs) > 1 else ''}: " + ", ".join(
        f"{n} {state}" for state, n in counts.items()
    )
    others = [run for run in runs if run.state != "finished"]
    rest = [f"and {len(others) - _NAMED} more"] if len(others) > _NAMED else []
    named = "; ".join([*map(_state, others[:_NAMED]), *rest])
    peeking = (
        " Tests are of the finished runs alone; they err more often than they say if they decide when to stop."
        if counts["running"]
        else ""
    )
    return f"Live. {told}.{f' {named}.' if named else ''}{peeking}"


def _state(run: RunRecord) -> str:
    last = datetime.fromtimestamp(written(run.path), UTC)
    error = f" ({run.error})" if run.error else ""
    return f"{run.name or run.id} is {run.state}{error}, last written {last:%H:%M:%S} UTC"


def _waiting(sentence: str) -> str:
    return _WAITING.format(Markup("<main><p>{}</p></main>").format(sentence))


def _live(text: str, told: str) -> str:
    """The page with a bar that tells the runs' states, and the script that reloads it.

    A policy in the page itself is for the file, in which no script may ask for anything; the server sends its own.
    """
    text = _FILE_POLICY.sub("", text, count=1)
    hidden = "" if told else " hidden"
    style = "margin: 0; max-width: none"
    named = f'class="warn" id="rlaif-live" role="status" data-version="{VERSION}" style="{style}"'
    bar = f"<p {named}{hidden}>{escape(told)}</p>"
    script = Path(__file__).with_name("live.js").read_text(encoding="utf-8")
    begun = _BODY.search(text)
    assert begun is not None, "a page has a body"
    head, tail = text[: begun.end()], text[begun.end() :]
    body, _, end = tail.rpartition("</body>")
    return f"{head}\n{bar}{body}<script>{script}</script>\n</body>{end}"


@contextmanager
def _until_interrupted() -> Iterator[None]:
    """Ctrl-C, or SIGTERM, ends the context without an error. Signals reach the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.signal(one, signal.default_int_handler) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        print("the watch has ended", flush=True)
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
