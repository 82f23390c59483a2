"""Tokenizers of the kinds that people have, made in code."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from rlaif.models.tiny import BOS, CHAT_TEMPLATE, EOS, PAD


def byte_tokenizer(
    *, template: Any = CHAT_TEMPLATE, bos: bool = False, eos_behind: bool = False, **roles: Any
) -> Any:
    """Bytes and ChatML's markers; with `bos` begun by it as Llama 3 does, with `eos_behind` ended as T5 does."""
    vocabulary = {t: i for i, t in enumerate([PAD, BOS, EOS, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer, inner.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    inner.add_special_tokens([PAD, BOS, EOS])
    if bos or eos_behind:
        single = f"{BOS if bos else ''} $A {EOS if eos_behind else ''}".strip()
        inner.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[(BOS, 1), (EOS, 2)]
        )
    roles = roles or {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, **roles)
    if template is not None:
        fast.chat_template = template
    return fast


LETTERS = "▁0123456789=.,:?!()[]#'\"-/\nabcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def sentencepiece_tokenizer(template: str | None = None) -> Any:
    """Characters, with a space put before each text, as Llama 2 does it: `1` alone is two tokens."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{i:02X}>": i + 3 for i in range(256)}
    for letter in LETTERS:
        vocabulary.setdefault(letter, len(vocabulary))
    tokenizer = LlamaTokenizer(
        vocab=vocabulary, merges=[], unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = template
    return tokenizer


def metaspace_tokenizer() -> Any:
    """The same by a normaliser, without bytes to fall back on: a line's end is unknown to it."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for letter in LETTERS.replace("\n", ""):
        vocabulary.setdefault(letter, len(vocabulary))
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
