"""The HTTP client against a server that fails: what is repeated, when, how often, and what is never said."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest
from local_server import MODEL, LocalServer
from openai_cases import http_options

from rlaif.backends.openai.http import Client, Refused, Unavailable, gather
from rlaif.errors import UserError

KEY = "sk-never-to-be-seen-1234"


@pytest.fixture
def server():
    with LocalServer() as server:
        yield server


def _body(prompt: str = "p") -> dict:
    return {"model": MODEL, "prompt": prompt, "max_tokens": 1, "temperature": 0, "seed": 0}


def _text(found: dict) -> str:
    return found["choices"][0]["text"]


def _ask(client: Client, *prompts: str, tokens: int = 1) -> list[str]:
    return client.run(gather(client.post("completions", _body(p), _text, tokens=tokens) for p in prompts))


def _client(server: LocalServer, **changes) -> Client:
    return Client(http_options(server.base_url, **changes))


@pytest.mark.parametrize("fault", [408, 409, 425, 429, 500, 502, 503, "drop", "slow", "broken"])
def test_what_may_pass_is_repeated(server, fault):
    server.faults = {"p": [fault, fault]}
    assert _ask(_client(server), "p") == ["1"]
    assert len(server.requests) == 3 and server.answered == {"p": 1}


@pytest.mark.parametrize("fault", [500, "drop", "slow", "broken"])
def test_what_does_not_pass_is_given_up_after_the_retries(server, fault):
    server.faults = {"p": [fault] * 9}
    with pytest.raises(Unavailable):
        _ask(_client(server, max_retries=2), "p")
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_a_final_no_is_not_repeated(server, status):
    server.faults = {"p": [status]}
    with pytest.raises(Refused, match=f"HTTP {status}: status {status}"):
        _ask(_client(server), "p")
    assert len(server.requests) == 1


def test_nobody_there(server):
    with LocalServer() as gone:
        address = gone.base_url
    with pytest.raises(Unavailable, match="connection to .* failed"):
        _ask(Client(http_options(address)), "p")


def test_retry_after_in_seconds_is_kept(server):
    server.faults = {"p": [(429, "0.5")]}
    _ask(_client(server), "p")
    first, second = server.times("/v1/completions")
    assert 0.5 <= second - first < 1.0


def test_retry_after_as_a_date_is_kept(server):
    when = int(time.time()) + 2
    server.faults = {"p": [(503, formatdate(when, usegmt=True))]}
    _ask(_client(server), "p")
    assert when <= time.time() < when + 1 and len(server.requests) == 2


@pytest.mark.parametrize(
    "after", [formatdate(time.time() - 9, usegmt=True), "soon", "-3"], ids=["a date gone by", "soon", "-3"]
)
def test_a_retry_after_that_asks_for_no_wait(server, after):
    server.faults = {"p": [(429, after)]}
    started = time.monotonic()
    assert _ask(_client(server), "p") == ["1"]
    assert time.monotonic() - started < 0.4


def test_a_longer_wait_than_allowed_ends_it(server):
    server.faults = {"p": [(429, "3600")]}
    with pytest.raises(Unavailable, match="429"):
        _ask(_client(server), "p")
    assert len(server.requests) == 1


def test_back_off_doubles(server):
    server.faults = {"p": [500] * 3}
    _ask(_client(server, backoff_s=0.1), "p")
    times = server.times("/v1/completions")
    gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
    for gap, least in zip(gaps, (0.1, 0.2, 0.4), strict=True):
        assert least <= gap < 2 * least + 0.15, gaps


@pytest.mark.parametrize("bound, peak", [(3, {3}), (12, set(range(4, 13)))])
def test_requests_at_once_are_bounded(server, bound, peak):
    """The second case is the mutation: without the bound there are more at once."""
    server.delay = 0.05
    _ask(_client(server, max_concurrency=bound), *map(str, range(12)))
    assert server.peak in peak and len(server.answered) == 12


def test_answers_keep_the_order_of_the_questions(server):
    server.distribution = lambda prompt: {prompt.upper(): 1.0}
    server.faults = {"a": [500, 500], "c": ["slow"]}
    assert _ask(_client(server), *"abcdef") == [*"ABCDEF"]


@pytest.mark.parametrize("limit, least, most", [(600, 0.5, 2.0), (None, 0.0, 0.3)])
def test_requests_a_minute(server, limit, least, most):
    """600 a minute are one each 0.1 s: six take half a second; and none of it without the limit."""
    started = time.monotonic()
    _ask(_client(server, requests_per_minute=limit), *"abcdef")
    times = server.times("/v1/completions")
    # From the start: the first request may arrive late on a busy machine, the last never early.
    assert least * 0.95 <= max(times) - started
    assert max(times) - min(times) < most
    if limit:
        assert all(b - a > 0.05 for a, b in zip(times, times[1:], strict=False))


@pytest.mark.parametrize("limit, least, most", [(240_000, 1.0, 2.5), (None, 0.0, 0.5)])
def test_tokens_a_minute(server, limit, least, most):
    """20,000 at once, then 4,000 a second: 24,000 take a second, also as one request."""
    for prompts, each in (("abcd", 6_000), ("e", 24_000)):
        client = _client(server, tokens_per_minute=limit)
        started = time.monotonic()
        _ask(client, *prompts, tokens=each)
        assert least * 0.9 <= time.monotonic() - started < most


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_stops_at_once(server, status, monkeypatch):
    monkeypatch.setenv("TOY_KEY", KEY)
    server.faults = {"p": [status] * 9}
    with pytest.raises(UserError) as caught:
        _ask(_client(server, api_key_env="TOY_KEY"), "p")
    assert "TOY_KEY" in str(caught.value) and KEY not in str(caught.value)
    assert len(server.requests) == 1


def test_the_first_error_ends_the_rest(server):
    server.faults = {"bad": [401]}
    server.delay = 0.02
    with pytest.raises(UserError):
        _ask(_client(server, max_concurrency=1), "bad", *map(str, range(20)))
    assert len(server.requests) < 5


def test_the_key_is_sent_and_never_said(server, monkeypatch, caplog):
    monkeypatch.setenv("ODD_NAME", KEY)  # no name that gives a secret away
    server.key = KEY
    server.faults = {"q": ["echo the key"], "r": [500]}
    client = _client(server, api_key_env="ODD_NAME")
    with caplog.at_level("DEBUG"):
        assert _ask(client, "p", "r") == ["1", "1"]
        with pytest.raises(Refused, match=r"you sent Bearer \[redacted\]"):
            _ask(client, "q")
    assert KEY not in caplog.text and "asking again" in caplog.text
    assert "HTTP Request" not in caplog.text, "one line for each request would drown the rest"
    server.key = "another"
    with pytest.raises(UserError) as caught:
        _ask(client, "p")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("value", ["", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_cannot_be_sent(server, value, monkeypatch):
    monkeypatch.setenv("TOY_KEY", value)
    with pytest.raises(UserError, match="TOY_KEY") as caught:
        _client(server, api_key_env="TOY_KEY")
    assert not value or value not in str(caught.value)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"base_url": "localhost:8000/v1"}, "http://HOST:PORT/v1"),
        ({"base_url": "http://user:secret@"}, "http://HOST:PORT/v1"),
        ({"api_key_env": "sk-1234-5678"}, "write its name"),
        ({"timeout_s": 0}, "backend.timeout_s=0"),
        ({"requests_per_minute": -1}, "backend.requests_per_minute=-1"),
        ({"max_concurrency": 0}, "max_concurrency"),
    ],
)
def test_options_without_meaning(changes, said):
    with pytest.raises(UserError, match=said) as caught:
        http_options(**({"base_url": "http://127.0.0.1:1/v1"} | changes))
    assert "sk-1234" not in str(caught.value) and "secret" not in str(caught.value)
