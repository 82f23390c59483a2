"""How text becomes the tokens of any tokenizer: chat templates, what stands in front, tokens in their place, ends.

Everything here takes a transformers tokenizer and nothing else of a model.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlaif.errors import UserError

logger = logging.getLogger(__name__)

PAD_CANDIDATES = ("<|endoftext|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<unk>")
# Templates that write today's date would make another prompt of the same text every day.
TEMPLATE_DATE = datetime(2025, 1, 1)
_CLOCK = re.compile(r"""\bstrftime_now\(\s*(['"])(.*?)\1\s*\)""")
_ANCHORS = ("\n", ".", "=")
_WORD = "a"
_PROBE = "What follows?"


# Chat templates.


def choose_template(tokenizer: Any, wanted: str | None, key: str) -> None:
    """Give `tokenizer` the one chat template to use: `wanted`, a name or a file, or the only or default one it has.

    Raises UserError, which names `key`, where there is no such template or none to prefer. A tokenizer without any
    stays without: `render_chat` has a plain format then.
    """
    own = tokenizer.chat_template
    named = own if isinstance(own, dict) else {}
    if wanted is None:
        if named and "default" not in named and len(named) > 1:
            raise UserError(
                f"the tokenizer has several chat templates and none is its default: write {key}=NAME with one of "
                f"{', '.join(sorted(named))}, or {key}=FILE"
            )
        if named:
            tokenizer.chat_template = named.get("default", next(iter(named.values())))
        return
    file = Path(wanted).expanduser()
    if wanted in named:
        tokenizer.chat_template = named[wanted]
    elif file.is_file():
        try:
            tokenizer.chat_template = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{key}={wanted} could not be read: {error}") from None
    else:
        known = f"one of {', '.join(sorted(named))}, or " if named else ""
        raise UserError(
            f"{key}={wanted} is no chat template of the tokenizer and no file: write {known}a file's path"
        )


def render_chat(tokenizer: Any, user: str) -> str:
    """`user` as the user's turn, up to where the model's turn begins.

    Without a chat template, as for base models: the text and an empty line. Content is handed over as a string and,
    to templates that lose it so, as a list of parts. The template's clock stands still at `TEMPLATE_DATE`.
    Raises UserError with the template's own words, and for a rendering that does not hold the text.
    """
    if tokenizer.chat_template is None:
        return f"{user}\n\n"
    why = "the text of the user's turn is not in what it renders"
    for content in (user, [{"type": "text", "text": user}]):
        try:
            text = _apply(tokenizer, content)
        except Exception as error:  # a template is a program: it may raise anything
            why = " ".join(str(error).split()) or type(error).__name__
            continue
        # A list of parts written out as it stands holds the text too.
        if user.strip() in text and not (content is not user and "'type': 'text'" in text):
            return text
    raise UserError(
        f"the model's chat template cannot be used: {why}; write model.chat_template=NAME|FILE for another one, or "
        "task.chat=false and a labeler without chat"
    )


def _apply(tokenizer: Any, content: Any, *, add_generation_prompt: bool = True) -> str:
    return _render(tokenizer, [{"role": "user", "content": content}], add_generation_prompt)


def _render(tokenizer: Any, turns: list[dict[str, Any]], add_generation_prompt: bool) -> str:
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
    own = tokenizer.chat_template
    if isinstance(own, str) and _CLOCK.search(own):
        # transformers hands no functions of ours to a template: the date is written into its text.
        options["chat_template"] = _CLOCK.sub(lambda call: repr(TEMPLATE_DATE.strftime(call[2])), own)
    return tokenizer.apply_chat_template(turns, **options)


def check_chat(tokenizer: Any) -> None:
    """Raises UserError for a template that cannot be used; says what is unusual about one that can."""
    text = render_chat(tokenizer, _PROBE)
    if tokenizer.chat_template is None:
        logger.warning("the tokenizer has no chat template: prompts are plain text and an empty line")
        return
    content: Any = _PROBE
    try:
        bare = _apply(tokenizer, content, add_generation_prompt=False)
    except Exception:
        return
    if bare == text:
        logger.warning("the chat template opens no turn for the model: what it writes goes on the user's")


# Tokens.


@lru_cache(maxsize=32)
def lead_ids(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer puts before a text: BOS, say; () for many. EOS or others behind it are left out."""
    plain, whole = tokenizer.encode(_WORD, add_special_tokens=False), tokenizer.encode(_WORD)
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start])
    return ()


@lru_cache(maxsize=32)
def _anchor(tokenizer: Any) -> str | None:
    """A text behind which words have the tokens that they have inside of a text; None where they always have.

    Tokenizers of sentencepiece's kind put a space before whatever they are given.
    """
    for anchor in _ANCHORS:
        before, both = _encode(tokenizer, anchor), _encode(tokenizer, anchor + _WORD)
        if both[: len(before)] == before:
            return None if both[len(before) :] == _encode(tokenizer, _WORD) else anchor
    return None


def _encode(tokenizer: Any, text: str, plain: bool = False) -> list[int]:
    more = {"split_special_tokens": True} if plain else {}
    return tokenizer.encode(text, add_special_tokens=False, **more)


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """A whole text as the tokenizer begins it; markers such as `<|im_end|>` count."""
    return [*lead_ids(tokenizer), *_encode(tokenizer, text)]


def chat_ids(tokenizer: Any, text: str) -> list[int]:
    """A rendered chat: what stands in front is the template's affair."""
    return _encode(tokenizer, text)


def inner_ids(tokenizer: Any, text: str, *, plain: bool = False) -> list[int]:
    """`text` as it stands behind other text, without what opens a text of its own.

    With `plain`, markers such as `<|im_end|>` are read as characters.
    """
    anchor = _anchor(tokenizer)
    if anchor is not None and text:
        before, both = _encode(tokenizer, anchor, plain), _encode(tokenizer, anchor + text, plain)
        if both[: len(before)] == before:
            return both[len(before) :]
    return _encode(tokenizer, text, plain)


# Ends and pads.


def end_ids(tokenizer: Any, stated: Iterable[int | None], rows: int) -> tuple[int, ...]:
    """The tokens that end a response, the training target first.

    The tokenizer's EOS, then what the model's configuration files state, then what the chat template closes a
    turn with. `rows` is the embedding's number of rows. Raises UserError where there is none.
    """
    ids = [tokenizer.eos_token_id, *stated, _turn_end(tokenizer)]
    found = tuple(dict.fromkeys(i for i in ids if i is not None and 0 <= i < rows))
    if not found:
        raise UserError(
            "neither the tokenizer nor the model's configuration names a token that ends a response: set eos_token in "
            "tokenizer_config.json, or eos_token_id in generation_config.json"
        )
    return found


def special_ids(tokenizer: Any) -> set[int]:
    """Tokens that are no text, whether they have a role or not."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def _turn_end(tokenizer: Any) -> int | None:
    """The special token right behind a turn of the assistant's in the chat template, if there is one."""
    if not isinstance(tokenizer.chat_template, str):
        return None
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": _PROBE}]
    try:
        text = _render(tokenizer, turns, add_generation_prompt=False)
    except Exception:  # said where the template is used
        return None
    _, _, behind = text.rpartition(_PROBE)
    following = _encode(tokenizer, behind.lstrip())[:1]
    return following[0] if following and following[0] in special_ids(tokenizer) else None


def check_vocabulary(tokenizer: Any, rows: int) -> None:
    """Raises UserError where the tokenizer has tokens, pads aside, for which the embedding has no row."""
    beyond = {
        token: index
        for token, index in tokenizer.get_vocab().items()
        if index >= rows and token != tokenizer.pad_token
    }
    if beyond:
        first = min(beyond, key=lambda token: beyond[token])
        raise UserError(
            f"the tokenizer's {first!r} has the id {beyond[first]}, but the model's embedding has {rows} rows "
            f"({len(beyond)} such tokens): save the model with its embedding resized to the tokenizer"
        )


def choose_pad(tokenizer: Any, ends: Collection[int], rows: int) -> int | None:
    """A token of the embedding that can pad since it ends no response; None where there is none.

    Training and sampling here need no pad. Elsewhere it finds the end of a text (transformers' sequence classifiers
    read their score before the first), and with pad = EOS it would hide that of every response.
    """
    known = tokenizer.get_vocab()
    names = (tokenizer.pad_token, *PAD_CANDIDATES, tokenizer.unk_token, tokenizer.bos_token)
    ids = [known.get(name) for name in names if name is not None] + sorted(special_ids(tokenizer))
    return next((i for i in ids if i is not None and i < rows and i not in ends), None)
