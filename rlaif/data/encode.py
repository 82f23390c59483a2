"""Text to token ids, the same way in every stage: prompts, responses, and what happens if they are too long."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rlaif.errors import UserError
from rlaif.records import Pair, Prompt
from rlaif.tokens import chat_ids, inner_ids, lead_ids, render_chat, text_ids

Row = TypeVar("Row", Prompt, Pair)

TOO_LONG = ("error", "truncate", "drop")


@dataclass
class Cuts:
    """What the limits did to the `rows` examined, as counts."""

    rows: int = 0
    prompts_cut: int = 0
    prompts_dropped: int = 0
    responses_cut: int = 0
    responses_dropped: int = 0
    equal_cut: int = 0
    first: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, place: str, count: int = 1) -> None:
        """Add `count` to the field `what`; `first` keeps the place of its first row."""
        if count:
            setattr(self, what, getattr(self, what) + count)
            self.first.setdefault(what, place)


@dataclass(frozen=True)
class Encoder:
    """Encodes prompts and responses for the policy and the reward model.

    A prompt is `prefix + text + suffix`, wrapped by the model's chat template if `chat`, else begun as the
    tokenizer begins a text (with BOS, say). A response is its text (after `separator`) and EOS. Prompt and response
    are tokenised separately, so that a response has the same ids whether it was sampled or read: those that it has
    after other text. Markers such as `<|im_end|>` inside a text are read as plain characters, except in a chat prompt,
    which is tokenised as its template renders it.

    `eos_id` ends the responses that are trained on; `eos_ids` are all tokens that end one (only `eos_id` if empty).
    `too_long` applies to prompts beyond `max_prompt_tokens`, `too_long_responses` to references and responses of
    pairs beyond `max_response_tokens`; `places` give a row's place in its file by its id.
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
    too_long_responses: str = "truncate"
    places: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for rule in (self.too_long, self.too_long_responses):
            if rule not in TOO_LONG:
                raise UserError(f"task.too_long={rule} is not known: write error, truncate or drop")

    def raw_prompt(self, text: str) -> list[int]:
        """The prompt's ids at full length."""
        full = self.prefix + text + self.suffix
        if self.chat:
            return chat_ids(self.tokenizer, render_chat(self.tokenizer, full))
        if any(marker in text for marker in self.tokenizer.all_special_tokens):
            return self._with_plain(text)
        return text_ids(self.tokenizer, full)

    def _with_plain(self, text: str) -> list[int]:
        """Prefix and suffix may hold markers on purpose, the text may not."""
        if self.prefix:
            start = [*text_ids(self.tokenizer, self.prefix), *self._plain(text)]
        else:
            plain = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
            start = [*lead_ids(self.tokenizer), *plain]
        return start + inner_ids(self.tokenizer, self.suffix)

    def _plain(self, text: str) -> list[int]:
        return inner_ids(self.tokenizer, text, plain=True)

    def prompt(self, text: str) -> list[int]:
        """The prompt's ids; under `truncate` the text itself is cut at its end, never the cue after it.

        Raises UserError if what surrounds the text leaves no room for any of it.
        """
        ids = self.raw_prompt(text)
        if len(ids) <= self.max_prompt_tokens or self.too_long != "truncate":
            return ids
        words = self._plain(text)
        excess, kept = len(ids) - self.max_prompt_tokens, words
        while excess > 0:
            kept = kept[: max(len(kept) - excess, 0)]
            # A cut inside a character decodes to a replacement character, which is not in the text.
            start = self.tokenizer.decode(kept).rstrip("\ufffd")
            if not start:
                raise UserError(
                    f"task.max_prompt_tokens={self.max_prompt_tokens} leaves no room for the text between "
                    "task.prefix and task.suffix: write a higher limit"
                )
            ids = self.raw_prompt(start)
            excess = len(ids) - self.max_prompt_tokens
        return ids

    def raw_response(self, text: str) -> list[int]:
        """The response's ids with EOS, at full length."""
        return [*self._plain(self.separator + text), self.eos_id]

    def response(self, text: str) -> list[int]:
        """The response's ids with EOS, cut to the limit (a cut response keeps no EOS)."""
        return self.raw_response(text)[: self.max_response_tokens]

    def decode(self, ids: Iterable[int]) -> str:
        """A response's text, without EOS, separator and surrounding space."""
        ends = self.eos_ids or (self.eos_id,)
        return self.tokenizer.decode([i for i in ids if i not in ends], skip_special_tokens=True).strip()

    def fitting(
        self,
        rows: Iterable[Row],
        *,
        references: bool = False,
        limit: int | None = None,
        cuts: Cuts | None = None,
    ) -> list[Row]:
        """The first `limit` rows that fit: their prompt, both responses of a pair and, with `references`, those.

        Pairs whose responses are equal once cut are kept, since a labeler reads them in full, and counted: no reward
        model can tell them apart. `cuts` counts what was cut or left out. Raises UserError for the first row that
        does not fit under `error`.
        """
        kept: list[Row] = []
        cuts, strict = cuts or Cuts(), "error" in (self.too_long, self.too_long_responses)
        for row in rows:
            full = limit is not None and len(kept) >= limit
            if full and not strict:
                break
            # Under `error` a row that does not fit is reported, whether or not it would be used.
            seen = Cuts() if full else cuts
            seen.rows += 1
            if self._prompt_fits(row, seen) and self._responses_fit(row, references, seen) and not full:
                kept.append(row)
        return kept

    def place(self, row: Prompt | Pair) -> str:
        """A row's file and place in it, if known, else its id."""
        return self.places.get(row.id, row.id)

    def _named(self, row: Prompt | Pair, what: str) -> str:
        place = self.places.get(row.id)
        return f"{what} {row.id}" if place is None else f"{place}: {what} of id {row.id}"

    def _prompt_fits(self, row: Prompt | Pair, cuts: Cuts) -> bool:
        length = len(self.raw_prompt(row.prompt))
        if length <= self.max_prompt_tokens:
            return True
        if self.too_long == "error":
            raise UserError(
                f"{self._named(row, 'prompt')} has {length} tokens, more than task.max_prompt_tokens="
                f"{self.max_prompt_tokens}: write task.too_long=truncate or drop, or a higher limit"
            )
        cuts.add("prompts_cut" if self.too_long == "truncate" else "prompts_dropped", self.place(row))
        return self.too_long == "truncate"

    def _responses_fit(self, row: Prompt | Pair, references: bool, cuts: Cuts) -> bool:
        if isinstance(row, Pair):
            texts = [row.response_a, row.response_b]
        else:
            texts = [row.reference] if references and row.reference else []
        ids = [self.raw_response(text) for text in texts]
        longest, limit = max(map(len, ids), default=0), self.max_response_tokens
        if longest <= limit:
            return True
        if self.too_long_responses == "error":
            what = "response" if isinstance(row, Pair) else "reference"
            raise UserError(
                f"{self._named(row, what)} has {longest} tokens with its end, more than "
                f"task.max_response_tokens={limit}: write task.too_long=truncate or drop, or a higher limit"
            )
        if self.too_long_responses == "drop":
            cuts.add("responses_dropped", self.place(row))
            return False
        if len(ids) == 2 and ids[0][:limit] == ids[1][:limit]:
            cuts.add("equal_cut", self.place(row))
        cuts.add("responses_cut", self.place(row), sum(len(one) > limit for one in ids))
        return True
