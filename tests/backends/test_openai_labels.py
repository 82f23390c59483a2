"""A real labeler with a real store over a server that fails: no label lost, none invented, none asked twice."""

from __future__ import annotations

import dataclasses
import math

import pytest
from labeler_cases import options, pairs, templates, timeless
from local_server import LocalServer
from openai_cases import backend

from rlaif.backends.openai.backend import OpenAIBackend
from rlaif.errors import UserError
from rlaif.io import stable_uniform
from rlaif.labelers import FREE, Labeler, LabelStore, Meter, Price

COUNT = 6
# One kind of failure for each pair but the last, named by a word of the pair's second response.
FAULTS = {
    "b0.": [(429, "0.1")],
    "b1.": [500, 503],
    "b2.": ["drop"],
    "b3.": ["slow"],
    "b4.": ["broken", 500],
}


def _shares(prompt: str) -> dict[str, float]:
    p = 0.05 + 0.8 * stable_uniform(prompt)
    return {"1": p, "2": 0.9 - p, "~": 0.1}


@pytest.fixture
def server():
    with LocalServer({"top_k", "sample"}, distribution=_shares) as server:
        yield server


@pytest.fixture
def store(tmp_path):
    with LabelStore(tmp_path / "labels.sqlite", claim_seconds=60.0) as store:
        yield store


def _meter() -> Meter:
    return Meter(name="labeler", price=FREE, budget_usd=None, max_seconds=None, clock=lambda: 0.0)


def _label(engine, store, count=COUNT, **changes):
    labeler = Labeler(engine, templates(), options(**changes), store=store, progress=None, meter=_meter())
    return labeler.label(pairs(count))


def _equal(one, other) -> bool:
    def untold(judgement):  # what the tokens cost may differ, what they say may not
        return dataclasses.replace(judgement, tokens_in=0, tokens_out=0, tokens_cached=0)

    same = [*map(untold, timeless(one.judgements))] == [*map(untold, timeless(other.judgements))]
    return same and one.preferences == other.preferences


def _clean(**changes):
    with LocalServer({"top_k", "sample"}, distribution=_shares) as server:
        return _label(backend(server.base_url), None, **changes)


@pytest.mark.parametrize(
    "changes", [{}, {"cot": True, "max_rationale_tokens": 5, "temperature": 0.7, "top_k": 0}]
)
def test_faults_that_pass_change_nothing(server, store, changes):
    server.faults = {word: list(faults) for word, faults in FAULTS.items()}
    result = _label(backend(server.base_url), store, **changes)
    assert sum(map(len, server.failed.values())) == 7, "every fault was met"
    assert _equal(result, _clean(**changes))
    asked = {prompt: count for prompt, count in server.answered.items() if "3, 1, 2, 3" not in prompt}
    steps = 2 if changes else 1
    assert len(asked) == steps * 2 * COUNT and set(asked.values()) == {1}
    assert len(store) == steps * 2 * COUNT
    before = len(server.requests)
    again = _label(backend(server.base_url), store, **changes)
    assert _equal(again, result) and len(server.requests) == before
    assert again.counters["reused"] == steps * 2 * COUNT and again.counters["asked"] == 0


def test_values_are_those_of_their_own_prompts(server, store):
    """Order kept: each p follows from the prompt that it is stored under, whatever came back first."""
    server.faults = {"b0.": [500, 500], "b1.": [500]}
    result = _label(backend(server.base_url), store)
    prompts = [prompt for prompt in server.answered if "3, 1, 2, 3" not in prompt]
    for number, pair in enumerate(pairs(COUNT)):
        own = [prompt for prompt in prompts if pair.response_a in prompt and pair.response_b in prompt]
        p = {
            "ab" if q.index(pair.response_a) < q.index(pair.response_b) else "ba": _shares(q)["1"] / 0.9
            for q in own
        }
        found = result.preferences[number]
        assert (found.p_ab, found.p_ba) == (pytest.approx(p["ab"]), pytest.approx(1 - p["ba"]))
        assert found.pair_id == pair.id and found.provenance == "logprob"


