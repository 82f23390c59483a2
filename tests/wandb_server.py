"""A W&B server on loopback that knows what `wandb sync` asks for, and keeps what it is given."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class ServedRun:
    """One run as the server has it. `exits` are its starts' exit codes, in order."""

    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    group: str | None = None
    job_type: str | None = None
    name: str | None = None
    exits: list[int] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)


class WandbServer:
    """Runs by id; `errors` are requests that it does not know."""

    def __init__(self) -> None:
        self.runs: dict[str, ServedRun] = {}
        self.errors: list[str] = []
        self._artifacts: dict[str, tuple[str, str]] = {}  # name -> id, state
        self._lock = threading.Lock()
        self.url = ""

    def graphql(self, name: str, values: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            answer = getattr(self, f"_{name}", None)
            if answer is None:
                self.errors.append(name)
                return {}
            return answer(values.get("input") or values)

    def stream(self, run: str, body: dict[str, Any]) -> None:
        """Part of a run's history and summary; the offset is a line's number."""
        with self._lock:
            own = self.runs.setdefault(run, ServedRun())
            files = body.get("files", {})
            history = files.get("wandb-history.jsonl")
            if history:
                rows = [json.loads(line) for line in history["content"]]
                own.history[history["offset"] : history["offset"] + len(rows)] = rows
            for line in files.get("wandb-summary.json", {}).get("content", ()):
                own.summary = json.loads(line)
            if body.get("complete"):
                own.exits.append(body["exitcode"])

    def _UpsertBucket(self, values: dict[str, Any]) -> dict[str, Any]:
        new = values["name"] not in self.runs
        run = self.runs.setdefault(values["name"], ServedRun())
        run.group, run.job_type = values["groupName"] or run.group, values["jobType"] or run.job_type
        run.name = values["displayName"] or run.name
        project = {"id": "P", "name": values["project"], "entity": {"id": "E", "name": "me"}}
        bucket = {
            "id": values["name"],
            "name": values["name"],
            "displayName": run.name,
            "description": None,
            "config": values["config"],
            "sweepName": None,
            "project": project,
            "historyLineCount": len(run.history),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def _RunResumeStatus(self, values: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(values["name"])
        bucket = run and {
            "id": values["name"],
            "name": values["name"],
            "displayName": run.name,
            "summaryMetrics": json.dumps(run.summary),
            "logLineCount": 0,
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsTail": "[]",
            "config": "{}",
            "tags": [],
            "notes": None,
            "wandbConfig": '{"t": 1}',
        }
        return {
            "model": {"id": "P", "name": "p", "entity": {"id": "E", "name": "me"}, "bucket": bucket or None}
        }

    def _CreateRunFiles(self, values: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/up/{name}"} for name in values["files"]]
        return {"createRunFiles": {"runID": values["run"], "uploadHeaders": [], "files": files}}

    def _CreateArtifact(self, values: dict[str, Any]) -> dict[str, Any]:
        """A version has one name and digest: the second that is sent is the first."""
        name = values["artifactCollectionName"]
        key, state = f"{name}@{values['digest']}", "COMMITTED"
        if key not in self._artifacts:
            state = "PENDING"
        self._artifacts[key] = key, state
        if values["runName"] and not name.startswith("run-"):
            self.runs[values["runName"]].made.add(name)
        sequence = {"id": "S", "latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": key, "state": state, "artifactSequence": sequence}}}

    def _UseArtifact(self, values: dict[str, Any]) -> dict[str, Any]:
        name = values["artifactID"].partition("@")[0]
        self.runs[values["runName"]].used.add(name)
        self.runs[values["runName"]].made.discard(name)  # sent with the run, but as what it builds on
        return {"useArtifact": {"artifact": {"id": values["artifactID"]}}}

    def _CreateArtifactManifest(self, values: dict[str, Any]) -> dict[str, Any]:
        return self._manifest("createArtifactManifest", values["artifactID"])

    def _UpdateArtifactManifest(self, values: dict[str, Any]) -> dict[str, Any]:
        return self._manifest("updateArtifactManifest", values["artifactManifestID"])

    def _manifest(self, key: str, name: str) -> dict[str, Any]:
        file = {"id": "F", "uploadUrl": f"{self.url}/up/manifest", "uploadHeaders": []}
        return {key: {"artifactManifest": {"id": name, "file": file}}}

    def _CreateArtifactFiles(self, values: dict[str, Any]) -> dict[str, Any]:
        edges = [
            {
                "node": {
                    "id": "F",
                    "name": one["name"],
                    "displayName": one["name"],
                    "uploadUrl": f"{self.url}/up/{one['name']}",
                    "uploadHeaders": [],
                    "uploadMultipartUrls": None,
                    "storagePath": "x",
                    "artifact": {"id": one["artifactID"]},
                }
            }
            for one in values["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _CommitArtifact(self, values: dict[str, Any]) -> dict[str, Any]:
        return {"commitArtifact": {"artifact": {"id": values["artifactID"], "digest": "x"}}}

    def _ServerFeaturesQuery(self, values: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def _body(self) -> bytes:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw

        def _reply(self, answer: Any) -> None:
            text = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self) -> None:
            self._reply({})

        def do_PUT(self) -> None:
            self._body()
            self._reply({})

        def do_POST(self) -> None:
            raw = self._body()
            if self.path.endswith("/graphql"):
                body = json.loads(raw)
                name = re.search(r"(?:query|mutation)\s+(\w+)", body["query"])
                assert name is not None
                self._reply({"data": server.graphql(name[1], body.get("variables") or {})})
                return
            run = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)
            if run:
                server.stream(run[1], json.loads(raw))
            self._reply({"exitcode": None, "limits": {}})

    return Handler


class _Listener(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a client that has what it wants closes its connections."""


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """The server, for as long as the context is open."""
    server = WandbServer()
    http = _Listener(("127.0.0.1", 0), _handler(server))
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def upload(command: str, server: WandbServer, home: str) -> str:
    """Run a printed `wandb sync ...` in a shell against the server; what it said."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("WANDB_")},
        "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}",
        "WANDB_BASE_URL": server.url,
        "WANDB_API_KEY": "a" * 40,
        "WANDB_CACHE_DIR": home,
        "WANDB_CONFIG_DIR": home,
        "WANDB_DATA_DIR": home,
    }
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
