"""One page on loopback, and its version; nothing else is served."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from rlaif.errors import UserError

HOST = "127.0.0.1"
_NAMES = (HOST, "localhost")
VERSION = "RLAIF_VERSION"
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_POLICY = (
    "default-src 'none'; script-src {}; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Content:
    """A page, its version, and the policy that goes with it."""

    text: str
    version: str
    policy: str


class Page:
    """What is served now: a thread that renders replaces it while others send it."""

    def __init__(self, text: str) -> None:
        self.show(text)

    def show(self, text: str) -> None:
        """Serve `text` from now on, with its version in the place of `VERSION`."""
        version = sha256(text.encode()).hexdigest()[:16]
        self.current = Content(text.replace(VERSION, version, 1), version, _policy(text))


def _policy(text: str) -> str:
    """Only the page's own scripts run, each by its digest, and they can ask this server alone."""
    digests = (b64encode(sha256(one.encode()).digest()).decode() for one in _SCRIPT.findall(text))
    return _POLICY.format(" ".join(f"'sha256-{digest}'" for digest in digests) or "'none'")


class _Handler(BaseHTTPRequestHandler):
    """Answers GET of `/` and `/version`."""

    timeout = 10  # seconds for a client to send its request

    def __init__(self, page: Page, *request: Any) -> None:
        self._page = page
        super().__init__(*request)

    def do_GET(self) -> None:
        """Send the page or its version. Another name in `Host` is that of a site which was bound to this address."""
        content = self._page.current
        place, _, _ = self.path.partition("?")
        if not self._is_asked_by_name():
            self._send(403, "text/plain", "This report is served to this machine alone.\n")
        elif place == "/version":
            self._send(200, "text/plain", content.version)
        elif place == "/":
            self._send(200, "text/html", content.text, content.policy)
        else:
            self._send(404, "text/plain", "Only the report is served here, at /.\n")

    def _is_asked_by_name(self) -> bool:
        """Any port is right: a tunnel from another machine has its own."""
        name, _, _ = self.headers.get("Host", "").rpartition(":")
        return (name or self.headers.get("Host", "")).lower() in _NAMES

    def _send(self, status: int, kind: str, text: str, policy: str = "default-src 'none'") -> None:
        body = text.encode()
        self.send_response(status)
        for key, value in (
            ("Content-Type", f"{kind}; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Content-Security-Policy", policy),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Referrer-Policy", "no-referrer"),
            ("X-Content-Type-Options", "nosniff"),
        ):
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """A line per request would bury what the command prints."""


@contextmanager
def served(page: Page, port: int) -> Iterator[str]:
    """Serve `page` in threads while the context lasts; gives its address. Raises UserError if the port is taken."""
    try:
        server = ThreadingHTTPServer((HOST, port), partial(_Handler, page))
    except OSError as error:
        raise UserError(
            f"report.port={port} cannot be used on {HOST} ({error.strerror}): write another, or report.port=0 for a "
            "free one"
        ) from error
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
