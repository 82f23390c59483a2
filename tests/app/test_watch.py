"""The served report: what is served and to whom, and that it follows what runs write."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from chrome import chrome
from jobs import job_context
from processes import CODE, Command
from synthetic_runs import full_run, ppo_history, write_run

from rlaif.app.watch.changes import RunChanges
from rlaif.app.watch.watch import watch_report
from rlaif.errors import UserError

SECONDS = 30
ADDRESS = re.compile(r"watching: http://127\.0\.0\.1:(\d+)/")


def within(look: Callable[[], Any]) -> Any:
    """The first true answer of `look`."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError(f"nothing in {SECONDS} s")


def answer(port: int, place: str = "/", method: str = "GET", host: str | None = None) -> tuple[int, str, str]:
    """Status, body and Content-Type of one request; `host` is the name in its header."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=SECONDS)) as link:
        link.putrequest(method, place, skip_host=host is not None)
        if host:
            link.putheader("Host", host)
        link.endheaders()
        got = link.getresponse()
        return got.status, got.read().decode(), got.headers["Content-Type"]


@contextmanager
def watched(root: Path, capsys: pytest.CaptureFixture[str], *words: str) -> Iterator[int]:
    """A watch in a thread; gives its port."""
    ctx = job_context(["stage=report", "report.watch=true", f"paths.root={root}", *words])
    stop, told = threading.Event(), []
    thread = threading.Thread(target=watch_report, args=(ctx, stop))

    def port() -> int:
        told.append(capsys.readouterr().out)
        found = ADDRESS.search("".join(told))
        return int(found[1]) if found else 0

    thread.start()
    try:
        yield within(port)
    finally:
        stop.set()
        thread.join(SECONDS)
    assert not thread.is_alive()


def page_with(port: int, *words: str) -> str:
    """The page once it has all of `words`."""

    def look() -> str:
        text = answer(port)[1]
        return text if all(word in text for word in words) else ""

    return within(look)


def test_the_page_follows_its_runs_while_they_are_written(tmp_path, capsys):
    with watched(tmp_path, capsys) as port:
        text = page_with(port, "Waiting: no finished run in")
        assert answer(port, "/version")[1] in text, "the page knows its own version"
        path = write_run(tmp_path, "20260101-a", stage="rl", history=ppo_history(rows=3), state="running")
        page_with(port, "Live. 1 run: 1 running. 20260101-a is running, last written")
        before = answer(port, "/version")[1]
        with (path / "history.jsonl").open("a") as stream:
            stream.write('{"step": 99, "rl/rew')  # half a line, as another process leaves it for a moment
        (path / "summary.json").write_text('{"eval/win_rate": 0.875}')
        text = page_with(port, "87.5%")
        assert answer(port, "/version")[1] not in (before, "") and "is not readable" not in text
        meta = json.loads((path / "meta.json").read_text())
        (path / "meta.json").write_text(json.dumps(meta | {"state": "failed", "error": "out of memory"}))
        page_with(port, "1 failed. 20260101-a is failed (out of memory)")
        shutil.rmtree(path)
        page_with(port, "Waiting: no finished run in")
    assert "rlaif-live" not in (tmp_path / "reports" / "report.html").read_text(), "the file does not ask"


def test_only_the_page_and_its_version_are_served_and_only_to_this_machine(tmp_path, capsys):
    full_run(tmp_path)
    with watched(tmp_path, capsys) as port:
        page_with(port, "Live. 1 run: 1 finished.")
        status, text, kind = answer(port)
        assert (status, kind) == (200, "text/html; charset=utf-8") and text.count("<script>") == 2
        assert answer(port, "/version")[0] == 200 and answer(port, "/?x=1")[1] == text
        for place in (
            "/report.html",
            "/../meta.json",
            "/..%2f..%2fetc/passwd",
            "//etc/passwd",
            "/version/",
            "/runs/",
        ):
            assert answer(port, place)[0] == 404, place
        assert answer(port, method="POST")[0] == 501
        for host in ("localhost", f"localhost:{port}", "127.0.0.1:8888", "LOCALHOST:1"):
            assert answer(port, host=host)[0] == 200, host
        for host in (
            "",
            "example.org",
            f"example.org:{port}",
            "127.0.0.1.example.org",
            "localhost.example.org:80",
        ):
            status, text, _ = answer(port, host=host)
            assert status == 403 and "win rate" not in text, host
            assert answer(port, "/version", host=host)[0] == 403


def test_an_open_page_reloads_itself_and_keeps_its_place(tmp_path, capsys):
    """In a browser: the new number appears, the place and what is folded open stay, and the end is told."""
    summary = full_run(tmp_path) / "summary.json"
    with chrome() as browser, browser.new_context(viewport={"width": 1000, "height": 700}) as context:
        tab, said = context.new_page(), []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        with watched(tmp_path, capsys) as port:
            page_with(port, "Live. 1 run: 1 finished.")
            tab.goto(f"http://127.0.0.1:{port}/")
            fold = tab.locator("details.more:not([open]) > summary").first
            name = fold.inner_text()
            fold.click()
            tab.evaluate("scrollTo(0, 1234)")
            values = json.loads(summary.read_text())
            summary.write_text(json.dumps(values | {"eval/win_rate": 0.777}))
            tab.get_by_text("77.7%").first.wait_for()
            tab.wait_for_function("scrollY === 1234")
            opened = tab.locator("details[open] > summary").all_inner_texts()
            assert name in opened and said == []
        tab.get_by_text("No longer live").wait_for()


def test_a_port_that_is_taken_is_one_sentence(tmp_path):
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ctx = job_context(["stage=report", f"paths.root={tmp_path}", f"report.port={port}"])
        with pytest.raises(UserError, match=f"report.port={port} cannot be used on 127.0.0.1"):
            watch_report(ctx, threading.Event())


def test_named_runs_and_groups_are_watched_too(tmp_path, capsys):
    for name, win in (("20260101-a", 0.25), ("20260102-b", 0.75)):
        write_run(tmp_path, name, stage="eval", summary={"eval/win_rate": win}, group=f"of-{name}")
    with watched(tmp_path, capsys, "report.runs=['20260101-a','latest']") as port:
        page_with(port, "+50.0 points")
        write_run(tmp_path, "20260103-c", stage="eval", summary={"eval/win_rate": 0.5})
        page_with(port, "+25.0 points", "20260103-c")
    with watched(tmp_path, capsys, "report.group=of-20260101-a") as port:
        page_with(port, "Live. 1 run: 1 finished.", "25.0%")


def test_an_unfinished_run_of_long_ago_has_no_part(tmp_path, capsys):
    """A killed run's state stays `running`."""
    killed = write_run(tmp_path, "20250101-k", stage="eval", state="running", group="g")
    old = time.time() - 7200
    for file in killed.rglob("*"):
        os.utime(file, (old, old))
    write_run(tmp_path, "20260101-a", stage="eval", summary={"eval/win_rate": 0.25}, group="g")
    with watched(tmp_path, capsys) as port:
        page_with(port, "Live. 1 run: 1 finished.")
    with watched(tmp_path, capsys, "report.group=g") as port:
        page_with(port, "Live. 2 runs: 1 running, 1 finished. 20250101-k is running, last written")


