"""The verdict grammar: what is read as 1, as 2, and what is left unread."""

from __future__ import annotations

import pytest

from rlaif.labelers.readout.readouts import read_text
from rlaif.labelers.readout.verdict_text import verdict_of

FIRST = [
    "1",
    " 1",
    "1\n",
    "1.",
    "1. ",
    "**1**",
    "**1.**",
    "__1__",
    "`1`",
    '"1"',
    "'1'",
    "“1”",
    "(1)",
    "[1]",
    "[[1]]",
    "{1}",
    "\\boxed{1}",
    "<answer>1</answer>",
    "1!",
    "Response 1",
    "Response 1.",
    "response 1",
    "**Response 1**",
    "Summary 1",
    "Option 1",
    "Response #1",
    "The response 1",
    "Answer: 1",
    "Answer = 1",
    "Answer:1",
    "**Answer:** 1",
    "**Answer: 1**",
    "Final answer: 1",
    "The answer is 1",
    "The answer is 1.",
    "My answer is: 1",
    "The better response is 1",
    "The better response is Response 1.",
    "Preferred response: 1",
    "Preferred summary=1",
    "Preferred response=1",
    "Verdict: 1",
    "Verdict: (1)",
    "I prefer Response 1",
    "I would choose 1",
    "1 because it is right",
    "1, because it names the result",
    "1 - because it is right",
    "Response 1 is better",
    "Response 1 is better.",
    "Response 1 is the better one.",
    "Response 1 is better because it is shorter",
    "1 is better",
    "1</s>",
    "1<|im_end|>",
    "1\n\nIt names the result.",
    "1\nPreferred summary=2",
    "1\nResponse 2 is vague",
    "Response 1.\nIt is right.",
    "Answer: 1\nResponse 2 is vague",
    "Preferred summary number=1",
    "Preferred response number: 1",
    "Response number 1",
    "Response 1!",
    "1 since it is complete.",
]
SECOND = [
    "2",
    '"2" because it is right',
    "(2)",
    "Preferred response: 2",
    "2.",
    "**2**",
    "2\nPreferred summary=1",
    "Answer: 2.",
]
UNREAD = [
    "",
    "  ",
    "I cannot say.",
    "12",
    "10",
    "11",
    "1.5",
    "1,5",
    "1,000",
    "1.000",
    "1/2",
    "1-2",
    "1–2",
    "1:2",
    "1;2",
    "1 2",
    "1 1",
    "2 2",
    "1 or 2",
    "1 and 2",
    "1 & 2",
    "1, 2",
    "1+2",
    "1 vs 2",
    "1 vs 2: 2 wins",
    "1 versus 2",
    "1 > 2",
    "2 > 1",
    "1 < 2",
    "1 = 2",
    "1st",
    "2nd",
    "1st place: Response 2",
    "1)",
    "1) Response 1 is vague",
    "(1) Response 1 is vague",
    "1. Response 1 is vague",
    "1. Response 1 is vague and wrong. 2. Response 2 is right.",
    "1. It names the result.",
    "1.\nResponse 1 is vague",
    "1.\n2.",
    "1\n2",
    "1\n\n2",
    "1:",
    "1: vague",
    "1: Response 1 is vague; 2: fine",
    "1 - vague",
    "1 — Response 1",
    "Response 1 is vague",
    "Response 1:",
    "Response 1: vague",
    "Response 1 and Response 2 are equal",
    "Response 1 or 2",
    "Response 1 is better in style but wrong",
    "Response 1 is not better",
    "Response 1 is better than nothing",
    "Response 12",
    "Response 1\nIs vague.\nResponse 2\nIs right.",
    "**Response 1**\nIs vague",
    "# 1",
    "## Response 1\nvague",
    "Both, but the answer is 1",
    "0",
    "3",
    "-1",
    "+1",
    "$1",
    "1%",
    "1a",
    "1x",
    "1e5",
    "#1 of 2",
    "½",
    "１",
    "one",
    "The first",
    "A",
    "1?",
    "Answer: 1 or 2",
    "Answer: 12",
    "Answer: 1, 2",
    "Answer: 1/2",
    "Answer:",
    "Answer: neither",
    "The worse response is 1",
    "Worse response: 1",
    "Not 1",
    "1 is vague",
    "1 is worse",
    "1 is better than 2? No",
    "1 because 2 is worse",
    "1 because it is not 2",
    "1 because it is short, but the second is right",
    "1, but 2 is fine",
    "The choice is between 1 and 2",
    "The answer is 1 or 2",
    "I prefer neither",
    "1 ~ 2",
    "1 = better",
    "1 of 2",
    "1 of the two",
    "1 point",
    "2 points for Response 1",
    "2 responses are shown",
    "1 and only",
    "<think>1</think>2",
    '"1" or "2"',
    "(1) or (2)",
    "[1, 2]",
    "(1",
    "1. 2.",
    "1.2",
    "1..2",
    "1…",
    "1...",
    "Response 1.5",
    "1²",
    "1's better",
    "Score: 1",
    "Rating: 2/10",
    "2/10",
    "1 star",
    "1 out of 2",
    "Response no",
    "number 1 or 2",
    "Preferred response number=1 or 2",
    "Preferred response number=1,000",
    "Response number 12",
    "1.)",
    "1, 2 or both",
]


@pytest.mark.parametrize("text", FIRST)
def test_the_first_is_named(text):
    assert verdict_of(text, polarity="better", cut=False) == 1
    assert read_text(text).value == 1.0
    mirrored = text.translate(str.maketrans("12", "21"))
    assert verdict_of(mirrored, polarity="better", cut=False) == 2


@pytest.mark.parametrize("text", SECOND)
def test_the_second_is_named(text):
    assert read_text(text).value == 0.0


@pytest.mark.parametrize("text", UNREAD)
def test_what_is_in_doubt_is_unparsed_and_never_a_half(text):
    for cut in (False, True):
        reading = read_text(text, cut=cut)
        assert (reading.value, reading.state) == (None, "unparsed")


@pytest.mark.parametrize("text", ["1", "1.", "Response 1", "(1)", "**1"])
def test_an_answer_cut_by_its_length_may_be_the_beginning_of_something_else(text):
    assert read_text(text, cut=True).state == "unparsed"
    assert read_text(text, cut=False).value == 1.0


@pytest.mark.parametrize("text", ["Answer: 1", "1 because it is", "1\nIt is", "Response 1 is better"])
def test_a_verdict_that_is_whole_is_read_though_the_rest_is_cut(text):
    assert read_text(text, cut=True).value == 1.0


@pytest.mark.parametrize("text", ["Better response: 1", "I prefer 1", "Response 1 is better"])
def test_a_prompt_that_asks_for_the_worse_is_not_answered_with_the_better(text):
    assert read_text(text, polarity="worse").state == "unparsed"
    assert read_text(text, polarity="better").value == 1.0


@pytest.mark.parametrize("text", ["1", "Answer: 1", "Response 1."])
def test_a_bare_verdict_answers_either_question(text):
    assert read_text(text, polarity="worse").value == 1.0
