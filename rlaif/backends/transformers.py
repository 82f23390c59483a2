"""The in-process engine: a transformers-format model, batched, with shared prefixes computed once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlaif.backends.base import ChoiceScores, Generation, Message, SequenceScore
from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.decoding.sampler import sample
from rlaif.inference.decoding.warm import WarmPrompts, warm_next_token_logprobs
from rlaif.inference.packing import SharedPrefix
from rlaif.inference.scorer import next_token_logprobs, sequence_logprobs
from rlaif.io import release_free_memory
from rlaif.models.load import LanguageModel
from rlaif.models.split import Top
from rlaif.tokens import chat_ids, inner_ids, render_chat, text_ids

# Raised when the same model answers the same prompts differently: how text becomes tokens, what counts as a choice.
READS = 2
# Log-probability of a space before the choice below which what follows it is not looked at.
LEAST_GAP = math.log(0.01)
# Tokens of suffixes that share one packed row.
PACKED_TOKENS = 256
# Memory for the prompts of the last generation, from which verdicts continue.
WARM_BYTES = 2**29


def _parts(indices: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Cut a prompt's suffixes into runs of at most `PACKED_TOKENS` tokens: attention grows with the square."""
    parts: list[list[int]] = []
    room = 0
    for index, length in zip(indices, lengths, strict=True):
        if not parts or length > room:
            parts.append([])
            room = PACKED_TOKENS
        parts[-1].append(index)
        room -= length
    return parts


@dataclass(frozen=True)
class Spellings:
    """How a model may write each choice right after a prompt, as token ids: `plain`, and with a space before it.

    `spaced` is empty if it cannot be distinguished from `plain`, or if choices begin with each other's tokens ("1" and
    "10") in another way than the plain ones do, since readouts subtract by that.
    """

    plain: tuple[tuple[int, ...], ...]
    spaced: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tokenizer: Any, choices: Sequence[str]) -> Spellings:
        plain = tuple(tuple(inner_ids(tokenizer, choice)) for choice in choices)
        spaced = tuple(tuple(inner_ids(tokenizer, f" {choice}")) for choice in choices)
        usable = set(spaced).isdisjoint(plain) and _nested(spaced) == _nested(plain)
        return cls(plain, spaced if usable else ())

    @property
    def gap(self) -> int | None:
        """The token of the space if it is its own token before every choice, else None."""
        first = {ids[0] for ids in self.spaced if len(ids) > 1}
        apart = all(s[1:] == p for s, p in zip(self.spaced, self.plain, strict=False))
        return first.pop() if self.spaced and apart and len(first) == 1 else None


def _sequence_rows(
    top: Top, prompts: Sequence[list[int]], suffixes: Sequence[tuple[int, ...]]
) -> list[list[float]]:
    groups = [SharedPrefix(tuple(ids), tuple(suffixes)) for ids in prompts]
    return [list(row) for row in sequence_logprobs(top, groups)]


def _nested(tokens: Sequence[tuple[int, ...]]) -> list[list[bool]]:
    return [[one != other and other[: len(one)] == one for other in tokens] for one in tokens]