def test_only_what_has_changed_is_read_again(tmp_path):
    paths = [write_run(tmp_path, name, stage="rm") for name in ("20260101-a", "20260102-b")]
    write_run(tmp_path, "20260103-c", stage="report")
    changes = RunChanges(tmp_path, ("rm",))
    assert changes.look() and not changes.look()
    before = changes.runs()
    assert [run.id for run in before] == ["20260101-a", "20260102-b"]
    (paths[1] / "summary.json").write_text('{"rm/accuracy": 1.0}')
    assert changes.look()
    after = changes.runs()
    assert after[0] is before[0] and after[1].summary == {"rm/accuracy": 1.0}
    (paths[0] / "tables").mkdir()
    assert changes.look() and not changes.look()
    shutil.rmtree(paths[0])
    assert changes.look() and [run.id for run in changes.runs()] == ["20260102-b"]


def test_the_command_serves_until_it_is_interrupted(tmp_path):
    write_run(tmp_path / "o", "20260101-a", stage="eval", summary={"eval/win_rate": 0.625})
    words = ["stage=report", "watch=true", "tracking=none", f"paths.root={tmp_path / 'o'}"]
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    command = Command(words, cwd=CODE, env=env, folder=tmp_path)
    said = tmp_path / "stdout"
    within(lambda: said.exists() and ADDRESS.search(said.read_text()))
    found = ADDRESS.search(said.read_text())
    assert found
    page_with(int(found[1]), "62.5%")
    os.kill(command.pid, signal.SIGINT)
    assert command.wait(SECONDS) == 0
    assert said.read_text().endswith("the watch has ended\n") and (tmp_path / "stderr").read_text() == ""
    assert not (tmp_path / "o" / "runs" / "report").exists(), "a watch is no run"
