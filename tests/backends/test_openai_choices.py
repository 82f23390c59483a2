"""How a server's probabilities are found out and read, at each level of what servers can do."""

from __future__ import annotations

import math
import random

import pytest
from local_server import LocalServer, answers_and_ends, ten_or_more
from openai_cases import backend

import rlaif.backends.openai.choices as module
from rlaif.backends.base import Message
from rlaif.backends.openai.backend import ChatTemplate
from rlaif.backends.openai.spellings import opens_with, says
from rlaif.errors import UserError
from rlaif.labelers.readout.readouts import SCORES, read_choice, read_score

ALL = {"token_ids", "top_k", "echo", "tokenize", "decoding", "sample"}
ASK = Message("Which?", "Answer=")
PLAIN = Message("Which? ", "Answer=", chat=False)
APIS = pytest.mark.parametrize("api", ["completions", "chat"])


def _logs(*shares: float) -> tuple[float, ...]:
    return tuple(pytest.approx(math.log(share)) for share in shares)


def _score(abilities, choices=("1", "2"), message=ASK, *, distribution=ten_or_more, longest=1, **changes):
    with LocalServer(abilities, distribution=distribution) as server:
        server.longest_chat = longest
        engine = backend(server.base_url, **changes)
        (scores,) = engine.choice_logprobs([message], choices)
        return scores, engine.capabilities, server


@APIS
def test_exact_token_ids(api):
    """The list of one that is asked for could not hold what comes back."""
    scores, can, server = _score(ALL, ("2", "~"), api=api, top=1)
    assert (can.level, can.tokenizes, can.decoding) == ("token_ids", True, True)
    assert scores.logprobs == _logs(0.2, 0.01)
    assert (scores.token_counts, scores.source, scores.ceiling) == ((1, 1), "logprob", None)
    path = "/v1/chat/completions" if api == "chat" else "/v1/completions"
    assert server.asked(path)[-1]["logprob_token_ids"] == [ord("2"), ord("~")]
    assert read_choice(scores, temperature=1.0).provenance == "logprob"


@APIS
@pytest.mark.parametrize("tokenize", [set(), {"tokenize"}])
def test_the_likeliest_tokens(api, tokenize):
    """A server that passes over `logprob_token_ids` is told from one that serves it."""
    scores, can, _ = _score({"top_k", "sample"} | tokenize, api=api)
    assert (can.level, can.top) == ("top_k", 20)
    assert scores.logprobs == _logs(0.5, 0.2)
    assert scores.ceiling == -math.inf, "nothing is left outside the list"
    assert read_choice(scores, temperature=1.0).value == pytest.approx(0.5 / 0.7)


def test_a_server_with_a_shorter_list():
    with LocalServer({"top_k"}) as server:
        server.longest_list = 5
        engine = backend(server.base_url)
        assert engine.choice_logprobs([ASK], ["1", "2"])[0].logprobs == _logs(0.5, 0.2)
        assert engine.capabilities.top == 5


SPELLED = {" 1": 0.5, "1": 0.1, "2": 0.2, "\n2": 0.05, "10": 0.06, "1.": 0.04, "1st": 0.03, "~": 0.02}


@pytest.mark.parametrize("choices", [("1", "2"), (" 1", "2")])
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_spellings_of_a_choice_count_together(api, choices):
    """ " 1" is the answer; the bare digits, which lean the other way, are its tail."""
    scores, _, _ = _score({"top_k"}, choices, api=api, distribution=lambda _: SPELLED)
    assert scores.logprobs == _logs(0.6, 0.25)
    reading = read_choice(scores, temperature=1.0)
    assert (reading.value, reading.mass) == (pytest.approx(0.6 / 0.85), pytest.approx(0.85))


def test_spellings_are_asked_for_by_their_ids():
    scores, can, server = _score(ALL, distribution=lambda _: {" 1": 0.6, "1": 0.1, "2": 0.3})
    assert can.level == "token_ids" and scores.logprobs == _logs(0.7, 0.3)
    assert server.asked("/v1/completions")[-1]["logprob_token_ids"] == [ord("1"), ord("2"), 1000]


