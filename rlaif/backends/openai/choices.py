"""The choices of a readout as a server's log-probabilities: one token or several, in all their spellings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import itemgetter
from typing import Any

from rlaif.backends.base import ChoiceScores
from rlaif.backends.openai.answers import Answer, Candidate
from rlaif.backends.openai.capabilities import NO_LIMITS, Capabilities
from rlaif.backends.openai.echo import after, echo, spent
from rlaif.backends.openai.http import Refused, Unavailable, gather, gather_what_is_done
from rlaif.backends.openai.spellings import (
    USUAL,
    Unreadable,
    bare,
    goes_on,
    is_markup,
    named,
    opens_with,
    says,
    total,
    unnamed,
)
from rlaif.backends.openai.wire import Server
from rlaif.errors import UserError

_ANCHOR = "="  # some tokenizers put a space before the first word of a text, but not after this
_COUNT_ON = "Go on with the next number and nothing else: 6, 7, 8, 9,"  # shows whether "10" is one token
_ANSWER = 1e-3  # a smaller share of the next token is not looked into
_MARKUP = 0.1  # from this share of the next token on, the answer is read after the markup
_CHAT_TOKENS = 4  # of a chat answer: show whether "1" is all or begins a list, and what follows a "**"
_FREQUENCY_TOKENS = 3  # besides those of the choice: tell "10." and "1 or 2" from "1"


@dataclass(frozen=True)
class _Choice:
    """A choice and its tokens as (id, text); if the server does not report them, one token with id None.

    `spellings` are ids of other single tokens that say the same.
    """

    text: str
    tokens: tuple[tuple[int | None, str], ...]
    spellings: tuple[int, ...] = ()

    @property
    def untold(self) -> bool:
        """Whether it may be several tokens for all we know."""
        return self.tokens[0][0] is None and len(self.text) > 1


class ChoiceReader:
    """Reads choices from `server`, which can do what `can` says.

    `samples` answers are drawn if it gives no log-probabilities.
    """

    def __init__(self, server: Server, can: Capabilities, *, samples: int) -> None:
        self._server, self._can, self._samples = server, can, samples
        self._choices: dict[str, _Choice] = {}
        self._anchor: tuple[int, ...] | None = None
        self._few_ids = False
        self._ten_is_one_token: bool | None = None

    async def scores(self, prompts: Sequence[str], texts: Sequence[str]) -> list[ChoiceScores]:
        """Scores of each choice after each prompt."""
        if self._can.level == "frequency":
            return await gather_what_is_done(self._frequencies(prompt, texts) for prompt in prompts)
        try:
            choices = [await self._choice(text) for text in texts]
            await self._see_ten(choices)
        except (Refused, Unavailable) as error:
            return [ChoiceScores((None,) * len(texts), 0, error=str(error))] * len(prompts)
        several = [choice.text for choice in choices if len(choice.tokens) > 1]
        if several and self._server.api == "chat":
            raise UserError(
                f"the choice {several[0]!r} is several tokens for {self._server.model}, and backend.api=chat cannot"
                " continue after its first: write backend.api=completions"
            )
        scores = await gather_what_is_done(self._score(prompt, choices) for prompt in prompts)
        if not self._ten_is_one_token:
            return scores
        # For answers that came before the one that showed a token "10".
        whole = (1,) * len(choices)
        return [s if s.token_counts or s.error else replace(s, token_counts=whole) for s in scores]

    async def _choice(self, text: str) -> _Choice:
        """The tokens of `text` as a continuation of another text."""
        if not self._can.tokenizes:
            return _Choice(text, ((None, text),))
        if text not in self._choices:
            ids = await self._ids(text)
            pieces = [text] if len(ids) == 1 else [await self._server.detokenize([one]) for one in ids]
            others = await self._spelled_ids(text) if self._can.level == "token_ids" and len(ids) == 1 else ()
            self._choices[text] = _Choice(text, tuple(zip(ids, pieces, strict=True)), others)
        return self._choices[text]

    async def _spelled_ids(self, text: str) -> tuple[int, ...]:
        """Ids of the usual spellings that are one token each."""
        if not bare(text) or bare(text) != text:
            return ()
        found = await gather(self._ids(form.format(text)) for form in USUAL[1:])
        return tuple(ids[0] for ids in found if len(ids) == 1)

    async def _ids(self, text: str) -> tuple[int, ...]:
        if self._anchor is None:
            self._anchor = await self._server.tokenize(_ANCHOR) or ()
        anchor, both = self._anchor, await self._server.tokenize(_ANCHOR + text)
        if anchor and both and both[: len(anchor)] == anchor:
            ids: tuple[int, ...] | None = both[len(anchor) :]
        else:
            ids = await self._server.tokenize(text)
        if not ids:
            raise Unavailable(f"the server does not report the tokens of {text!r}")
        return ids

    async def _see_ten(self, choices: Sequence[_Choice]) -> None:
        """Make a server that does not report tokens say "10", to see whether that is one token."""
        if self._ten_is_one_token is not None or self._can.tokenizes or not _nested(choices):
            return
        fields = self._server.logprob_fields(self._can.top)
        answer = await self._server.complete(_COUNT_ON, max_tokens=2, temperature=0.0, seed=0, **fields)
        self._ten_is_one_token = False
        self._look_for_ten(answer.candidates)

    def _look_for_ten(self, candidates: Sequence[Candidate]) -> None:
        """A vocabulary that contains "10" does not split it."""
        if any(bare(one.text) == "10" for one in candidates):
            self._ten_is_one_token = True

    async def _score(self, prompt: str, choices: Sequence[_Choice]) -> ChoiceScores:
        used: list[Answer] = []
        try:
            head = await self._next_token(prompt, choices, used)
            if not head and used[-1].text:
                raise Unreadable("the answer carries no log-probabilities")
            self._look_for_ten(head)
            if any(len(choice.tokens) > 1 for choice in choices) or (self._can.echo and _nested(choices)):
                return await self._exactly(prompt, choices, head, used)
            return await self._by_spelling(prompt, choices, head, used)
        except (Refused, Unavailable, Unreadable) as error:
            return ChoiceScores((None,) * len(choices), error=str(error), **spent(used))

    async def _by_spelling(
        self, prompt: str, choices: Sequence[_Choice], head: Sequence[Candidate], used: list[Answer]
    ) -> ChoiceScores:
        """Choices of one token each (or for all we know), in all their spellings, also after markup."""
        same = says([choice.text for choice in choices])
        places = [(0.0, head)]
        if self._can.level == "top_k" and same(" 1", "1"):
            places += await self._after_markup(prompt, head, used)
        values = [
            total(
                start + value
                for start, candidates in places
                if (value := named(candidates, _says_it(choice, same))) is not None
            )
            for choice in choices
        ]
        said = used[0].text
        if not any(opens_with(said, choice.text) for choice in choices):
            # The likeliest answer only begins like a choice: "1. Response 1 is vague" is not one.
            values = [
                -math.inf if goes_on(said, choice.text) else value
                for choice, value in zip(choices, values, strict=True)
            ]
        ceiling = None
        if self._can.level == "top_k":
            bounds = [(start, unnamed(candidates)) for start, candidates in places]
            if all(bound is not None for _, bound in bounds):
                ceiling = total(start + bound for start, bound in bounds if bound is not None)
        counts: tuple[int, ...] = (1,) * len(choices)
        if _nested(choices) and not self._ten_is_one_token:
            counts = await self._split_ten(prompt, choices, head, values, used)
        return ChoiceScores(tuple(values), token_counts=counts, ceiling=ceiling, **spent(used))

    async def _after_markup(
        self, prompt: str, head: Sequence[Candidate], used: list[Answer]
    ) -> list[tuple[float, Sequence[Candidate]]]:
        """(log-probability of getting there, candidates) after white space or emphasis with which the model begins."""
        markup = [(one.logprob, one.text) for one in head if one.logprob is not None and is_markup(one.text)]
        way, text = max(markup, key=itemgetter(0), default=(-math.inf, ""))
        if way < math.log(_MARKUP):
            return []
        if self._server.api == "completions":
            fields = self._server.logprob_fields(self._can.top)
            begun = prompt + text
            used.append(await self._server.complete(begun, max_tokens=1, temperature=0.0, seed=0, **fields))
            return [(way, used[-1].candidates)]
        places: list[tuple[float, Sequence[Candidate]]] = []
        way = 0.0
        for step, following in pairwise(used[0].steps):
            if step.logprob is None or not is_markup(step.text):
                break
            way += step.logprob
            places.append((way, following.candidates))
        return places

    async def _split_ten(
        self,
        prompt: str,
        choices: Sequence[_Choice],
        head: Sequence[Candidate],
        values: list[float | None],
        used: list[Answer],
    ) -> tuple[int, ...]:
        """Token counts of choices where "10" may be "1" and "0"; `values` then become those of the texts.

        Whatever the tokens are, "10" is said in one or two of them: both are requested if the server can continue a
        text. If it cannot, the counts are empty, unless next to nothing begins with "1".
        """
        one, ten = (next(i for i, c in enumerate(choices) if c.text == text) for text in ("1", "10"))
        begins = values[one]
        if begins is None or begins < math.log(_ANSWER):
            return (1,) * len(choices)
        same = says([choice.text for choice in choices])
        likeliest = max(
            (candidate for candidate in head if same(candidate.text, "1")),
            key=lambda candidate: -math.inf if candidate.logprob is None else candidate.logprob,
            default=None,
        )
        if self._server.api == "chat" or likeliest is None:
            return ()
        fields, begun = self._server.logprob_fields(self._can.top), prompt + likeliest.text
        used.append(await self._server.complete(begun, max_tokens=1, temperature=0.0, seed=0, **fields))
        if not used[-1].candidates:
            return ()
        nought = named(used[-1].candidates, lambda candidate: candidate.text == "0")
        whole = [] if values[ten] is None else [values[ten] or 0.0]
        values[ten] = total([*whole, begins + (-math.inf if nought is None else nought)])
        values[one] = total([begins, *whole])
        return tuple(len(choice.text) if choice.text == "10" else 1 for choice in choices)

    async def _exactly(
        self, prompt: str, choices: Sequence[_Choice], head: Sequence[Candidate], used: list[Answer]
    ) -> ChoiceScores:
        """Choices of several tokens, each exactly as written: a spelling of "1" might continue to "10"."""
        values, counts = [], []
        for choice in choices:
            value, count = _find(head, *choice.tokens[0]), len(choice.tokens)
            if self._can.echo and (count > 1 or choice.untold):
                value, count = await self._echoed(prompt, choice.text, used)
            elif count > 1:
                value = await self._chained(prompt, choice, value, used)
            values.append(value)
            counts.append(count)
        return ChoiceScores(tuple(values), token_counts=tuple(counts), **spent(used))

    async def _next_token(
        self, prompt: str, choices: Sequence[_Choice], used: list[Answer]
    ) -> tuple[Candidate, ...]:
        """Candidates for the next token: the choices' first tokens and their spellings, or the likeliest."""
        if self._can.level != "token_ids":
            return await self._asked(prompt, self._server.logprob_fields(self._can.top), used)
        first = [choice.tokens[0][0] for choice in choices]
        spelled = [one for choice in choices for one in choice.spellings]
        if not spelled or self._few_ids:
            return await self._asked(prompt, self._id_fields(first), used)
        try:
            return await self._asked(prompt, self._id_fields([*first, *spelled]), used)
        except Refused:
            # A server may limit their number. If it refuses the bare ones too, it objects to something else.
            found = await self._asked(prompt, self._id_fields(first), used)
            self._few_ids = True
            return found

    def _id_fields(self, ids: Sequence[int | None]) -> dict[str, Any]:
        return self._server.token_id_fields([one for one in ids if one is not None])

    async def _asked(self, prompt: str, fields: dict[str, Any], used: list[Answer]) -> tuple[Candidate, ...]:
        tokens = _CHAT_TOKENS if self._server.api == "chat" else 1
        used.append(await self._server.complete(prompt, max_tokens=tokens, temperature=0.0, seed=0, **fields))
        return used[-1].candidates

    async def _echoed(self, prompt: str, text: str, used: list[Answer]) -> tuple[float | None, int]:
        """(log p of `text` after `prompt`, its tokens)."""
        start, whole = await gather(echo(self._server, one) for one in (prompt, prompt + text))
        used += [start, whole]
        values = after(start, whole)
        return (math.fsum(values), len(values)) if values else (None, 1)

    async def _chained(
        self, prompt: str, choice: _Choice, first: float | None, used: list[Answer]
    ) -> float | None:
        """log p of the first token, plus that of each later one after those before it; None if one is not reported."""
        value = first
        begun = prompt + choice.tokens[0][1]
        for token, piece in choice.tokens[1:]:
            if value is None:
                return None
            later = _Choice(piece, ((token, piece),))
            step = _find(await self._next_token(begun, [later], used), token, piece)
            value = None if step is None else value + step
            begun += piece
        return value

    async def _frequencies(self, prompt: str, choices: Sequence[str]) -> ChoiceScores:
        """Shares of sampled answers that begin with each choice and do not continue to another number or a list."""
        fields = NO_LIMITS if self._can.decoding else {}
        longest, samples = max(map(len, choices)) + _FREQUENCY_TOKENS, self._samples
        try:
            drawn = await gather(
                self._server.complete(prompt, max_tokens=longest, temperature=1.0, seed=seed, **fields)
                for seed in range(samples)
            )
        except (Refused, Unavailable) as error:
            return ChoiceScores((None,) * len(choices), 0, error=str(error), source="frequency")
        counts = [sum(opens_with(answer.text, choice) for answer in drawn) for choice in choices]
        logprobs = tuple(math.log(count / samples) if count else -math.inf for count in counts)
        alone = (1,) * len(choices)
        return ChoiceScores(logprobs, source="frequency", token_counts=alone, **spent(drawn))


def _find(candidates: Sequence[Candidate], token: int | None, text: str) -> float | None:
    """The log-probability of one token: by its id if both sides have one, else by its exact text."""
    return named(candidates, lambda one: one.id == token if None not in (one.id, token) else one.text == text)


def _says_it(choice: _Choice, same: Callable[[str, str], bool]) -> Callable[[Candidate], bool]:
    """Whether a candidate is a spelling of `choice`: by its id if the server names tokens only by id."""
    ids = {choice.tokens[0][0], *choice.spellings}
    return lambda one: same(one.text, choice.text) or (one.id is not None and one.id in ids)


def _nested(choices: Sequence[_Choice]) -> bool:
    """Whether one choice's text may, for all we know, begin with another's token: "10" with "1"."""
    texts = {choice.text for choice in choices}
    return {"1", "10"} <= texts and any(choice.untold for choice in choices)
