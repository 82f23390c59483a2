"""Prompt and response ids: limits, cue, EOS, chat, and the way back."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.data.encode import Cuts, Encoder
from rlaif.errors import UserError
from rlaif.models.tiny import tiny_tokenizer
from rlaif.records import Pair, Prompt

TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token_id


def _encoder(**changes):
    plain = Encoder(
        tokenizer=TOKENIZER,
        chat=False,
        prefix="In: ",
        suffix="\nTL;DR:",
        separator=" ",
        max_prompt_tokens=24,
        max_response_tokens=8,
        too_long="truncate",
        eos_id=EOS,
    )
    return replace(plain, **changes)


def test_a_prompt_is_prefix_text_suffix():
    ids = _encoder().prompt("a cat")
    assert TOKENIZER.decode(ids) == "In: a cat\nTL;DR:"
    assert len(ids) == 16, "one token a byte"


def test_a_chat_prompt_is_wrapped_and_opens_the_models_turn():
    encoder = _encoder(chat=True, max_prompt_tokens=90)
    text = TOKENIZER.decode(encoder.prompt("a cat"))
    assert text == "<|im_start|>user\nIn: a cat\nTL;DR:<|im_end|>\n<|im_start|>assistant\n"
    assert encoder.prompt("a cat").count(TOKENIZER.convert_tokens_to_ids("<|im_start|>")) == 2
    assert encoder.prompt("a cat") != _encoder().prompt("a cat")


@pytest.mark.parametrize("chat", [False, True])
def test_truncation_keeps_cue_and_limit(chat):
    encoder = _encoder(chat=chat, max_prompt_tokens=60)
    text = "".join(chr(97 + i % 26) for i in range(200))
    ids = encoder.prompt(text)
    assert len(ids) == 60, "the limit is used up"
    read = TOKENIZER.decode(ids)
    before = "<|im_start|>user\nIn: " if chat else "In: "
    after = "\nTL;DR:<|im_end|>\n<|im_start|>assistant\n" if chat else "\nTL;DR:"
    assert read.startswith(before)
    assert read.endswith(after)
    assert text.startswith(read[len(before) : len(read) - len(after)])


@settings(deadline=None)
@given(st.text(alphabet="aé中😀 \n", min_size=1, max_size=40), st.integers(16, 40))
def test_truncation_never_cuts_a_character(text, limit):
    encoder = _encoder(max_prompt_tokens=limit)
    ids = encoder.prompt(text)
    read = TOKENIZER.decode(ids)
    kept = read.removeprefix("In: ").removesuffix("\nTL;DR:")
    assert len(ids) <= limit
    assert read == f"In: {kept}\nTL;DR:"
    assert text.startswith(kept)
    # No more than one character's four bytes of the limit are lost.
    assert kept == text or len(ids) > limit - 4


def test_no_room_for_the_text_is_said():
    for limit in (4, 11):
        with pytest.raises(UserError, match=r"task\.max_prompt_tokens=.*higher limit"):
            _encoder(max_prompt_tokens=limit).prompt("a cat")
    assert len(_encoder(max_prompt_tokens=12).prompt("a cat")) == 12


def test_error_and_drop_leave_a_long_prompt_alone():
    for too_long in ("error", "drop"):
        assert len(_encoder(too_long=too_long).prompt("x" * 100)) == 111
    with pytest.raises(UserError, match=r"task\.too_long=cut.*error, truncate or drop"):
        _encoder(too_long="cut")


def _prompts():
    return [Prompt("short", "a cat"), Prompt("long", "x" * 14), Prompt("fits", "x" * 13)]


def test_fitting_drops_truncates_or_names_the_row():
    assert [p.id for p in _encoder(too_long="drop").fitting(_prompts())] == ["short", "fits"]
    assert [p.id for p in _encoder(too_long="truncate").fitting(_prompts())] == ["short", "long", "fits"]
    with pytest.raises(UserError) as error:
        _encoder(too_long="error").fitting(_prompts())
    for part in ("prompt long has", "25 tokens", "task.max_prompt_tokens=24", "task.too_long=truncate"):
        assert part in str(error.value)
    pairs = [Pair("q", "p", "x" * 99, "a", "b", "dataset")]
    assert _encoder(too_long="drop").fitting(pairs) == []
    with pytest.raises(UserError, match="prompt q has 110 tokens"):
        _encoder(too_long="error").fitting(pairs)


def test_a_response_ends_with_eos_unless_it_is_cut():
    encoder = _encoder()
    assert encoder.response("yes") == [*TOKENIZER.encode(" yes"), EOS]
    assert encoder.response("sixsix") == [*TOKENIZER.encode(" sixsix"), EOS], "eight tokens fit"
    cut = encoder.response("sixsix7")
    assert cut == TOKENIZER.encode(" sixsix7")
    assert len(cut) == 8


@settings(deadline=None)
@given(st.text(min_size=0, max_size=20))
def test_a_response_survives_the_way_there_and_back(text):
    encoder = _encoder(max_response_tokens=100)
    assert encoder.decode(encoder.response(text)) == text.strip()


def test_a_text_cannot_smuggle_in_an_end():
    encoder = _encoder(max_prompt_tokens=60, max_response_tokens=60)
    text = "yes<|im_end|><|im_start|>no"
    assert encoder.response(text).count(EOS) == 1
    assert encoder.decode(encoder.response(text)) == text
    assert EOS not in encoder.prompt(text)
    by_hand = _encoder(prefix="<|im_start|>user\n", suffix="<|im_end|>", max_prompt_tokens=60)
    assert by_hand.prompt(text).count(EOS) == by_hand.prompt("yes").count(EOS) == 1, (
        "the cue's own marker stays"
    )
    assert TOKENIZER.decode(by_hand.prompt(text)) == f"<|im_start|>user\n{text}<|im_end|>"
    assert EOS in TOKENIZER.encode(text), "left to itself the tokenizer reads an end there"


def test_decoding_leaves_out_special_tokens():
    encoder = _encoder()
    assert encoder.decode([*TOKENIZER.encode(" yes"), EOS]) == "yes"
    assert encoder.decode([EOS]) == ""
    assert encoder.decode([TOKENIZER.bos_token_id, *TOKENIZER.encode("yes")]) == "yes"


def _pair(name, a, b, prompt="a"):
    return Pair(name, name, prompt, a, b, "dataset")


LONG_PAIRS = [
    _pair("short", "x", "y"),
    _pair("one", "0123456789", "y"),
    _pair("both", "0123456789", "abcdefghij"),
    _pair("same", "0123456789", "0123456 and on"),
]


def test_responses_beyond_the_limit_are_cut_and_counted_and_so_are_pairs_that_are_then_equal():
    cuts = Cuts()
    encoder = _encoder(too_long_responses="truncate", places={"same": "f.jsonl, line 4"})
    assert [p.id for p in encoder.fitting(LONG_PAIRS, cuts=cuts)] == ["short", "one", "both", "same"]
    assert (cuts.rows, cuts.responses_cut, cuts.equal_cut, cuts.responses_dropped) == (4, 5, 1, 0)
    assert cuts.first == {"responses_cut": "one", "equal_cut": "f.jsonl, line 4"}
    assert (
        EOS not in encoder.response("0123456789")
        and encoder.response("0123456")[:7] == (encoder.response("0123456 and on")[:7])
    )


def test_responses_beyond_the_limit_are_dropped_or_named():
    cuts = Cuts()
    assert [p.id for p in _encoder(too_long_responses="drop").fitting(LONG_PAIRS, cuts=cuts)] == ["short"]
    assert cuts.responses_dropped == 3 and cuts.equal_cut == 0
    strict = _encoder(too_long_responses="error", places={"one": "f.jsonl, line 2"})
    with pytest.raises(UserError) as caught:
        strict.fitting(LONG_PAIRS, limit=1)
    for part in ("f.jsonl, line 2: response of id one", "12 tokens", "task.max_response_tokens=8"):
        assert part in str(caught.value)


def test_a_reference_is_a_response_only_where_it_is_trained_on():
    rows = [Prompt("p", "a", "0123456789"), Prompt("q", "a", "x")]
    encoder = _encoder(too_long_responses="drop")
    assert encoder.fitting(rows) == rows
    cuts = Cuts()
    assert encoder.fitting(rows, references=True, cuts=cuts) == rows[1:] and cuts.responses_dropped == 1
    cuts = Cuts()
    assert _encoder().fitting(rows, references=True, cuts=cuts) == rows and cuts.responses_cut == 1


def test_a_limit_looks_at_no_more_rows_than_it_needs():
    cuts = Cuts()
    assert [p.id for p in _encoder().fitting(LONG_PAIRS, limit=2, cuts=cuts)] == ["short", "one"]
    assert cuts.rows == 2
