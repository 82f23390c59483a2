"""Text to token ids, the same way in every stage: prompt, response, and what happens when they are too long."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from rlaif.errors import UserError
from rlaif.records import Pair, Prompt
from rlaif.tokens import chat_ids, inner_ids, lead_ids, render_chat, text_ids

Row = TypeVar("Row", Prompt, Pair)


@dataclass(frozen=True)
class Encoder:
    """Encodes prompts and responses for the policy and the reward model.

    A prompt is `prefix + text + suffix`, wrapped by the model's chat template if `chat`, else begun as the
    tokenizer begins a text (with BOS, say). A response is its text (after `separator`) and EOS. Prompt and response
    are tokenised apart, so that a response has the same ids whether it was sampled or read: those that it has behind
    other text. Markers such as `<|im_end|>` inside a text are read as plain characters, except in a chat prompt,
    which is tokenised as its template renders it.

    `eos_id` ends the responses that are trained on; `eos_ids` are all tokens that end one (only `eos_id` if empty).
    """

    tokenizer: Any
    chat: bool
    prefix: str
    suffix: str
    separator: str
    max_prompt_tokens: int
    max_response_tokens: int
    too_long: str
    eos_id: int
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.too_long not in ("error", "truncate", "drop"):
            raise UserError(f"task.too_long={self.too_long} is not known: write error, truncate or drop")

    def raw_prompt(self, text: str) -> list[int]:
        """The prompt's ids, however long."""
        full = self.prefix + text + self.suffix
        if self.chat:
            return chat_ids(self.tokenizer, render_chat(self.tokenizer, full))
        if any(marker in text for marker in self.tokenizer.all_special_tokens):
            return self._with_plain(text)
        return text_ids(self.tokenizer, full)

    def _with_plain(self, text: str) -> list[int]:
        """Prefix and suffix may hold markers on purpose, the text may not."""
        first = text_ids(self.tokenizer, self.prefix) if self.prefix else list(lead_ids(self.tokenizer))
        middle = self._plain(text) if self.prefix else self._opening(text)
        return [*first, *middle, *inner_ids(self.tokenizer, self.suffix)]

    def _plain(self, text: str) -> list[int]:
        return inner_ids(self.tokenizer, text, plain=True)

    def _opening(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def prompt(self, text: str) -> list[int]:
        """The prompt's ids; under `truncate` the middle text loses its end, never the cue behind it.

        Raises UserError where what stands around the text leaves no room for any of it.
        """
        ids = self.raw_prompt(text)
        if len(ids) <= self.max_prompt_tokens or self.too_long != "truncate":
            return ids
        words = self._plain(text)
        excess, kept = len(ids) - self.max_prompt_tokens, words
        while excess > 0:
            kept = kept[: max(len(kept) - excess, 0)]
            # A cut inside a character decodes to a replacement character, which stands nowhere in the text.
            start = self.tokenizer.decode(kept).rstrip("\ufffd")
            if not start:
                raise UserError(
                    f"task.max_prompt_tokens={self.max_prompt_tokens} leaves no room for the text between "
                    "task.prefix and task.suffix: write a higher limit"
                )
            ids = self.raw_prompt(start)
            excess = len(ids) - self.max_prompt_tokens
        return ids

    def response(self, text: str) -> list[int]:
        """The response's ids with EOS, cut to the limit (a cut response keeps no EOS)."""
        ids = [*self._plain(self.separator + text), self.eos_id]
        return ids[: self.max_response_tokens]

    def decode(self, ids: Iterable[int]) -> str:
        """A response's text: without EOS, separator and surrounding space."""
        ends = self.eos_ids or (self.eos_id,)
        return self.tokenizer.decode([i for i in ids if i not in ends], skip_special_tokens=True).strip()

    def fitting(self, rows: Iterable[Row]) -> list[Row]:
        """The rows whose prompt fits. Raises UserError for the first that does not under `error`."""
        kept = []
        for row in rows:
            length = len(self.raw_prompt(row.prompt)) if self.too_long != "truncate" else 0
            if length <= self.max_prompt_tokens:
                kept.append(row)
            elif self.too_long == "error":
                raise UserError(
                    f"prompt {row.id} has {length} tokens, more than task.max_prompt_tokens={self.max_prompt_tokens}: "
                    "write task.too_long=truncate or drop, or a higher limit"
                )
        return kept