def test_a_server_that_takes_few_ids_is_asked_for_the_bare_ones():
    def twist(path, body, status, answer):
        many = (
            len(body.get("logprob_token_ids", ())) > 3
            or len(body.get("logprob_token_ids", ())) == 3
            and ("3, 1, 2, 3" not in body["prompt"])
        )
        return (400, {"error": "too many ids"}) if many else (status, answer)

    with LocalServer(ALL, distribution=lambda _: {" 1": 0.1, "1": 0.6, "2": 0.3}) as server:
        server.twist = twist
        engine = backend(server.base_url)
        for _ in range(2):
            assert engine.choice_logprobs([ASK], ["1", "2"])[0].logprobs == _logs(0.6, 0.3)
        assert sum(len(body["logprob_token_ids"]) == 3 for body in server.asked("/v1/completions")) == 1


def test_mutation_the_bare_tokens_alone_are_a_tail(monkeypatch):
    monkeypatch.setattr(module, "says", lambda texts: lambda text, choice: text == choice)
    scores = _score({"top_k"}, distribution=lambda _: {" 1": 0.9, " 2": 0.05, "1": 0.002, "2": 0.004})[0]
    assert read_choice(scores, temperature=1.0).value == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "text, spelled",
    [
        *[(text, True) for text in ("1", " 1", "\n1", "**1", '"1', "(1", "\u25811")],
        *[(text, True) for text in ("1**", "1\n", " **1**", "[1]", "\u201c1\u201d", "`1`")],
        *[(text, False) for text in ("10", "1.", "1st", "1)", "11", "-1", "1:", "1/2", "$1", "", "one")],
    ],
)
def test_what_spells_a_choice(text, spelled):
    assert says(["1", "2"])(text, "1") is spelled


def test_choices_that_differ_in_their_spelling_alone_are_told_apart():
    scores, _, _ = _score({"top_k"}, ("1", " 1"), distribution=lambda _: SPELLED)
    assert scores.logprobs == _logs(0.1, 0.5)


def _after_markup(prompt: str) -> dict[str, float]:
    if prompt.endswith("**"):
        return {"1": 0.8, "2": 0.1, "Both": 0.1}
    return {"**": 0.9, "1": 0.02, "2": 0.05, "The": 0.03} if prompt.endswith("=") else {"\n": 1.0}


@APIS
def test_a_verdict_in_bold_is_read_where_it_is_said(api):
    scores, _, _ = _score({"top_k"}, api=api, distribution=_after_markup, longest=9)
    assert scores.logprobs == _logs(0.02 + 0.9 * 0.8, 0.05 + 0.9 * 0.1)


def _listing(prompt: str) -> dict[str, float]:
    """Begins a numbered list: "1. Response 1 is vague"."""
    for begun, token in (("1", "."), (".", " "), (" ", "R"), ("R", "e")):
        if prompt.endswith(begun):
            return {token: 1.0}
    return {"1": 0.9, "2": 0.1}


def test_a_list_that_begins_with_one_is_no_verdict_of_a_chat():
    scores, _, _ = _score({"top_k"}, api="chat", distribution=_listing, longest=9)
    assert scores.logprobs == (-math.inf, pytest.approx(math.log(0.1)))
    assert read_choice(scores, temperature=1.0, min_mass=0.5).state == "unparsed"


def test_mutation_one_token_alone_would_be_a_verdict(monkeypatch):
    monkeypatch.setattr(module, "_CHAT_TOKENS", 1)
    scores, _, _ = _score({"top_k"}, api="chat", distribution=_listing, longest=9)
    assert read_choice(scores, temperature=1.0, min_mass=0.5).value == pytest.approx(0.9)


def test_a_sentence_is_no_verdict_and_its_tail_is_told_as_one():
    """ "Response 2 is better": what falls on the digits is reported as it is, 0.1% of the next token."""
    scores, _, _ = _score(
        {"top_k"}, api="chat", distribution=lambda _: {"Response": 0.999, "1": 0.0006, "2": 0.0004}
    )
    assert read_choice(scores, temperature=1.0).mass == pytest.approx(0.001)


