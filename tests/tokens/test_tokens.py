"""Text to tokens against the tokenizers' own encodings of whole texts; templates, ends and pads."""

from __future__ import annotations

import pytest
from tokenizers_of_kinds import byte_tokenizer, metaspace_tokenizer, sentencepiece_tokenizer

from rlaif.data.encode import Encoder
from rlaif.errors import UserError
from rlaif.models.tiny import BOS, CHAT_TEMPLATE, EOS, PAD, tiny_tokenizer
from rlaif.tokens import (
    chat_ids,
    check_chat,
    check_vocabulary,
    choose_pad,
    choose_template,
    end_ids,
    inner_ids,
    lead_ids,
    render_chat,
    text_ids,
)

PARTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}{{ part['text'] }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KINDS = {
    "bytes": byte_tokenizer,
    "bytes with bos": lambda: byte_tokenizer(bos=True),
    "bytes with bos and eos": lambda: byte_tokenizer(bos=True, eos_behind=True),
    "sentencepiece": sentencepiece_tokenizer,
    "metaspace": metaspace_tokenizer,
}


def _encoder(tokenizer, **changes):
    words = {"chat": False, "prefix": "", "suffix": "", "separator": "", "too_long": "error"}
    limits = {"max_prompt_tokens": 99, "max_response_tokens": 50}
    return Encoder(tokenizer, eos_id=tokenizer.eos_token_id, **(words | limits | changes))


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_prompt_begins_as_the_tokenizer_begins_a_text(kind) -> None:
    tokenizer = KINDS[kind]()
    expected = tokenizer("a question").input_ids
    if "eos" in kind:
        assert expected.pop() == tokenizer.eos_token_id, "what comes behind a text is no part of a prompt"
    assert _encoder(tokenizer).prompt("a question") == text_ids(tokenizer, "a question") == expected
    assert list(lead_ids(tokenizer)) == ([1] if "bos" in kind else [])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("separator", ["", " "])
def test_a_response_has_the_tokens_that_it_has_behind_its_prompt(kind, separator) -> None:
    """The oracle is the whole text, tokenised at once."""
    tokenizer = KINDS[kind]()
    encoder = _encoder(tokenizer, separator=separator, suffix=":")
    prompt, response = encoder.prompt("a question"), encoder.response("Name it")
    whole = tokenizer.encode(f"a question:{separator}Name it", add_special_tokens=False)
    assert prompt[len(lead_ids(tokenizer)) :] + response == [*whole, tokenizer.eos_token_id]
    assert encoder.decode(response) == "Name it"


@pytest.mark.parametrize("kind", ["sentencepiece", "metaspace"])
def test_a_space_that_a_tokenizer_puts_before_texts_is_not_put_into_them(kind) -> None:
    tokenizer = KINDS[kind]()
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("1", add_special_tokens=False)) == ["▁", "1"]
    assert tokenizer.convert_ids_to_tokens(inner_ids(tokenizer, "1")) == ["1"]
    assert tokenizer.convert_ids_to_tokens(inner_ids(tokenizer, " 1")) == ["▁", "1"]


def test_markers_in_a_text_are_characters_also_behind_bos() -> None:
    tokenizer = byte_tokenizer(bos=True)
    ids = _encoder(tokenizer, prefix="In: ", suffix=f"{EOS}").prompt(f"a {EOS} b")
    assert ids[0] == 1 and ids[-1] == 2 and ids.count(2) == 1, (
        "the suffix's marker counts, the text's does not"
    )
    assert tokenizer.decode(ids[1:-1]) == f"In: a {EOS} b"


def test_a_chat_begins_as_its_template_says_and_only_so() -> None:
    tokenizer = byte_tokenizer(bos=True)
    assert _encoder(tokenizer, chat=True).prompt("hi") == tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_dict=False
    )
    assert _encoder(tokenizer, chat=True).prompt("hi").count(1) == 2, "one for each turn, none before"


def test_a_template_for_parts_gets_parts() -> None:
    tokenizer = byte_tokenizer(template=PARTS)
    assert render_chat(tokenizer, "What is it?") == render_chat(tiny_tokenizer(), "What is it?")


@pytest.mark.parametrize(
    "template, words",
    [
        ("{{ raise_exception('System role required') }}", "System role required"),
        ("{% for m in messages %}{{ m['content'] }}{% endfo %}", "endfo"),
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}", "not in what it renders"),
        ("{{ messages[7]['content'] }}", "cannot be used"),
        ("{{ messages | tojson | upper }}", "not in what it renders"),
    ],
)
def test_a_template_that_loses_the_text_is_refused(template, words) -> None:
    with pytest.raises(UserError, match=words) as caught:
        check_chat(byte_tokenizer(template=template))
    assert "model.chat_template=NAME|FILE" in str(caught.value) and "\n" not in str(caught.value)


