"""What a server says is checked where it comes in: finite log-probabilities, text, valid Unicode, tokens told."""

from __future__ import annotations

import json
import math

import pytest
from local_server import LocalServer
from openai_cases import backend

from rlaif.backends.base import Message
from rlaif.backends.openai.answers import count_tokens, read_answer
from rlaif.labelers.readout.readouts import read_choice

ASK = Message("Which?", "Answer=")
NAN = float("nan")


def _given(content, **fields) -> str:
    return read_answer({"choices": [{"message": {"content": content}, **fields}]}, "prompt").text


@pytest.mark.parametrize(
    "content, text",
    [
        ("1", "1"),
        (None, ""),
        ([{"type": "text", "text": "1"}, {"type": "text", "text": " is better"}], "1 is better"),
        (
            [
                {"type": "thinking", "thinking": [{"type": "text", "text": "2?"}]},
                {"type": "text", "text": "1"},
            ],
            "1",
        ),
        ([{"type": "reasoning", "text": "2"}, "1"], "1"),
        ([{"type": "text", "text": {"value": "2"}}], ""),
        ({"type": "output_text", "text": "1"}, "1"),
        ([], ""),
        ("first \ud83d", "first \ufffd"),
        ("\ud83d\ude00 fine", "\U0001f600 fine"),
        ("\udc00\udc00", "\ufffd\ufffd"),
    ],
)
def test_the_text_of_an_answer(content, text):
    assert _given(content) == text
    assert json.dumps(text, ensure_ascii=False).encode()


@pytest.mark.parametrize("content", [1, True, {"text": 1}, [{"type": "text", "text": 5}]])
def test_content_that_is_no_text_is_no_answer(content):
    with pytest.raises((TypeError, KeyError)):
        _given(content)


def test_a_refusal_is_what_the_model_said():
    answer = read_answer({"choices": [{"message": {"content": None, "refusal": "I cannot."}}]}, "p")
    assert answer.text == "I cannot."


@pytest.mark.parametrize(
    "choice, hint",
    [
        ({"message": {"role": "assistant"}, "finish_reason": "length"}, "within the token limit"),
        (
            {"message": {"content": None, "reasoning_content": "Let me see"}},
            "reasoning model used up its tokens",
        ),
        ({"message": {"content": "", "reasoning": "Hm"}}, "labeler.readout.max_tokens"),
        ({"message": None, "finish_reason": "content_filter"}, "content filter"),
        ({"finish_reason": "content_filter"}, "content filter"),
        ({"message": {"content": "1", "reasoning": "Hm"}}, ""),
    ],
)
def test_an_answer_without_text_is_empty_and_says_why(choice, hint):
    answer = read_answer({"choices": [choice]}, "p")
    assert hint in answer.hint and bool(answer.hint) == (answer.text == "")


# Log-probabilities.


def _twisted(change, **changes):
    """The first answer's list of candidates, changed, for `Message`s that ask which."""

    def twist(path, body, status, answer):
        if "Which?" in str(body) and status == 200 and "choices" in answer:
            change(answer["choices"][0])
        return status, answer

    with LocalServer({"top_k"}, distribution=lambda _: {"1": 0.8, "2": 0.1, "~": 0.1}) as server:
        server.twist = twist
        (scores,) = backend(server.base_url, api="chat", **changes).choice_logprobs([ASK], ["1", "2"])
    return scores


def _say(token, value):
    def change(choice):
        for row in choice["logprobs"]["content"][0]["top_logprobs"]:
            if row["token"] == token:
                row["logprob"] = value

    return change


@pytest.mark.parametrize("value", [NAN, None, 0.5, math.inf, "-0.1", True, [1]])
def test_a_choice_whose_value_is_no_log_probability_fails(value):
    """Failed answers are not stored, so a server that is healthy again is asked again."""
    scores = _twisted(_say("2", value))
    assert "not a number at or below 0" in scores.error and scores.logprobs == (None, None)
    assert read_choice(scores, temperature=1.0).state == "failed"


@pytest.mark.parametrize("value", [-9999.0, -math.inf, -1e30, -12345])
def test_impossible_is_a_value(value):
    scores = _twisted(_say("2", value))
    assert scores.logprobs == (pytest.approx(math.log(0.8)), -math.inf)
    assert read_choice(scores, temperature=1.0).value == 1.0