def test_more_than_all_probability_is_none():
    scores, _, _ = _score({"top_k"}, distribution=lambda _: {"1": 0.9, "2": 0.8})
    assert "add up to more than 1" in scores.error and scores.logprobs == (None, None)


@pytest.mark.parametrize(
    "top, named, ceiling, value",
    [
        (1, (0.5, None), 0.5, None),  # "2" may be as likely as "1"
        (2, (0.5, None), 0.25, (0.5 / 0.75 + 1) / 2),  # at most 0.25: p is in [2/3, 1]
        (3, (0.5, 0.2), 0.05, 0.5 / 0.7),
    ],
)
def test_missing_mass_is_bounded(top, named, ceiling, value):
    scores, can, _ = _score({"top_k"}, top=top)
    assert can.top == top
    assert scores.logprobs == tuple(p if p is None else pytest.approx(math.log(p)) for p in named)
    assert scores.ceiling == pytest.approx(math.log(ceiling))
    reading = read_choice(scores, temperature=1.0)
    assert reading.provenance == ("top_k" if None in named else "logprob")
    assert reading.value == (None if value is None else pytest.approx(value))
    if value is not None and None in named:
        least = named[0] / (named[0] + ceiling)
        assert least <= 0.5 / 0.7 <= 1.0 and least <= value <= 1.0


@APIS
def test_shares_of_samples(api):
    # Time enough for 200 requests on a busy machine: one that is repeated would be counted twice below.
    more = {"api": api, "samples": 200, "distribution": answers_and_ends, "timeout_s": 30.0}
    scores, can, server = _score({"sample"}, ("1", "2", "10"), **more)
    assert can.level == "frequency"
    shares = answers_and_ends("=")
    drawn = [random.Random(seed).choices([*shares], [*shares.values()])[0] for seed in range(200)]
    expected = [sum(text.strip() == choice for text in drawn) / 200 for choice in ("1", "2", "10")]
    assert [math.exp(value) for value in scores.logprobs] == pytest.approx(expected)
    assert 0.5 < expected[0] < 0.7 and scores.source == "frequency" and scores.token_counts == (1, 1, 1)
    bodies = server.asked("/v1/chat/completions" if api == "chat" else "/v1/completions")
    assert sorted(body["seed"] for body in bodies) == [*range(200)]


@pytest.mark.parametrize(
    "text, opens",
    [
        *[
            (text, True)
            for text in ("1", " 1", "**1**", "1\n\nIt", "1.", "(1)", '"1"', "1 is better", "1, because")
        ],
        *[
            (text, False)
            for text in (
                "10",
                "1.5",
                "1. First",
                "1) The",
                "1 or 2",
                "1st",
                "1, 2",
                "The 1",
                "1/2",
                "1: The",
                "**1.** It",
                "1 & 2",
                "1-2",
            )
        ],
    ],
)
def test_which_sampled_answers_open_with_a_choice(text, opens):
    assert opens_with(text, "1") is opens


def test_shares_read_as_frequencies_and_nothing_seen_is_unparsed():
    scores, _, _ = _score({"sample"}, samples=30, distribution=answers_and_ends)
    reading = read_choice(scores, temperature=1.0)
    assert (reading.state, reading.provenance) == ("ok", "frequency")
    scores, _, _ = _score({"sample"}, ("x", "y"), samples=5)
    reading = read_choice(scores, temperature=1.0)
    assert (reading.state, reading.provenance, reading.mass) == ("unparsed", "frequency", 0.0)


@pytest.mark.parametrize("abilities, samples", [(set(), 8), ({"sample"}, 0)])
def test_text_alone(abilities, samples):
    with LocalServer(abilities) as server:
        engine = backend(server.base_url, samples=samples)
        with pytest.raises(UserError, match="readout.kind=text"):
            engine.choice_logprobs([ASK], ["1", "2"])
        assert engine.capabilities.level == "text" and "only the text readout" in engine.describe()
        (answer,) = engine.generate([ASK], max_new_tokens=1, temperature=0.0, top_k=40, seeds=[0])
        assert (answer.text, answer.error) == ("1", None)


# Choices of several tokens.