def test_a_template_that_writes_a_list_out_is_not_taken_for_one_of_parts() -> None:
    template = (
        "{% for m in messages %}{% if m['content'] is not string %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    with pytest.raises(UserError, match="not in what it renders"):
        render_chat(byte_tokenizer(template=template), "What is it?")


def test_base_models_have_a_plain_format_and_it_is_said(caplog) -> None:
    tokenizer = byte_tokenizer(template=None)
    assert render_chat(tokenizer, "What is it?") == "What is it?\n\n"
    check_chat(tokenizer)
    assert "no chat template" in caplog.text


def test_a_template_that_opens_no_turn_is_said(caplog) -> None:
    check_chat(byte_tokenizer(template="{% for m in messages %}{{ m['content'] }}\n{% endfor %}"))
    assert "opens no turn for the model" in caplog.text
    caplog.clear()
    check_chat(byte_tokenizer())
    assert not caplog.text


def test_a_templates_clock_stands_still() -> None:
    template = "{{ strftime_now('%d %b %Y %H:%M:%S') }} " + CHAT_TEMPLATE
    assert render_chat(byte_tokenizer(template=template), "hi").startswith(
        "01 Jan 2025 00:00:00 <|im_start|>user"
    )


def test_one_of_several_templates(tmp_path) -> None:
    several = {"rag": "R{{ messages[0]['content'] }}", "tool_use": "T{{ messages[0]['content'] }}"}
    with pytest.raises(UserError, match="backend.chat_template=NAME with one of rag, tool_use"):
        choose_template(byte_tokenizer(template=several), None, "backend.chat_template")
    (tmp_path / "own.jinja").write_text("O{{ messages[0]['content'] }}")
    for wanted, expected in (("rag", "Rhi"), ("tool_use", "Thi"), (str(tmp_path / "own.jinja"), "Ohi")):
        tokenizer = byte_tokenizer(template=several)
        choose_template(tokenizer, wanted, "model.chat_template")
        assert render_chat(tokenizer, "hi") == expected
    for given in (
        {"default": "D{{ messages[0]['content'] }}", **several},
        {"only": "D{{ messages[0]['content'] }}"},
    ):
        tokenizer = byte_tokenizer(template=given)
        choose_template(tokenizer, None, "model.chat_template")
        assert render_chat(tokenizer, "hi") == "Dhi"
    with pytest.raises(
        UserError, match="model.chat_template=nothing is neither a chat template .* nor a file"
    ):
        choose_template(byte_tokenizer(), "nothing", "model.chat_template")


def test_ends_are_all_that_are_stated_the_tokenizers_first() -> None:
    assert end_ids(byte_tokenizer(), [0, None, 2], 259) == (2, 0)
    assert end_ids(byte_tokenizer(bos_token=BOS), [0], 259) == (0, 2), (
        "no EOS of its own: the first stated one"
    )
    base = byte_tokenizer(eos_token=PAD)
    assert end_ids(base, [], 259) == (0, 2), "its chat template closes a turn with another token"
    assert end_ids(byte_tokenizer(template=None, eos_token=PAD), [999, -1], 259) == (0,)
    with pytest.raises(UserError, match="names a token that ends a response"):
        end_ids(byte_tokenizer(template=None, bos_token=BOS), [None], 259)


def test_a_pad_ends_no_response() -> None:
    assert choose_pad(byte_tokenizer(), (2,), 259) == 0
    assert choose_pad(byte_tokenizer(), (2, 0), 259) == 1
    assert choose_pad(byte_tokenizer(template=None, eos_token=PAD, pad_token=PAD), (0,), 1) is None
    own = byte_tokenizer(eos_token=EOS)
    own.add_special_tokens({"pad_token": "[MINE]"})
    assert own.pad_token_id == 259 and choose_pad(own, (2,), 259) == 0, "beyond the embedding"
    assert choose_pad(own, (2,), 300) == 259
    check_vocabulary(own, 259)


def test_tokens_without_a_row_of_the_embedding_are_refused() -> None:
    """A template's, a role's, and words of ordinary text."""
    thinking = byte_tokenizer(template=CHAT_TEMPLATE.replace("assistant\n", "assistant\n<think></think>"))
    thinking.add_tokens(["<think>", "</think>"], special_tokens=True)
    ending = byte_tokenizer(eos_token="<end>")
    words = byte_tokenizer()
    words.add_tokens(["word"])
    for tokenizer, token in ((thinking, "<think>"), (ending, "<end>"), (words, "word")):
        count = len(tokenizer) - 259
        with pytest.raises(
            UserError, match=rf"'{token}' has the id 259, .* 259 rows \({count} such tokens\)"
        ):
            check_vocabulary(tokenizer, 259)
        check_vocabulary(tokenizer, 261)


def test_a_special_token_that_nothing_uses_needs_no_row_until_a_text_spells_it() -> None:
    """As in Gemma 3's small models, whose tokenizer has an image's place behind the last row."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    check_vocabulary(tokenizer, 259)
    assert text_ids(tokenizer, "an <imag") == [*inner_ids(byte_tokenizer(), "an <imag")]
    for encode in (text_ids, chat_ids, inner_ids):
        with pytest.raises(UserError, match="a text holds '<image>'.*no row for it"):
            encode(tokenizer, "an <image> here")
    assert inner_ids(tokenizer, "an <image> here", plain=True) == inner_ids(
        byte_tokenizer(), "an <image> here"
    )
    check_vocabulary(whole := byte_tokenizer(), 259)
    assert text_ids(whole, "an <image>"), "only where there is such a token"
