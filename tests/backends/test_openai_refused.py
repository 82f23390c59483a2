"""Servers that refuse something: optional routes, request fields, and an account that is used up."""

from __future__ import annotations

import math
import re
import time

import pytest
from labeler_cases import options, pairs, templates
from local_server import MODEL, LocalServer
from openai_cases import backend

from rlaif.backends.base import Ended, Message
from rlaif.backends.openai.refusals import read_refusal
from rlaif.errors import UserError
from rlaif.labelers import Labeler, LabelStore

ASK = Message("Which?", "Answer=")
HTML = b"<!doctype html><html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
CHAT = "/v1/chat/completions"


def _served(twist, abilities=("top_k", "sample"), **changes):
    """(scores of one question, what the backend says, the server) where answers are twisted."""
    with LocalServer(abilities) as server:
        server.twist = twist
        engine = backend(server.base_url, **({"api": "chat"} | changes))
        (scores,) = engine.choice_logprobs([ASK], ["1", "2"])
        return scores, engine.said(), server


# Optional routes.


@pytest.mark.parametrize(
    "status, found",
    [
        (401, {"error": {"message": "who are you"}}),
        (403, {"error": {"message": "Missing scopes: api.model.read."}}),
        (404, {"detail": "Not Found"}),
        (405, HTML),
        (500, {"error": {"message": "listing is broken"}}),
        (302, b""),
        (200, HTML),
        (200, {"error": "Unexpected endpoint or method."}),
        (200, [{"id": MODEL, "object": "model"}]),
        (200, [MODEL]),
        (200, {"models": [{"name": f"{MODEL}:latest"}]}),
        (200, {"data": [{"id": f"models/{MODEL}"}]}),
        (200, {"data": [{"id": "another"}], "has_more": True}),
        (200, {"data": []}),
        (200, {"data": None}),
        (200, {"data": [{"id": None}]}),
        (200, [1, 2]),
        (429, {"error": {"code": "insufficient_quota", "message": "no listing for you"}}),
    ],
)
@pytest.mark.parametrize("route", ["/v1/models", "/tokenize"])
def test_an_optional_route_ends_nothing(route, status, found):
    started = time.monotonic()
    scores, _, server = _served(lambda p, b, s, a: (status, found) if p == route else (s, a), backoff_s=0.01)
    assert scores.logprobs == (pytest.approx(math.log(0.5)), pytest.approx(math.log(0.2)))
    assert time.monotonic() - started < 1.0
    assert 1 <= sum(path == route for path, _, _ in server.requests) <= 2


@pytest.mark.parametrize("route", ["/v1/models", "/tokenize"])
def test_an_optional_route_that_hangs_costs_one_time_limit(route):
    def twist(path, body, status, answer):
        if path == route:
            time.sleep(0.4)
        return status, answer

    scores, _, server = _served(twist, timeout_s=0.2)
    assert scores.error is None and sum(path == route for path, _, _ in server.requests) == 1


@pytest.mark.parametrize(
    "found", [{"data": [{"id": "other"}]}, ["other"], {"models": [{"model": "x", "name": "other"}]}]
)
def test_a_list_without_the_model_says_no(found):
    with pytest.raises(UserError, match=f"backend.name={MODEL} is not served there: write one of other"):
        _served(lambda p, b, s, a: (200, found) if p == "/v1/models" else (s, a))


def test_a_wrong_key_is_said_in_the_servers_own_words():
    with pytest.raises(UserError, match="HTTP 403: this region is not served.*backend.api_key_env"):
        _served(lambda p, b, s, a: (403, {"error": {"message": "this region is not served"}}))


# Request fields.


def _without(field, error, status=400, when=lambda body: True):
    """A server that refuses a field in these words."""

    def twist(path, body, ok, answer):
        return (status, error) if field in body and when(body) else (ok, answer)

    return twist


MAX_TOKENS = {
    "error": {
        "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use"
        " 'max_completion_tokens' instead.",
        "code": "unsupported_parameter",
    }
}
SEED = [
    {
        "error": {
            "code": 400,
            "message": 'Invalid JSON payload received. Unknown name "seed": Cannot find field.',
        }
    }
]
TEMPERATURE = {
    "error": {
        "message": "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value"
        " is supported.",
        "param": "temperature",
    }
}
NO_TEMPERATURE = {"message": "temperature is not supported with this model"}
PYDANTIC = {
    "detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]
}
BOTH = {"error": {"message": "`temperature` and `top_p` cannot both be specified for this model."}}