@pytest.mark.parametrize(
    "abilities",
    [ALL, ALL - {"echo"}, {"top_k", "tokenize"}, {"top_k", "tokenize", "echo"}, {"top_k", "echo"}],
    ids=["echo", "chain", "chain of top-k", "echo and top-k", "echo of untold tokens"],
)
def test_ten_is_one_and_then_nought(abilities):
    scores, _, _ = _score(abilities, ("1", "10", "2"))
    assert scores.logprobs == _logs(0.5, 0.5 * 0.75, 0.2)
    assert scores.token_counts == (1, 2, 1)


@pytest.mark.parametrize("abilities", [ALL, {"top_k", "tokenize"}])
def test_expected_score_over_nested_choices(abilities):
    reading = read_score(_score(abilities, SCORES)[0])
    weights = [0.5 * 0.25, 0.2, 0.04, *([1e-9 if "token_ids" in abilities else 0.0] * 6), 0.5 * 0.75]
    expected = sum(rank * weight for rank, weight in enumerate(weights, start=1)) / sum(weights)
    assert reading.value == pytest.approx(expected, rel=1e-5)
    assert reading.provenance == ("score" if "token_ids" in abilities else "top_k")


def test_a_later_token_outside_the_list_is_not_told():
    scores, _, _ = _score({"top_k", "tokenize"}, ("12", "2"))
    assert scores.logprobs == (None, pytest.approx(math.log(0.2))) and scores.ceiling is None


def test_several_tokens_cannot_be_chained_in_chat():
    with pytest.raises(UserError, match="'10' is several tokens.*backend.api=completions"):
        _score({"top_k", "tokenize"}, SCORES, api="chat")
    scores, _, _ = _score({"top_k"}, ("1", "10"), api="chat", distribution=lambda _: {"1": 0.6, "10": 0.3})
    assert scores.logprobs == _logs(0.6, 0.3) and scores.token_counts == (1, 1)


def _split(prompt: str) -> dict[str, float]:
    return {"0": 0.9, "\n": 0.1} if prompt.endswith("1") else {"1": 0.94, "9": 0.04, "8": 0.02}


def test_ten_continues_the_spelling_that_is_certain():
    """Log-probability 0 is certainty, not a missing value: "10" continues "1", whatever would follow " 1"."""

    def certain(prompt: str) -> dict[str, float]:
        if prompt.endswith("1"):
            return {"0": 0.9, ".": 0.1} if prompt.endswith(" 1") else {"0": 0.25, ".": 0.75}
        return {"1": 1.0, " 1": 1e-12, "2": 1e-13}

    scores, _, _ = _score({"top_k"}, ("1", "10", "2"), distribution=certain)
    assert math.exp(scores.logprobs[1]) == pytest.approx(0.25)


def test_chat_does_not_say_how_it_splits_ten():
    """94% for "1" may all be for "10": the counts are empty, and no score may be read."""
    scores, _, _ = _score({"top_k"}, SCORES, api="chat", distribution=_split)
    assert scores.token_counts == () and scores.error is None


def test_ten_without_a_tokenizer_is_asked_for_where_a_text_can_be_continued():
    scores, _, _ = _score({"top_k"}, SCORES, distribution=_split)
    assert scores.token_counts == (1,) * 9 + (2,)
    assert (scores.logprobs[0], scores.logprobs[-1]) == _logs(0.94, 0.94 * 0.9)
    assert read_score(scores).value == pytest.approx(0.094 * 1 + 0.02 * 8 + 0.04 * 9 + 0.846 * 10)


def test_a_vocabulary_that_has_ten_does_not_split_it():
    """The same answer, from a server that goes on counting with one token: 1 is 1."""

    def whole(prompt: str) -> dict[str, float]:
        return {"10": 0.98, "1": 0.02} if "8, 9," in prompt else {"1": 0.94, "9": 0.04, "8": 0.02}

    scores, _, _ = _score({"top_k"}, SCORES, api="chat", distribution=whole)
    assert scores.token_counts == (1,) * 10
    assert read_score(scores).value == pytest.approx(0.94 * 1 + 0.02 * 8 + 0.04 * 9)