def _added(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Log-probabilities of choices whose spellings exclude each other."""
    return torch.tensor([one, other], dtype=torch.float64).logsumexp(0).tolist()


class TransformersBackend:
    """Labels with a model in this process. `identity` is known before the weights are loaded.

    Args:
        identity: what `describe_model` says of the model, with its compute dtype.
        load: returns the model on first use, so that fully cached labeling loads nothing.
        max_rows: rows generated at once.
    """

    def __init__(
        self,
        identity: dict[str, Any],
        load: Callable[[], LanguageModel],
        *,
        max_rows: int,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._identity, self._load, self._max_rows, self._progress = identity, load, max_rows, progress
        self._model: LanguageModel | None = None
        self._top: Top | None = None
        self._warm = WarmPrompts(0)

    def identity(self) -> dict[str, Any]:
        return {"engine": "transformers", "reads": READS, **self._identity}

    def _ready(self) -> tuple[LanguageModel, Top]:
        if self._model is None or self._top is None:
            self._model = self._load()
            # A labeler never trains: kept in the compute dtype, so no cast at each use.
            self._top = self._model.trunk.new_top().frozen_copy()
        return self._model, self._top

    def _encode(self, message: Message) -> list[int]:
        model, _ = self._ready()
        tokenizer = model.tokenizer
        if message.chat:
            return chat_ids(tokenizer, render_chat(tokenizer, message.user) + message.assistant)
        return text_ids(tokenizer, message.user + message.assistant) or [self._start(model)]

    @staticmethod
    def _start(model: LanguageModel) -> int:
        """What precedes an empty prompt if the tokenizer puts nothing there: its BOS, or EOS without one."""
        bos = model.tokenizer.bos_token_id
        return model.eos_id if bos is None else bos

    def _check_length(self, ids: Sequence[int], extra: int) -> str | None:
        model, _ = self._ready()
        limit = model.trunk.config.max_positions
        return (
            f"{len(ids) + extra} tokens exceed the model's context of {limit}"
            if len(ids) + extra > limit
            else None
        )

    def generate(
        self,
        prompts: Sequence[Message],
        *,
        max_new_tokens: int,
        temperature: float,
        top_k: int,
        seeds: Sequence[int],
    ) -> list[Generation]:
        release_free_memory()
        model, top = self._ready()
        encoded = [self._encode(p) for p in prompts]
        errors = [self._check_length(ids, max_new_tokens) for ids in encoded]
        fit = [i for i, error in enumerate(errors) if error is None]
        self._warm = WarmPrompts(WARM_BYTES)
        drawn = sample(
            top,
            [encoded[i] for i in fit],
            [seeds[i] for i in fit],
            Decoding(max_new_tokens, temperature, top_k),
            eos_ids=model.eos_ids,
            max_rows=self._max_rows,
            warm=self._warm,
            progress=self._progress,
        )
        answers = dict(zip(fit, drawn, strict=True))
        results = []
        for index, (ids, error) in enumerate(zip(encoded, errors, strict=True)):
            if error is not None:
                results.append(Generation("", False, len(ids), 0, error=error))
                continue
            got = answers[index]
            body = got.ids[:-1] if got.finished else got.ids
            text = model.tokenizer.decode(body, skip_special_tokens=True)
            results.append(Generation(text, got.finished, len(ids), len(got.ids)))
        return results

    def choice_logprobs(self, prompts: Sequence[Message], choices: Sequence[str]) -> list[ChoiceScores]:
        """A choice's two spellings count together: directly after the prompt, and with a space before it."""
        release_free_memory()
        model, top = self._ready()
        encoded = [self._encode(p) for p in prompts]
        spelled = Spellings.of(model.tokenizer, choices)
        errors = [self._check_length(ids, max(map(len, spelled.plain + spelled.spaced))) for ids in encoded]
        fit = [i for i, error in enumerate(errors) if error is None]
        scores, saved = self._choice_scores(top, [encoded[i] for i in fit], spelled)
        answers = dict(zip(fit, scores, strict=True))
        counts, cached = tuple(map(len, spelled.plain)), saved // max(len(fit), 1)
        results = []
        for index, (ids, error) in enumerate(zip(encoded, errors, strict=True)):
            logprobs = (None,) * len(choices) if error else tuple(answers[index])
            results.append(ChoiceScores(logprobs, len(ids), 0 if error else cached, error, counts))
        return results

    def _choice_scores(
        self, top: Top, prompts: list[list[int]], spelled: Spellings
    ) -> tuple[list[list[float]], int]:
        """Log-probabilities of each prompt's choices, and prompt tokens that were not run again."""
        if not prompts:
            return [], 0
        plain, spaced, gap, size = spelled.plain, spelled.spaced, spelled.gap, len(spelled.plain)
        first = plain + (spaced if gap is None else ((gap,),))
        if all(len(ids) == 1 for ids in first):
            rows, saved = self._next_rows(top, prompts, [ids[0] for ids in first])
        else:
            rows, saved = _sequence_rows(top, prompts, first), 0
        if gap is None:
            return [_added(row[:size], row[size:]) if spaced else row for row in rows], saved
        scores = [row[:size] for row in rows]
        # A second look only if the model would really write the space first.
        opening = [i for i, row in enumerate(rows) if row[size] > LEAST_GAP]
        behind = _sequence_rows(top, [prompts[i] for i in opening], spaced) if opening else []
        for i, row in zip(opening, behind, strict=True):
            scores[i] = _added(scores[i], row)
        return scores, saved

    def _next_rows(
        self, top: Top, prompts: list[list[int]], tokens: list[int]
    ) -> tuple[list[list[float]], int]:
        warm, self._warm = self._warm, WarmPrompts(0)  # a verdict is read once: the memory is freed
        known = warm_next_token_logprobs(top, prompts, tokens, warm)
        return known or next_token_logprobs(top, prompts, tokens)

    def sequence_logprobs(self, items: Sequence[tuple[Message, str]]) -> list[SequenceScore]:
        """Items with the same prompt share its forward pass, wherever they are in `items`."""
        release_free_memory()
        model, top = self._ready()
        prompts: dict[Message, list[int]] = {}
        members: dict[Message, list[int]] = {}
        suffixes: list[tuple[int, ...]] = []
        for index, (message, continuation) in enumerate(items):
            if message not in prompts:
                prompts[message] = self._encode(message)
            members.setdefault(message, []).append(index)
            suffixes.append(tuple(inner_ids(model.tokenizer, continuation)))
        results: list[SequenceScore | None] = [None] * len(items)
        groups, owners = [], []
        for message, indices in members.items():
            ids = prompts[message]
            usable = []
            for i in indices:
                error = self._check_length(ids, len(suffixes[i])) or (
                    None if suffixes[i] else "nothing to score"
                )
                if error:
                    results[i] = SequenceScore(0.0, 0, len(ids), error=error)
                else:
                    usable.append(i)
            for part in _parts(usable, [len(suffixes[i]) for i in usable]):
                groups.append(SharedPrefix(tuple(ids), tuple(suffixes[i] for i in part)))
                owners.append(part)
        for group, usable, scores in zip(
            groups, owners, sequence_logprobs(top, groups, self._progress), strict=True
        ):
            for place, (i, score) in enumerate(zip(usable, scores, strict=True)):
                size = len(group.prefix) + len(suffixes[i])
                results[i] = SequenceScore(score, len(suffixes[i]), size, len(group.prefix) if place else 0)
        return [result for result in results if result is not None]
