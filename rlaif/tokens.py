"""How text becomes tokens, for any tokenizer: chat templates, leading tokens, tokens in context, ends.

Everything here takes a transformers tokenizer and no other part of a model.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from rlaif.errors import UserError

logger = logging.getLogger(__name__)

PAD_CANDIDATES = ("<|endoftext|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<unk>")
# Templates that write today's date would make a different prompt of the same text every day.
TEMPLATE_DATE = datetime(2025, 1, 1)
_CLOCK = re.compile(r"""\bstrftime_now\(\s*(['"])(.*?)\1\s*\)""")
_ANCHORS = ("\n", ".", "=")
_WORD = "a"
_PROBE = "What follows?"
# Tokens that a model's embedding has no row for, by their ids.
_rowless: WeakKeyDictionary[Any, dict[int, str]] = WeakKeyDictionary()


# Chat templates.


def choose_template(tokenizer: Any, wanted: str | None, key: str) -> None:
    """Give `tokenizer` the one chat template to use: `wanted` (a name or a file), or its only or default one.

    Raises UserError, which names `key`, if there is no such template or no reason to prefer one. A tokenizer without
    any stays without: `render_chat` then uses a plain format.
    """
    named = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    if wanted is None:
        if named and "default" not in named and len(named) > 1:
            raise UserError(
                f"the tokenizer has several chat templates and none is the default: write {key}=NAME with one of "
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
            f"{key}={wanted} is neither a chat template of the tokenizer nor a file: write {known}a file's path"
        )


def render_chat(tokenizer: Any, user: str) -> str:
    """`user` as the user's turn, up to where the model's turn begins.

    Without a chat template, as in base models: the text and an empty line. Content is passed as a string or, to
    templates that would lose it, as a list of parts. The template's clock stands still at `TEMPLATE_DATE`.
    Raises UserError with the template's own error, and for a rendering that does not contain the text.
    """
    if tokenizer.chat_template is None:
        return f"{user}\n\n"
    why = "the text of the user's turn is not in what it renders"
    for content in (user, [{"type": "text", "text": user}]):
        try:
            text = _render(tokenizer, [{"role": "user", "content": content}], add_generation_prompt=True)
        except Exception as error:  # a template is a program: it may raise anything
            why = " ".join(str(error).split()) or type(error).__name__
            continue
        # A list of parts printed as it is contains the text too.
        if user.strip() in text and not (content is not user and "'type': 'text'" in text):
            return text
    raise UserError(
        f"the model's chat template cannot be used: {why}; write model.chat_template=NAME|FILE for another one, or "
        "task.chat=false and a labeler without chat"
    )


def _render(tokenizer: Any, turns: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
    own = tokenizer.chat_template
    if isinstance(own, str) and _CLOCK.search(own):
        # transformers passes no functions of ours to a template, so the date is written into its text.
        options["chat_template"] = _CLOCK.sub(lambda call: repr(TEMPLATE_DATE.strftime(call[2])), own)
    return tokenizer.apply_chat_template(turns, **options)


def check_chat(tokenizer: Any) -> None:
    """Raises UserError for a template that cannot be used; warns of what is unusual about one that can."""
    text = render_chat(tokenizer, _PROBE)
    if tokenizer.chat_template is None:
        logger.warning("the tokenizer has no chat template: prompts are plain text and an empty line")
        return
    try:
        bare = _render(tokenizer, [{"role": "user", "content": _PROBE}], add_generation_prompt=False)
    except Exception:
        return
    if bare == text:
        logger.warning("the chat template opens no turn for the model: its text continues the user's turn")


# Tokens.


@lru_cache(maxsize=32)
def lead_ids(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer puts before a text: BOS, say; () for many. EOS or other tokens after it are left out."""
    plain, whole = tokenizer.encode(_WORD, add_special_tokens=False), tokenizer.encode(_WORD)
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start])
    return ()


@lru_cache(maxsize=32)
def _anchor(tokenizer: Any) -> str | None:
    """A text after which words get the tokens that they have inside a text; None if they always do.

    Tokenizers like sentencepiece put a space before whatever they are given.
    """
    for anchor in _ANCHORS:
        before, both = _encode(tokenizer, anchor), _encode(tokenizer, anchor + _WORD)
        if both[: len(before)] == before:
            return None if both[len(before) :] == _encode(tokenizer, _WORD) else anchor
    return None


def _encode(tokenizer: Any, text: str, plain: bool = False) -> list[int]:
    more = {"split_special_tokens": True} if plain else {}
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, **more)
    absent = _rowless.get(tokenizer)
    if absent is not None and not absent.keys().isdisjoint(ids):
        token = next(absent[i] for i in ids if i in absent)
        raise UserError(
            f"a text holds {token!r}, which the tokenizer reads as one token, but the model's embedding has no row for "
            "it: remove it from the data"
        )
    return ids


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """A whole text, begun as the tokenizer begins one; markers such as `<|im_end|>` are special tokens."""
    return [*lead_ids(tokenizer), *_encode(tokenizer, text)]


def chat_ids(tokenizer: Any, text: str) -> list[int]:
    """A rendered chat: leading tokens are up to the template."""
    return _encode(tokenizer, text)


def inner_ids(tokenizer: Any, text: str, *, plain: bool = False) -> list[int]:
    """`text` as tokenised after other text; with `plain`, markers such as `<|im_end|>` are read as characters."""
    anchor = _anchor(tokenizer)
    if anchor is not None and text:
        before, both = _encode(tokenizer, anchor, plain), _encode(tokenizer, anchor + text, plain)
        if both[: len(before)] == before:
            return both[len(before) :]
    return _encode(tokenizer, text, plain)


# Ends and pads.


def end_ids(tokenizer: Any, stated: Iterable[int | None], rows: int) -> tuple[int, ...]:
    """The tokens that end a response, the training target first.

    The tokenizer's EOS, then those `stated` in the model's configuration files, then the one that closes a turn in
    the chat template. `rows` is the embedding's number of rows. Raises UserError if there is none.
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
    """Tokens that are not text, whether or not they have a role."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def _turn_end(tokenizer: Any) -> int | None:
    """The special token right after an assistant turn in the chat template, if there is one."""
    if not isinstance(tokenizer.chat_template, str):
        return None
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": _PROBE}]
    try:
        text = _render(tokenizer, turns, add_generation_prompt=False)
    except Exception:  # reported when the template is used
        return None
    following = _encode(tokenizer, text.rpartition(_PROBE)[2].lstrip())[:1]
    return following[0] if following and following[0] in special_ids(tokenizer) else None


def check_vocabulary(tokenizer: Any, rows: int) -> None:
    """Raises UserError if the tokenizer makes ordinary texts into tokens for which the embedding has no row.

    Others may lack one: a pad, and special tokens that no role and no chat template uses (an image's place, say). From
    here on a text that spells one of them out is refused.
    """
    pad, special = tokenizer.pad_token, special_ids(tokenizer)
    beyond = {index: token for token, index in tokenizer.get_vocab().items() if index >= rows}
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id, *lead_ids(tokenizer), *_template_ids(tokenizer)}
    needed = {i: t for i, t in beyond.items() if t != pad and (i in used or i not in special)}
    if needed:
        index = min(needed)
        raise UserError(
            f"the tokenizer's {needed[index]!r} has the id {index}, but the model's embedding has {rows} rows "
            f"({len(needed)} such tokens): save the model with its embedding resized to the tokenizer"
        )
    if beyond:
        _rowless[tokenizer] = beyond


def _template_ids(tokenizer: Any) -> list[int]:
    """The tokens of a rendered chat; none if its template cannot be used, which is reported when it is."""
    try:
        return _encode(tokenizer, render_chat(tokenizer, _PROBE))
    except UserError:
        return []


def choose_pad(tokenizer: Any, ends: Collection[int], rows: int) -> int | None:
    """A token of the embedding that can serve as pad because it ends no response; None if there is none.

    Training and sampling here need no pad. Elsewhere it marks the end of a text (transformers' sequence classifiers
    read their score before the first pad), and pad = EOS would hide the EOS of every response.
    """
    known = tokenizer.get_vocab()
    names = (tokenizer.pad_token, *PAD_CANDIDATES, tokenizer.unk_token, tokenizer.bos_token)
    ids = [known.get(name) for name in names if name is not None] + sorted(special_ids(tokenizer))
    return next((i for i in ids if i is not None and i < rows and i not in ends), None)