def test_where_nothing_begins_with_one_nothing_hides_in_it():
    scores, _, _ = _score({"top_k"}, SCORES, api="chat", distribution=lambda _: {"4": 0.9, "3": 0.1})
    assert scores.token_counts == (1,) * 10 and read_score(scores).value == pytest.approx(3.9)


# Sequences.


def test_sequences_by_echo():
    items = [(PLAIN, "12"), (ASK, "1"), (PLAIN, "~3.")]
    with LocalServer({"top_k", "echo"}) as server:
        results = backend(server.base_url).sequence_logprobs(items)
        for (message, text), got in zip(items, results, strict=True):
            wrap = "<user>Which?</user><model>Answer=" if message.chat else "Which? Answer="
            expected = sum(server.score(wrap + text[:n], piece) for n, piece in enumerate(text))
            assert (got.logprob, got.tokens, got.error) == (pytest.approx(expected), len(text), None)
            assert got.tokens_in == len(wrap + text)
        assert len({got.logprob for got in results}) == 3
        echoed = [body["prompt"] for body in server.asked("/v1/completions")]
    assert echoed.count("Which? Answer=") == 1, "a prompt is echoed once for all its continuations"


def test_a_token_over_the_boundary_is_an_error_of_its_own():
    with LocalServer({"top_k", "echo"}) as server:
        merged, fine = backend(server.base_url).sequence_logprobs(
            [(Message("a ", chat=False), "1x"), (Message("a", chat=False), "1x")]
        )
    assert "cannot be separated" in merged.error and fine.error is None and fine.tokens == 2


@pytest.mark.parametrize("abilities, api", [({"top_k"}, "completions"), (ALL, "chat")])
def test_no_likelihood_without_echo(abilities, api):
    with LocalServer(abilities) as server, pytest.raises(UserError, match="labeler.readout.kind=choice"):
        backend(server.base_url, api=api).sequence_logprobs([(ASK, "x")])


# Prompts, decoding, identity.


def test_a_server_that_goes_away_while_it_is_probed_is_not_filed_as_one_that_can_do_less():
    with LocalServer({"top_k", "sample"}) as server:
        server.faults["3, 1, 2, 3"] = [None, *[503] * 100]
        engine = backend(server.base_url, samples=4)
        with pytest.raises(UserError, match="no usable answer"):
            engine.choice_logprobs([ASK], ["1", "2"])
        assert engine.capabilities is None
        server.faults.clear()
        assert engine.choice_logprobs([ASK], ["1", "2"])[0].logprobs == _logs(0.5, 0.2)


def test_a_server_that_falls_over_a_field_can_do_less():
    with LocalServer({"top_k"}) as server:
        server.faults["3, 1, 2, 3"] = [None, *[500] * 4]  # a call and its three repeats, for the longest list
        engine = backend(server.base_url)
        engine.choice_logprobs([ASK], ["1", "2"])
        assert (engine.capabilities.level, engine.capabilities.top) == ("top_k", 5)


def test_the_probe_is_one_for_all_calls():
    with LocalServer(ALL) as server:
        engine = backend(server.base_url)
        assert server.requests == [] and engine.capabilities is None
        for _ in range(3):
            engine.choice_logprobs([ASK], ["1", "2"])
        probing = [body for _, body, _ in server.requests if "3, 1, 2, 3" in str(body.get("prompt"))]
        assert len(probing) == 4 and len(server.asked("/v1/completions")) == 3
        tokenized = [body["prompt"] for body in server.asked("/tokenize")]
        expected = 3 + 1 + 2 * 6
        assert len(tokenized) == expected, (
            "the probe's three, the anchor, and each choice once in each spelling"
        )


def test_prompts_as_each_api_takes_them():
    for api, message, path, field, sent in (
        ("completions", ASK, "/v1/completions", "prompt", "<user>Which?</user><model>Answer="),
        ("completions", PLAIN, "/v1/completions", "prompt", "Which? Answer="),
        ("chat", ASK, "/v1/chat/completions", "messages", [{"role": "user", "content": "Which?\n\nAnswer="}]),
        (
            "chat",
            Message("Which?"),
            "/v1/chat/completions",
            "messages",
            [{"role": "user", "content": "Which?"}],
        ),
    ):
        _, _, server = _score({"top_k"}, message=message, api=api)
        assert server.asked(path)[-1][field] == sent
    with pytest.raises(UserError, match="backend.api=completions"):
        _score({"top_k"}, message=PLAIN, api="chat")