def test_what_fails_for_good_is_failed_not_stored_and_asked_again_alone(server, store):
    server.faults = {"b2.": [500] * 99}
    result = _label(backend(server.base_url), store)
    assert [x.state for x in result.preferences] == ["failed" if n == 2 else "ok" for n in range(COUNT)]
    assert result.preferences[2].p_a is None and len(store) == 2 * (COUNT - 1)
    assert all(j.text == "HTTP 500: status 500" for j in result.judgements if j.state == "failed")
    server.faults = {}
    again = _label(backend(server.base_url), store)
    assert _equal(again, _clean())
    assert again.counters["asked"] == 2 and again.counters["reused"] == 2 * (COUNT - 1)
    assert {n for prompt, n in server.answered.items() if "3, 1, 2, 3" not in prompt} == {1}


def test_mutation_an_engine_of_whole_batches_asks_the_neighbours_again(server, store):
    class Whole:
        def __init__(self, inner):
            self.identity, self.choice_logprobs = inner.identity, inner.choice_logprobs

    server.faults = {"b2.": [500] * 99}
    _label(Whole(backend(server.base_url)), store)
    server.faults = {}
    _label(Whole(backend(server.base_url)), store)
    assert 2 in {n for prompt, n in server.answered.items() if "3, 1, 2, 3" not in prompt}


def test_a_wrong_key_stops_before_anything_is_asked(server, store, monkeypatch):
    monkeypatch.setenv("TOY_KEY", "wrong-key-1234")
    server.key = "right-key-1234"
    with pytest.raises(UserError, match="TOY_KEY"):
        _label(backend(server.base_url, api_key_env="TOY_KEY"), store)
    assert [path for path, _, _ in server.requests] == ["/v1/models", "/v1/completions"] and len(store) == 0


def test_a_key_that_is_withdrawn_keeps_what_was_labelled(server, store, monkeypatch):
    monkeypatch.setenv("TOY_KEY", "right-key-1234")
    engine = backend(server.base_url, api_key_env="TOY_KEY", max_concurrency=1)
    server.faults = {"b4.": [401]}
    with pytest.raises(UserError, match="TOY_KEY"):
        _label(engine, store)
    assert len(store) == 8, "two batches of four"
    again = _label(engine, store)
    assert _equal(again, _clean()) and again.counters["reused"] == 8


def test_the_bound_on_requests_holds_while_labelling(server, store):
    server.delay = 0.02
    # Not the slow one: the server is still at it when the client has given up.
    server.faults = {word: list(faults) for word, faults in FAULTS.items() if "slow" not in faults}
    _label(backend(server.base_url, max_concurrency=2), store, batch_size=12)
    assert server.peak == 2