@pytest.mark.parametrize(
    "field, error, status, sent, said",
    [
        (
            "max_tokens",
            MAX_TOKENS,
            400,
            {"max_completion_tokens": 4},
            "max_tokens is sent as max_completion_tokens",
        ),
        ("seed", SEED, 400, {}, "seed is refused and left out: sampled text cannot be drawn again"),
        ("seed", PYDANTIC, 422, {}, "seed is refused"),
        ("temperature", NO_TEMPERATURE, 400, {}, "temperature 0 is refused and left out: .* not greedy"),
        ("top_p", BOTH, 400, {"temperature": 0.0}, "top_p is refused"),
        ("top_p", {"message": "unexpected keyword argument top_p"}, 400, {}, "top_p is refused"),
    ],
)
def test_a_refused_field_is_learned_once_and_said(field, error, status, sent, said, caplog):
    with LocalServer({"top_k", "sample"}) as server:
        server.twist = _without(field, error, status)
        engine = backend(server.base_url, api="chat")
        for _ in range(2):
            scores = engine.choice_logprobs([ASK] * 3, ["1", "2"])
            assert {score.error for score in scores} == {None}
        refused = [body for path, body, _ in server.requests if path == CHAT and field in body]
        assert len(refused) == 1, "learned once"
        last = server.asked(CHAT)[-1]
        assert field not in last and sent.items() <= last.items()
        assert sum("refused" in r.message or "sent as" in r.message for r in caplog.records) == 1
    assert re.search(said, engine.said())


def test_all_of_them_at_once():
    """A reasoning model behind OpenAI's API: no seed, no temperature, another name for the limit."""

    def twist(path, body, status, answer):
        for field, error in (("max_tokens", MAX_TOKENS), ("seed", SEED)):
            if field in body:
                return 400, error
        return (400, TEMPERATURE) if path == CHAT and body.get("temperature") != 1 else (status, answer)

    scores, said, server = _served(twist)
    assert "temperature 0 is refused and sent as 1, all that the server takes: text is sampled" in said
    assert server.asked(CHAT)[-1]["temperature"] == 1.0
    assert scores.error is None and said.count("refused") == 2 and "max_completion_tokens" in said


def test_a_temperature_that_must_be_positive_stays_as_good_as_greedy():
    error = {"error": "`temperature` must be strictly positive", "error_type": "validation"}
    _, said, server = _served(_without("temperature", error, 422, lambda body: body["temperature"] == 0))
    assert server.asked(CHAT)[-1]["temperature"] == 0.01 and "practically greedy" in said


def test_a_least_number_of_tokens():
    error = {
        "error": {"message": "Invalid 'max_tokens': integer below minimum value. Expected a value >= 16"}
    }
    _, said, server = _served(_without("max_tokens", error, 400, lambda body: body["max_tokens"] < 16))
    assert server.asked(CHAT)[-1]["max_tokens"] == 16 and "at least 16" in said


@pytest.mark.parametrize(
    "message",
    [
        "'max_tokens' is too large: 500. This model's maximum context length is 512 tokens",
        "The seed of this story is not allowed by the content management policy",
        "the prompt is unsupported",
    ],
)
def test_other_refusals_teach_nothing(message):
    """The first names no field that it minds, the second goes on being refused without it."""
    with LocalServer({"top_k", "sample"}) as server:
        server.twist = lambda p, b, s, a: (
            (400, {"error": {"message": message}}) if "Which" in str(b) else (s, a)
        )
        engine = backend(server.base_url, api="chat")
        (scores,) = engine.choice_logprobs([ASK], ["1", "2"])
        assert scores.error == f"HTTP 400: {message}"
        fine = Message("Other?", "Answer=")
        assert engine.choice_logprobs([fine], ["1", "2"])[0].error is None
        assert {"seed", "max_tokens"} <= set(server.asked(CHAT)[-1]) and "refused" not in engine.said()


# What an error says.


@pytest.mark.parametrize(
    "body, said",
    [
        ('{"error": {"message": "no"}}', "no"),
        ('{"error": "no"}', "no"),
        ('[{"error": {"message": "no"}}]', "no"),
        ('"no"', "no"),
        ("no", "no"),
        ('{"detail": "no"}', "no"),
        ('{"detail": [{"loc": ["body", "x"], "msg": "no"}]}', "body.x: no"),
        ('{"errors": [{"message": "no"}]}', "no"),
        ('{"error": {"error": {"message": "no"}}}', "no"),
        ('{"error": {"message": "{\\"error\\": {\\"message\\": \\"no\\"}}"}}', "no"),
        ('{"error": {"code": 7}, "message": "no"}', "no"),
        (
            '{"error": {"message": "Provider returned error", "metadata": {"raw": "{\\"error\\": \\"no\\"}"}}}',
            "Provider returned error: no",
        ),
        (HTML.decode(), "502 Bad Gateway"),
        ("<html><body><p>no &amp; never</p></body></html>", "no & never"),
        ('{"code": 7}', '{"code": 7}'),
        ("[" * 100_000, "[" * 100_000),
        ("", ""),
    ],
)
def test_the_servers_own_sentence_is_found(body, said):
    assert read_refusal(body).message == said