def test_top_k_and_seeds_are_passed_on():
    def generate(server, **decoding):
        given = {"max_new_tokens": 3, "seeds": [7, 8], "temperature": 0.5, "top_k": 40} | decoding
        return backend(server.base_url).generate([ASK, PLAIN], **given)

    with LocalServer({"decoding", "sample"}) as server:
        generate(server)
        sent = server.asked("/v1/completions")
        assert sorted((b["seed"], b["prompt"]) for b in sent) == [
            (7, "<user>Which?</user><model>Answer="),
            (8, "Which? Answer="),
        ]
        assert {(b["top_k"], b["temperature"], b["max_tokens"], b["top_p"]) for b in sent} == {
            (40, 0.5, 3, 1.0)
        }
    with LocalServer({"sample"}) as server:
        with pytest.raises(UserError, match="labeler.top_k=0"):
            generate(server)
        answers = generate(server, top_k=0)
        assert "top_k" not in server.asked("/v1/completions")[-1]
        for answer, seed in zip(answers, (7, 8), strict=True):
            draw = random.Random(seed)
            text = ""
            while len(answer.text) > len(text):
                found = ten_or_more("=" + text)
                text += draw.choices([*found], [*found.values()])[0]
            assert answer.text == text and answer.tokens_out == 3


def test_a_prompt_that_is_too_long_fails_alone():
    long = Message("x" * 6000, chat=False)
    with LocalServer({"top_k"}) as server:
        engine = backend(server.base_url)
        scores = engine.choice_logprobs([ASK, long, ASK], ["1", "2"])
        texts = engine.generate([long, ASK], max_new_tokens=1, temperature=0.0, top_k=0, seeds=[0, 0])
    assert [score.error for score in scores] == [None, "HTTP 400: the prompt exceeds the context", None]
    assert scores[1].logprobs == (None, None) and scores[2].logprobs == _logs(0.5, 0.2)
    assert [text.error is None for text in texts] == [False, True]


def test_an_unknown_model_is_named_with_those_there():
    with LocalServer() as server, pytest.raises(UserError, match="backend.name=other.*toy-model"):
        backend(server.base_url, model="other").choice_logprobs([ASK], ["1", "2"])


def test_a_wrong_address_is_said():
    with LocalServer() as server, pytest.raises(UserError, match="it ends in /v1"):
        backend(server.base_url.removesuffix("/v1")).choice_logprobs([ASK], ["1", "2"])
    with pytest.raises(UserError, match="start the server"):
        backend(server.base_url).choice_logprobs([ASK], ["1", "2"])


def test_identity_is_the_model_and_not_its_place():
    here = backend("http://127.0.0.1:1/v1", api_key_env="TOY_KEY", max_concurrency=2).identity()
    assert here == backend("https://elsewhere.example/v1").identity()
    assert "127" not in str(here) and "TOY_KEY" not in str(here)
    others = [
        {"model": "other"},
        {"api": "chat"},
        {"top": 5},
        {"samples": 3},
        {"template": ChatTemplate(str, "another")},
    ]
    assert all(backend("http://127.0.0.1:1/v1", **change).identity() != here for change in others)


def test_a_template_whose_bos_the_server_adds_itself():
    class Tokenizer:
        bos_token, bos_token_id, chat_template = "<s>", 1, "..."

        def __init__(self, adds):
            self.adds = adds

        def __call__(self, text):
            return {"input_ids": [1, 5] if self.adds else [5]}

        def apply_chat_template(self, turns, tokenize, add_generation_prompt):
            assert (tokenize, add_generation_prompt) == (False, True)
            return f"<s>[{turns[0]['content']}]"

    assert ChatTemplate.of(Tokenizer(True)).render("hi") == "[hi]"
    assert ChatTemplate.of(Tokenizer(False)).render("hi") == "<s>[hi]"