def test_rounding_above_nought_is_nought():
    scores = _twisted(lambda c: (_say("1", 1e-6)(c), _say("2", -50.0)(c), _say("~", -50.0)(c)))
    assert scores.logprobs == (0.0, -50.0)


def test_another_token_without_a_value_leaves_the_choices_but_bounds_nothing():
    assert _twisted(_say("~", NAN)).logprobs == (pytest.approx(math.log(0.8)), pytest.approx(math.log(0.1)))
    scores = _twisted(lambda c: (_say("~", None)(c), c["logprobs"]["content"][0]["top_logprobs"].pop(1)))
    assert scores.logprobs == (pytest.approx(math.log(0.8)), None) and scores.ceiling is None


@pytest.mark.parametrize(
    "logprobs",
    [None, {}, {"content": []}, {"content": None}, {"content": [{"token": "1", "logprob": -1}]}, []],
)
def test_an_answer_without_the_log_probabilities_asked_for_fails(logprobs):
    scores = _twisted(lambda choice: choice.update(logprobs=logprobs))
    assert scores.error == "the answer carries no log-probabilities"


def test_an_empty_answer_names_no_choice():
    scores = _twisted(lambda choice: choice.update(logprobs={"content": []}, message={"content": ""}))
    assert scores.error is None and read_choice(scores, temperature=1.0).state == "unparsed"


def test_an_echo_with_a_value_that_is_none_is_no_score():
    def twist(path, body, status, answer):
        if body.get("echo") and "3, 1, 2, 3" not in body["prompt"]:
            answer["choices"][0]["logprobs"]["token_logprobs"][-2] = NAN
        return status, answer

    with LocalServer({"top_k", "echo"}) as server:
        server.twist = twist
        (score,) = backend(server.base_url).sequence_logprobs([(Message("a ", chat=False), "xy")])
    assert score.error is not None and score.tokens == 0


# Usage.


@pytest.mark.parametrize(
    "usage, expected",
    [
        ({"prompt_tokens": 7, "completion_tokens": 2}, (7, 2, False)),
        ({"prompt_tokens": 7, "completion_tokens": 0}, (7, 3, True)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, (4, 3, True)),
        (None, (4, 3, True)),
        ({"prompt_tokens": None, "completion_tokens": 2}, (4, 2, True)),
        ({"prompt_tokens": -5, "completion_tokens": "many"}, (4, 3, True)),
        ({"prompt_tokens": 1e400, "completion_tokens": NAN}, (4, 3, True)),
        ([], (4, 3, True)),
    ],
)
def test_tokens_that_are_not_told_are_estimated_from_the_text(usage, expected):
    """14 bytes of prompt are 4 tokens, 12 of answer 3."""
    found = {"choices": [{"text": "twelve bytes"}], "usage": usage}
    answer = read_answer(found, "fourteen bytes")
    assert (answer.tokens_in, answer.tokens_out, answer.estimated) == expected


def test_an_empty_answer_of_no_tokens_is_told():
    found = {"choices": [{"text": ""}], "usage": {"prompt_tokens": 3, "completion_tokens": 0}}
    assert read_answer(found, "p").estimated is False


def test_more_cached_than_read_is_not_believed():
    usage = {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 50}}
    assert read_answer({"choices": [{"text": "1"}], "usage": usage}, "p").tokens_cached == 5


def test_reasoning_beside_the_answer_is_counted_too():
    message = {"content": "1", "reasoning_content": "x" * 400}
    assert read_answer({"choices": [{"message": message}]}, "p").tokens_out == 101
    assert [count_tokens(text) for text in ("", "a", "abcde", "中文字")] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "usage, estimated", [(None, True), ({"prompt_tokens": 9, "completion_tokens": 1}, False)]
)
def test_scores_say_whether_their_tokens_are_an_estimate(usage, estimated):
    def twist(path, body, status, answer):
        return status, answer | {"usage": usage} if "choices" in answer else answer

    with LocalServer({"top_k"}) as server:
        server.twist = twist
        engine = backend(server.base_url, api="chat")
        (scores,) = engine.choice_logprobs([ASK], ["1", "2"])
        (text,) = engine.generate([ASK], max_new_tokens=2, temperature=0.0, top_k=0, seeds=[0])
    assert scores.usage_estimated is text.usage_estimated is estimated
    assert scores.tokens_in == (count_tokens("Which?\n\nAnswer=") if estimated else 9)
