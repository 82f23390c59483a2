"""A small server that speaks OpenAI's API over a toy language model, with chosen abilities and faults."""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "toy-model"
Distribution = Callable[[str], dict[str, float]]
Twist = Callable[[str, dict[str, Any], int, Any], tuple[int, Any]]


def ten_or_more(prompt: str) -> dict[str, float]:
    """After a "1" mostly "0"; elsewhere the digits, and "1.", which is another token than "1"."""
    if prompt.endswith("1"):
        return {"0": 0.75, ".": 0.25}
    return {"1": 0.5, "2": 0.2, "1.": 0.25, "3": 0.04, "~": 0.01}


def answers_and_ends(prompt: str) -> dict[str, float]:
    """A number, its spelling, or another one, then the end of the line."""
    if prompt.endswith(("=", "?")):
        return {"1": 0.4, " 1": 0.2, "2": 0.2, "10": 0.1, "1. First": 0.1}
    return {"\n": 1.0}


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


class LocalServer:
    """Serves `MODEL` on loopback while it is open.

    Tokens are characters, and " 1" is one of its own. A chat answer ends after `longest_chat` tokens.
    `abilities` are among `token_ids`, `top_k`, `echo`, `tokenize`, `decoding` (takes top_k and the like) and
    `sample` (takes a temperature). `faults[text]` are what happens to the next requests whose prompt contains
    `text`: a status, a pair of status and Retry-After, or "drop", "slow", "broken".
    `twist(path, body, status, answer)` gives another status and answer (an object, or bytes as they stand) than
    the server would.
    """

    def __init__(
        self, abilities: Iterable[str] = ("top_k",), *, distribution: Distribution = ten_or_more
    ) -> None:
        self.abilities, self.distribution = frozenset(abilities), distribution
        self.longest_chat = 1
        self.longest_list, self.key, self.delay, self.slow = 20, None, 0.0, 0.6
        self.faults: dict[str, list[Any]] = {}
        self.twist: Twist = lambda path, body, status, answer: (status, answer)
        self.requests: list[tuple[str, dict[str, Any], float]] = []
        self.answered: Counter[str] = Counter()
        self.failed: dict[str, list[Any]] = defaultdict(list)
        self.active = self.peak = 0
        self._lock = threading.Lock()

    def __enter__(self) -> LocalServer:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                outer._get(self)

            def do_POST(self) -> None:
                outer._post(self)

            def log_message(self, *args: Any) -> None:
                pass

        self._http = _Listener(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *args: Any) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def asked(self, path: str) -> list[dict[str, Any]]:
        """Bodies of the requests to `path`, without those of the probe."""
        return [body for seen, body, _ in self.requests if seen == path and "3, 1, 2, 3" not in _prompt(body)]

    def times(self, path: str) -> list[float]:
        return [
            when for seen, body, when in self.requests if seen == path and "3, 1, 2, 3" not in _prompt(body)
        ]

    # Requests.

    def _get(self, handler: BaseHTTPRequestHandler) -> None:
        with self._lock:
            self.requests.append((handler.path, {}, time.monotonic()))
        if not self._allowed(handler):
            return
        status, answer = 404, {"error": {"message": "no such route"}}
        if handler.path == "/v1/models":
            status, answer = 200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
        _send(handler, *self.twist(handler.path, {}, status, answer))

    def _post(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            self.requests.append((handler.path, body, time.monotonic()))
            self.active += 1
            self.peak = max(self.peak, self.active)
        try:
            time.sleep(self.delay)
            if self._allowed(handler) and not self._faulty(handler, _prompt(body)):
                status, answer = self.twist(handler.path, body, *self._answer(handler.path, body))
                if status == 200:
                    with self._lock:
                        self.answered[_prompt(body)] += 1
                _send(handler, status, answer)
        finally:
            with self._lock:
                self.active -= 1

    def _allowed(self, handler: BaseHTTPRequestHandler) -> bool:
        sent = handler.headers.get("Authorization")
        if self.key is None or sent == f"Bearer {self.key}":
            return True
        _send(handler, 401, {"error": {"message": f"wrong key: {sent}"}})
        return False

    def _faulty(self, handler: BaseHTTPRequestHandler, prompt: str) -> bool:
        with self._lock:
            queue = next((queue for text, queue in self.faults.items() if text in prompt and queue), None)
            fault = queue.pop(0) if queue else None
            if fault is not None:
                self.failed[prompt].append(fault)
        if fault is None:
            return False
        if fault == "drop":
            handler.close_connection = True
            handler.connection.close()
        elif fault == "slow":
            _head(handler, 200, 1000)
            handler.wfile.write(b'{"choices": ')
            handler.wfile.flush()
            time.sleep(self.slow)
            handler.close_connection = True
        elif fault == "echo the key":
            _send(handler, 400, {"error": {"message": f"you sent {handler.headers.get('Authorization')}"}})
        elif fault == "broken":
            _raw(handler, 200, b'{"choices": [{"text": "1"')
        else:
            status, after = fault if isinstance(fault, tuple) else (fault, None)
            _send(handler, status, {"error": {"message": f"status {status}"}}, after)
        return True

    def _answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if path == "/tokenize" and "tokenize" in self.abilities:
            return 200, {"tokens": encode(body["prompt"])}
        if path == "/detokenize" and "tokenize" in self.abilities:
            return 200, {"prompt": "".join(map(_piece, body["tokens"]))}
        if path not in ("/v1/completions", "/v1/chat/completions"):
            return 404, {"error": {"message": "no such route"}}
        if body["model"] != MODEL:
            return 404, {"error": {"message": f"no model {body['model']}"}}
        if len(_prompt(body)) > 5000:
            return 400, {"error": {"message": "the prompt exceeds the context"}}
        refused = {
            "decoding": "min_p" in body,
            "token_ids": "logprob_token_ids" in body,
            "sample": body.get("temperature", 1.0) > 0,
            "echo": body.get("echo", False),
        }
        top = body.get("top_logprobs", body.get("logprobs"))
        if any(there and name not in self.abilities for name, there in refused.items()):
            return 400, {"error": {"message": "an unknown field"}}
        if top and not {"top_k", "token_ids"} & self.abilities or (top or 0) > self.longest_list:
            return 400, {"error": {"message": "logprobs are not available"}}
        return 200, self._complete(body, chat="messages" in body)

    # The model.

    def _complete(self, body: dict[str, Any], *, chat: bool) -> dict[str, Any]:
        prompt, draw = _prompt(body), random.Random(body.get("seed"))
        tokens: list[str] = []
        limit = body.get("max_tokens") or body["max_completion_tokens"]
        for _ in range(min(limit, self.longest_chat) if chat else limit):
            found = self.distribution(prompt + "".join(tokens))
            greedy = body.get("temperature") == 0
            tokens.append(
                max(found, key=found.get) if greedy else draw.choices([*found], [*found.values()])[0]
            )  # type: ignore[arg-type]
        logprobs = self._logprobs(body, prompt, tokens, chat) if "logprobs" in body else None
        text = "".join(tokens)
        place = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        count = len(encode(prompt))
        usage = {
            "prompt_tokens": count,
            "completion_tokens": len(tokens),
            "prompt_tokens_details": {"cached_tokens": 1},
        }
        return {"choices": [{**place, "finish_reason": "length", "logprobs": logprobs}], "usage": usage}

    def _logprobs(self, body: dict[str, Any], prompt: str, tokens: list[str], chat: bool) -> dict[str, Any]:
        if chat:
            return {
                "content": [self._row(body, prompt + "".join(tokens[:n]), t) for n, t in enumerate(tokens)]
            }
        top = self._top(body, self.distribution(prompt))
        pieces = [_piece(token) for token in encode(prompt)] if body.get("echo") else []
        echoed = [None, *(self.score("".join(pieces[:n]), pieces[n]) for n in range(1, len(pieces)))][
            : len(pieces)
        ]
        drawn = [self.score(prompt + "".join(tokens[:n]), token) for n, token in enumerate(tokens)]
        return {
            "tokens": [*pieces, *tokens],
            "token_logprobs": [*echoed, *drawn],
            "top_logprobs": [*([None] * len(pieces)), top],
        }

    def _row(self, body: dict[str, Any], begun: str, token: str) -> dict[str, Any]:
        top = self._top(body, self.distribution(begun))
        rows = [{"token": text, "logprob": value} for text, value in top.items()]
        return {"token": token, "logprob": self.score(begun, token), "top_logprobs": rows}

    def _top(self, body: dict[str, Any], found: dict[str, float]) -> dict[str, float]:
        if "logprob_token_ids" in body:
            wanted = [_piece(token) for token in body["logprob_token_ids"]]
            return {f"token_id:{encode(piece)[0]}": _log(found.get(piece, 1e-9)) for piece in wanted}
        count = body["top_logprobs"] if "top_logprobs" in body else body["logprobs"]
        best = sorted(found, key=found.get, reverse=True)[:count]  # type: ignore[arg-type]
        return {piece: _log(found[piece]) for piece in best}

    def score(self, prompt: str, piece: str) -> float:
        """log p(piece | prompt); what the distribution does not name has 1e-4."""
        return _log(self.distribution(prompt).get(piece, 1e-4))


def encode(text: str) -> list[int]:
    ids = []
    while text:
        piece = " 1" if text.startswith(" 1") else text[0]
        ids.append(1000 if piece == " 1" else ord(piece))
        text = text[len(piece) :]
    return ids


def _piece(token: int) -> str:
    return " 1" if token == 1000 else chr(token)


def _log(value: float) -> float:
    return math.log(value)


def _prompt(body: dict[str, Any]) -> str:
    return body["messages"][0]["content"] if "messages" in body else str(body.get("prompt", ""))


def _send(handler: BaseHTTPRequestHandler, status: int, body: Any, retry_after: str | None = None) -> None:
    _raw(handler, status, body if isinstance(body, bytes) else json.dumps(body).encode(), retry_after)


def _raw(handler: BaseHTTPRequestHandler, status: int, data: bytes, retry_after: str | None = None) -> None:
    try:
        _head(handler, status, len(data), retry_after)
        handler.wfile.write(data)
    except ConnectionError:
        handler.close_connection = True  # the client gave up waiting


def _head(handler: BaseHTTPRequestHandler, status: int, length: int, retry_after: str | None = None) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(length))
    if retry_after is not None:
        handler.send_header("Retry-After", retry_after)
    handler.end_headers()
