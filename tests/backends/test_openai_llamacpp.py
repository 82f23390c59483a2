"""A real server: llama.cpp with the embedded model, against the in-process engine with the same weights."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from openai_cases import backend

from rlaif.backends.base import Message
from rlaif.backends.openai.backend import ChatTemplate
from rlaif.backends.transformers import TransformersBackend
from rlaif.errors import UserError
from rlaif.labelers.readout.readouts import SCORES, read_choice, read_score
from rlaif.models.files.embedded import embedded_gguf
from rlaif.models.load import ModelSpec, load_model

QUESTIONS = (
    Message("Which number is larger, 1 or 2? Answer with the number only.", "Answer="),
    Message(
        "Text 1: The sky is blue.\nText 2: Grass sky the blue.\nWhich text is better, 1 or 2?", "Better text="
    ),
    Message("The capital of France is (1) Paris or (2) Rome. Say 1 or 2.", "Answer: "),
    Message("Items: 1, 2, 1, 2, 1,", " ", chat=False),
)
RATE = Message("Rate this summary from 1 to 10: `Return the sum of two numbers.`", "Score=")
DP = 0.05
TIMES = {"timeout_s": 60.0, "max_concurrency": 2}


@pytest.fixture(scope="module")
def address():
    command = [sys.executable, str(Path(__file__).with_name("llama_server.py")), str(embedded_gguf())]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdin and process.stdout
            line = next(line for line in process.stdout if line.startswith("address="))
            yield line.strip().removeprefix("address=") + "/v1"
            process.stdin.close()
            assert process.wait(20) == 0
        finally:
            process.kill()


@pytest.fixture(scope="module")
def model(request):
    """Converted from GGUF once, and kept in pytest's cache for the next time."""
    spec = ModelSpec("embedded", "embedded", None, "top:1", "float32", "cpu", trust_remote_code=False)
    return load_model(spec, request.config.cache.mkdir("embedded-model"))


@pytest.fixture(scope="module")
def here(model):
    return TransformersBackend({}, lambda: model, max_rows=8)


@pytest.fixture(scope="module")
def there(address, model):
    return backend(address, model="smollm2", template=ChatTemplate.of(model.tokenizer), **TIMES)


def test_what_the_server_can(there):
    assert there.describe().startswith("smollm2 at http://127.0.0.1:")
    can = there.capabilities
    assert (can.level, can.top, can.echo, can.tokenizes, can.decoding) == ("top_k", 20, False, True, True)


def _p(engine, messages, choices=("1", "2")):
    return [read_choice(s, temperature=1.0).value for s in engine.choice_logprobs(messages, choices)]


def test_choices_agree_with_the_engine_in_process(here, there):
    mine, theirs = _p(here, QUESTIONS), _p(there, QUESTIONS)
    assert theirs == pytest.approx(mine, abs=DP)
    # Mutations that the bound must not let through: swapped choices, and a question's neighbour.
    assert _p(there, QUESTIONS, ("2", "1")) != pytest.approx(mine, abs=DP)
    assert theirs[1:] + theirs[:1] != pytest.approx(mine, abs=DP)
    tokens = [s.tokens_in for s in here.choice_logprobs(QUESTIONS, ["1", "2"])]
    again = [s.tokens_in for s in there.choice_logprobs(QUESTIONS, ["1", "2"])]
    # Where the model begins with a space, the prompt is asked once more with it.
    assert all(theirs in (own, 2 * own + 1) for theirs, own in zip(again, tokens, strict=True))
    assert again[0] == tokens[0]


def test_a_space_and_then_the_number_is_the_number(here, there):
    message = Message("Items: 1, 2, 1, 2, 1,", "", chat=False)
    spaced, after = (there.choice_logprobs([message], [choice, "~"])[0].logprobs[0] for choice in (" ", "1"))
    space, bare, both = here.choice_logprobs([message], [" ", "1", " 1"])[0].logprobs
    assert math.exp(spaced) == pytest.approx(math.exp(space), abs=DP)
    assert math.exp(after) == pytest.approx(math.exp(bare) + math.exp(both), abs=DP)
    assert math.exp(both) - math.exp(bare) > 3 * DP, "the bare digit alone would be a tail"


def test_scores_agree_although_ten_is_two_tokens(here, there):
    mine, theirs = (engine.choice_logprobs([RATE], SCORES)[0] for engine in (here, there))
    assert mine.token_counts == theirs.token_counts == (1,) * 9 + (2,)
    assert math.exp(theirs.logprobs[-1]) == pytest.approx(math.exp(mine.logprobs[-1]), abs=DP)
    assert read_score(theirs).value == pytest.approx(read_score(mine).value, abs=9 * DP)


def test_greedy_text_begins_as_in_process(here, there):
    prompts = [Message("The capital of France is", chat=False), Message("Say hello in one word.")]
    given = {"max_new_tokens": 4, "temperature": 0.0, "top_k": 0, "seeds": [0, 0]}
    mine, theirs = here.generate(prompts, **given), there.generate(prompts, **given)
    assert [x.text for x in theirs] == [x.text for x in mine]
    assert [(x.tokens_in, x.error) for x in theirs] == [(x.tokens_in, None) for x in mine]


def test_sampled_text_follows_its_seed(there):
    prompts = [Message("Write a word.")] * 4
    given = {"max_new_tokens": 6, "temperature": 1.0, "top_k": 0}
    first = there.generate(prompts, seeds=[1, 2, 3, 4], **given)
    again = there.generate(prompts[::-1], seeds=[4, 3, 2, 1], **given)[::-1]
    assert [x.text for x in first] == [x.text for x in again]
    assert len({x.text for x in first}) > 1


def test_chat_asks_in_the_users_turn(here, address):
    """What the docstring says of it: the in-process engine agrees when its cue stands there too."""
    engine = backend(address, model="smollm2", api="chat", template=None, **TIMES)
    theirs = _p(engine, QUESTIONS[:2])
    mine = _p(here, [Message(f"{m.user}\n\n{m.assistant}") for m in QUESTIONS[:2]])
    assert theirs == pytest.approx(mine, abs=DP)


def test_likelihood_is_refused_with_what_to_write(there):
    with pytest.raises(UserError, match="labeler.readout.kind=choice"):
        there.sequence_logprobs([(QUESTIONS[0], "1")])


def test_a_prompt_beyond_the_context_fails_alone(there):
    long, fine = Message("word " * 2000), QUESTIONS[0]
    scores = there.choice_logprobs([long, fine], ["1", "2"])
    assert "exceeds the available context" in scores[0].error and scores[1].error is None


def test_another_name_is_refused(address):
    with pytest.raises(UserError, match="backend.name=other .* smollm2"):
        backend(address, model="other", **TIMES).choice_logprobs([QUESTIONS[0]], ["1", "2"])