def test_shares_of_samples_become_labels(store):
    def ending(prompt: str) -> dict[str, float]:
        return {"\n": 1.0} if prompt[-1:] in "12~\n" else _shares(prompt)

    with LocalServer({"sample"}, distribution=ending) as server:
        result = _label(backend(server.base_url, samples=8), store, count=2)
    assert {x.provenance for x in result.preferences} == {"frequency"}
    assert all(
        j.p_a is not None and math.isclose(j.p_a * 8 * j.mass, round(j.p_a * 8 * j.mass))
        for j in result.judgements
    )


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}])
def test_a_budget_binds_where_the_server_tells_no_usage(server, store, usage):
    """One token for each 4 bytes: a batch of four prompts of some 90 tokens at 1 USD a token passes 300 USD."""

    def twist(path, body, status, answer):
        return status, answer | {"usage": usage} if "choices" in answer else answer

    server.twist = twist
    price = Price(1e6, 0.0, 0.0)
    meter = Meter(name="labeler", price=price, budget_usd=300.0, max_seconds=None, clock=lambda: 0.0)
    labeler = Labeler(
        backend(server.base_url), templates(), options(), store=store, progress=None, meter=meter
    )
    with pytest.raises(UserError, match=r"labeler.budget_usd=300 has no room for another batch: 4 of 12"):
        labeler.label(pairs(COUNT))
    prompts = [prompt for prompt in server.answered if "3, 1, 2, 3" not in prompt]
    assert len(prompts) == 4 and meter.usd == sum(-(-len(prompt.encode()) // 4) for prompt in prompts)


def test_calls_with_estimated_tokens_are_counted(server, store):
    assert _label(backend(server.base_url), store).counters["usage_estimated"] == 0
    server.twist = lambda path, body, status, answer: (status, {**answer, "usage": None})
    result = _label(backend(server.base_url), None)
    assert result.counters["usage_estimated"] == result.counters["asked"] == 2 * COUNT


def test_a_value_that_is_none_is_asked_again_once_the_server_is_healthy(server, store):
    """NaN for one pair: it fails, and its answer is not kept; then the whole is as if nothing had been."""

    def twist(path, body, status, answer):
        if "b3." in body.get("prompt", ""):
            listed = answer["choices"][0]["logprobs"]["top_logprobs"][0]
            answer["choices"][0]["logprobs"]["top_logprobs"][0] = dict.fromkeys(listed, float("nan"))
        return status, answer

    server.twist = twist
    result = _label(backend(server.base_url), store)
    assert [x.state for x in result.preferences] == ["failed" if n == 3 else "ok" for n in range(COUNT)]
    server.twist = lambda path, body, status, answer: (status, answer)
    again = _label(backend(server.base_url), store)
    assert _equal(again, _clean()) and again.counters["asked"] == 2


def test_answers_by_other_rules_are_asked_again_where_they_matter(server, store, monkeypatch):
    """Bare tokens alone were read before; a text was a text then as now."""
    text = {"readout_kind": "text", "top_k": 0}
    monkeypatch.setattr(OpenAIBackend, "choice_rules", None)
    _label(backend(server.base_url), store)
    _label(backend(server.base_url), store, **text)
    monkeypatch.undo()
    assert _label(backend(server.base_url), store).counters["reused"] == 0
    assert _label(backend(server.base_url), store).counters["asked"] == 0
    assert _label(backend(server.base_url), store, **text).counters["asked"] == 0


def test_text_that_was_not_greedy_is_asked_again_once_the_server_takes_the_temperature(store):
    def refusing(path, body, status, answer):
        if body.get("temperature", 1) != 1:
            return 400, {
                "error": {"message": "'temperature' does not support 0. Only the default (1) is supported."}
            }
        return status, answer

    changes = {"readout_kind": "text", "top_k": 0, "readout_max_tokens": 1, "count": 2}
    with LocalServer({"sample"}, distribution=lambda _: {"1": 0.6, "2": 0.4}) as server:
        server.twist = refusing
        first = _label(backend(server.base_url), store, **changes)
        before = len(server.asked("/v1/completions"))
        same = _label(backend(server.base_url), store, **changes)
        assert same.counters["asked"] == 0 and len(server.asked("/v1/completions")) == before
        server.twist = lambda path, body, status, answer: (status, answer)
        greedy = _label(backend(server.base_url), store, **changes)
        assert greedy.counters["asked"] == first.counters["asked"] == 4
        assert {judgement.text for judgement in greedy.judgements} == {"1"}
        known = len(server.requests)
        assert _label(backend(server.base_url), store, **changes).counters["asked"] == 0
        assert len(server.requests) == known, "nothing is altered any more, and nothing is asked"


def test_altered_text_stands_while_the_server_is_away(store):
    changes = {"readout_kind": "text", "top_k": 0, "readout_max_tokens": 1, "count": 2}
    with LocalServer({"sample"}, distribution=lambda _: {"1": 1.0}) as server:
        server.twist = lambda path, body, status, answer: (
            (400, {"message": "temperature is not supported"}) if "temperature" in body else (status, answer)
        )
        _label(backend(server.base_url), store, **changes)
        address = server.base_url
    assert _label(backend(address), store, **changes).counters["asked"] == 0
