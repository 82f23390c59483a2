"""Answers at the edge: what is no answer fails with its cause, is never kept, and heals what an old store has."""

from __future__ import annotations

import dataclasses
import json
import math
import sqlite3

import pytest
from labeler_cases import Recorder, logs, options, pairs, scripted, templates

from rlaif.backends.base import ChoiceScores, Generation, SequenceScore
from rlaif.errors import UserError
from rlaif.labelers import Labeler, LabelStore
from rlaif.labelers.answers import checked
from rlaif.labelers.store import _checksum

NAN = math.nan


@pytest.mark.parametrize(
    "answer, said",
    [
        (ChoiceScores((NAN, -1.0), 1), "a log-probability is nan"),
        (ChoiceScores((math.inf, -1.0), 1), "a log-probability is inf"),
        (ChoiceScores((0.7, -1.0), 1), "a log-probability is 0.7"),
        (ChoiceScores(("-0.1", -1.0), 1), "a log-probability is '-0.1'"),
        (ChoiceScores((True, -1.0), 1), "a log-probability is True"),
        (ChoiceScores((-0.1, None), 1, ceiling=NAN), "a log-probability is nan"),
        (ChoiceScores((-0.1,), 1), "1 log-probabilities for 2 choices"),
        (ChoiceScores((-0.1, -3.0), -5), "tokens_in is -5"),
        (ChoiceScores((-0.1, -3.0), NAN), "tokens_in is nan"),
        (SequenceScore(NAN, 3, 9), "a log-probability is nan"),
        (SequenceScore(-1.0, -1, 9), "tokens is -1"),
        (Generation("half of it is \ud83d", True, 1, 9), "lone surrogate"),
        (Generation(["a", "list"], True, 1, 9), "its text is list"),
        (Generation(None, True, 1, 9), "its text is NoneType"),
    ],
)
def test_what_is_no_answer_fails_with_its_cause(answer, said):
    found = checked(answer, choices=2)
    assert said in found.error and found.error.startswith("the answer is not valid")
    json.dumps(dataclasses.asdict(found), allow_nan=False).encode()


@pytest.mark.parametrize(
    "answer",
    [
        ChoiceScores((-0.1, -math.inf), 1),
        ChoiceScores((-0.1, None), 1, ceiling=-7.0),
        ChoiceScores((1e-4, -9.0), 1),  # rounding
        SequenceScore(-math.inf, 3, 9),
        Generation("\U0001f600 and \x00", True, 1, 9),
    ],
)
def test_what_is_an_answer_stays_as_it_is(answer):
    assert checked(answer, choices=2) == answer


def test_an_error_that_is_no_unicode_can_be_written():
    broken = checked(Generation("", False, 0, 0, error="said \udc80"), choices=0)
    assert broken.error == "said ?"


class Says:
    """Answers every verdict with the same two log-probabilities."""

    batch_invariant = True

    def __init__(self, *logprobs, **fields) -> None:
        self.logprobs, self.fields, self.calls = logprobs, fields, 0

    def identity(self):
        return {"engine": "says"}

    def choice_logprobs(self, prompts, choices):
        self.calls += len(prompts)
        return [ChoiceScores(self.logprobs, 1, **self.fields) for _ in prompts]


def label(backend, store, *, count=3, retry=None, renewed=None, **changes):
    return Labeler(
        backend, templates(), options(**changes), store=store, progress=None, retry=retry, renewed=renewed
    ).label(pairs(count))


def store_at(tmp_path):
    return LabelStore(tmp_path / "labels.sqlite", claim_seconds=60.0)


def test_a_bad_answer_is_failed_and_a_healthy_server_is_asked_again(tmp_path):
    with store_at(tmp_path) as store:
        broken = label(Says(NAN, -1.0), store)
        assert {p.state for p in broken.preferences} == {"failed"} and len(store) == 0
        assert broken.unread.causes == (("the answer is not valid: a log-probability is nan", 6),)
        healthy = label(Says(*logs(0.9, 0.05)), store)
    assert {p.state for p in healthy.preferences} == {"ok"} and healthy.counters["asked"] == 6


def test_an_answer_that_an_older_store_kept_although_it_is_none_is_replaced(tmp_path):
    with store_at(tmp_path) as store:
        label(Says(*logs(0.9, 0.05)), store)
    with sqlite3.connect(tmp_path / "labels.sqlite") as raw:
        key, text = raw.execute("SELECT key, answer FROM answers").fetchone()
        poisoned = json.dumps(json.loads(text) | {"logprobs": [NAN, -1.0]}, sort_keys=True)
        raw.execute(
            "UPDATE answers SET answer = ?, checksum = ? WHERE key = ?",
            (poisoned, _checksum(key, poisoned), key),
        )
    with store_at(tmp_path) as store:
        again = label(Says(*logs(0.9, 0.05)), store)
        assert {p.state for p in again.preferences} == {"ok"} and again.counters["asked"] == 1
        assert label(Says(), store).counters["asked"] == 0