QUOTA = {
    "error": {
        "message": "You exceeded your current quota, please check your plan and billing details.",
        "type": "insufficient_quota",
        "code": "insufficient_quota",
    }
}
PER_MINUTE = {
    "error": {
        "message": "Rate limit reached for toy. Add a payment method at /account/billing. Please try again in 20ms.",
        "code": "rate_limit_exceeded",
    }
}
GEMINI = [
    {
        "error": {
            "code": 429,
            "message": "You exceeded your current quota. Please retry in 3.5s.",
            "status": "RESOURCE_EXHAUSTED",
        }
    }
]


@pytest.mark.parametrize(
    "status, body, wait, empty",
    [
        (429, QUOTA, None, True),
        (429, QUOTA, 20.0, True),
        (402, {"error": {"message": "Insufficient Balance"}}, None, True),
        (400, {"error": {"message": "Your credit balance is too low to access the API."}}, None, True),
        (
            403,
            {"error": {"message": "Account is not active, please check your billing details."}},
            None,
            True,
        ),
        (429, {"message": "You exceeded your current quota"}, None, True),
        (429, PER_MINUTE, None, False),
        (429, GEMINI, None, False),
        (429, {"message": "You exceeded your current quota"}, 3.0, False),
        (429, {"error": {"message": "slow down"}}, None, False),
        (500, QUOTA | {"error": {"message": "exceeded your current quota"}}, None, False),
    ],
)
def test_an_empty_account_is_told_from_a_limit_per_minute(status, body, wait, empty):
    assert read_refusal(body).empties(status, wait) is empty


# What ends a run keeps what was done.


def _label(server, store, **changes):
    engine = backend(server.base_url, api="chat", max_concurrency=1, **changes)
    labeler = Labeler(engine, templates(), options(batch_size=8), store=store, progress=None)
    return labeler.label(pairs(6))


def test_a_quota_ends_the_run_at_once_and_what_was_done_is_stored(tmp_path):
    asked = 0

    def twist(path, body, status, answer):
        nonlocal asked
        asked += path == CHAT and "3, 1, 2, 3" not in str(body)
        return (429, QUOTA) if asked > 3 else (status, answer)

    with LocalServer({"top_k", "sample"}) as server, LabelStore(tmp_path / "s", claim_seconds=9.0) as store:
        server.twist = twist
        with pytest.raises(UserError, match="You exceeded your current quota.*billing"):
            _label(server, store)
        assert asked == 4 and len(store) == 3, "three paid answers of a batch of eight"
        server.twist = lambda path, body, status, answer: (status, answer)
        result = _label(server, store)
        assert result.counters["reused"] == 3 and result.counters["asked"] == 9


def test_a_server_that_is_gone_ends_the_run_instead_of_every_call_by_itself():
    with LocalServer({"top_k", "sample"}) as server:
        engine = backend(server.base_url, api="chat", max_retries=1)
        engine.choice_logprobs([ASK], ["1", "2"])
        server.twist = lambda path, body, status, answer: (503, {"error": {"message": "overloaded"}})
        with pytest.raises(Ended, match="has not answered the last 16 calls .HTTP 503: overloaded"):
            engine.choice_logprobs([ASK] * 100, ["1", "2"])
        assert len(server.requests) < 150, "not two attempts for each of the 100"


def test_an_error_in_an_answer_with_a_good_status_is_one():
    with LocalServer({"top_k", "sample"}) as server:
        engine = backend(server.base_url, api="chat", max_retries=1)
        engine.choice_logprobs([ASK], ["1", "2"])
        server.twist = lambda *_: (200, {"error": {"message": "upstream is away", "code": 502}})
        before = len(server.requests)
        assert engine.choice_logprobs([ASK], ["1", "2"])[0].error == "HTTP 502: upstream is away"
        assert len(server.requests) == before + 2, "a fault that may pass is repeated"
        server.twist = lambda *_: (200, {"error": "no such thing"})
        assert engine.choice_logprobs([ASK], ["1", "2"])[0].error == "HTTP 200: no such thing"