def test_what_the_store_holds_is_strict_json_and_comes_back_as_it_was(tmp_path):
    with store_at(tmp_path) as store:
        first = label(Says(-0.01, -math.inf), store)
        again = label(Says(), store)
        with pytest.raises(ValueError, match="JSON"):
            store.put("k", {"a": {"x": NAN}})
    assert {j.logprobs for j in first.judgements} == {j.logprobs for j in again.judgements}
    assert {j.logprobs for j in again.judgements} == {(-0.01, -math.inf)}
    with sqlite3.connect(tmp_path / "labels.sqlite") as raw:
        for (text,) in raw.execute("SELECT answer FROM answers"):
            json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


# labeler.retry


@pytest.mark.parametrize("retry, asked", [(None, 0), ("failed", 0), ("unparsed", 6), ("all", 6)], ids=str)
def test_unparsed_answers_are_asked_again_where_that_is_wanted(tmp_path, retry, asked):
    with store_at(tmp_path) as store:
        assert {p.state for p in label(Says(*logs(0.004, 0.002)), store).preferences} == {"unparsed"}
        backend = Says(*logs(0.9, 0.05))
        again = label(backend, store, retry=retry)
        assert backend.calls == again.counters["asked_again"] == asked
        state = "ok" if asked else "unparsed"
        assert {p.state for p in again.preferences} == {state}
        # What came is what the store has by now.
        assert {p.state for p in label(Says(), store).preferences} == {state}


def test_answers_that_were_read_are_left_alone_but_for_all(tmp_path):
    with store_at(tmp_path) as store:
        label(Says(*logs(0.9, 0.05)), store)
        backend = Says(*logs(0.05, 0.9))
        assert label(backend, store, retry="unparsed").counters["asked_again"] == backend.calls == 0
        turned = label(backend, store, retry="all")
        assert turned.counters["asked_again"] == backend.calls == 6
        assert turned.judgements[0].p_a == pytest.approx(0.05 / 0.95, abs=1e-12)


def test_a_call_that_fails_does_not_cost_the_answer_that_is_there(tmp_path):
    with store_at(tmp_path) as store:
        label(Says(*logs(0.9, 0.05)), store)
        lost = label(Says(None, None, error="server gone"), store, retry="all")
        assert {p.state for p in lost.preferences} == {"failed"}
        assert {p.state for p in label(Says(), store).preferences} == {"ok"}


def test_an_answer_is_asked_again_once_in_a_job(tmp_path):
    renewed: set[str] = set()
    with store_at(tmp_path) as store:
        label(Says(*logs(0.9, 0.05)), store)
        backend = Says(*logs(0.8, 0.05))
        for _ in range(2):
            label(backend, store, retry="all", renewed=renewed)
    assert backend.calls == 6


def test_unread_texts_and_empty_rationales_are_asked_again(tmp_path):
    class Talks:
        batch_invariant = True

        def __init__(self, rationale, verdict) -> None:
            self.texts, self.asked = {"Comparison:": rationale}, []
            self.verdict = verdict

        def identity(self):
            return {"engine": "talks"}

        def generate(self, prompts, **how):
            texts = [self.texts.get(prompt.assistant, self.verdict) for prompt in prompts]
            self.asked += texts
            return [Generation(text, True, 1, 1) for text in texts]

    with store_at(tmp_path) as store:
        label(Talks("It fits.", "Hm."), store, count=1, cot=True, readout_kind="text")
        mended = Talks("It fits.", "1")
        found = label(mended, store, count=1, cot=True, readout_kind="text", retry="unparsed")
        assert mended.asked == ["1", "1"] and found.preferences[0].state == "ok"
    with LabelStore(tmp_path / "other.sqlite", claim_seconds=60.0) as store:
        label(Talks(" ", "1"), store, count=1, cot=True, readout_kind="text")
        mended = Talks("It fits.", "1")
        label(mended, store, count=1, cot=True, readout_kind="text", retry="unparsed")
        assert "It fits." in mended.asked


# A "10" whose tokens are not known


class Hides(Says):
    def choice_logprobs(self, prompts, choices):
        self.calls += len(prompts)
        return [ChoiceScores((math.log(0.94), *(None,) * 7, math.log(0.04), None), 1)] * len(prompts)


@pytest.mark.parametrize("how", ["label", "scores"])
def test_a_score_is_refused_after_one_call_where_ten_is_hidden(tmp_path, how):
    backend = Hides()
    with store_at(tmp_path) as store:
        one = Labeler(backend, templates(), options(readout_kind="score"), store=store, progress=None)
        with pytest.raises(UserError, match='does not report how its model splits "10"'):
            if how == "label":
                one.label(pairs(5))
            else:
                one.scores([(p.prompt, p.response_a, None) for p in pairs(5)])
    assert backend.calls == 1


def test_a_score_with_known_tokens_is_asked_once_each(tmp_path):
    backend = Recorder(scripted())
    one = Labeler(backend, templates(), options(readout_kind="score"), store=None, progress=None)
    assert all(p.state == "ok" for p in one.label(pairs(5)).preferences)
    assert len(backend.chosen) == len({message for message, _ in backend.chosen}) == 10
