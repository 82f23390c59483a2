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
from rlaif.inference.packing import SharedPrefix, portions, shared_tokens
from rlaif.inference.scorer import next_token_logprobs, sequence_logprobs
from rlaif.io import release_free_memory
from rlaif.models.load import LanguageModel
from rlaif.models.split import Top
from rlaif.tokens import chat_ids, inner_ids, render_chat, text_ids

# Incremented when the same model comes to answer the same prompts differently: tokenization, what counts as a choice.
READS = 2
# Log-probability of a space before the choice below which what follows it is ignored.
LEAST_GAP = math.log(0.01)
# Most tokens of suffixes in one packed row.
PACKED_TOKENS = 256
# Memory for the prompts of the last generation, which verdicts extend.
WARM_BYTES = 2**29


@dataclass(frozen=True)
class Spellings:
    """How a model may write each choice right after a prompt, as token ids: `plain`, and with a space before it.

    `spaced` is empty if it cannot be told from `plain`, or if its choices begin with each other's tokens ("1" and
    "10") differently from the plain ones, since readouts subtract accordingly.
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
        """The token of the space if that is a separate token before every choice, else None."""
        first = {ids[0] for ids in self.spaced if len(ids) > 1}
        apart = all(s[1:] == p for s, p in zip(self.spaced, self.plain, strict=False))
        return first.pop() if self.spaced and apart and len(first) == 1 else None


def _sequence_rows(
    top: Top, prompts: Sequence[list[int]], suffixes: tuple[tuple[int, ...], ...]
) -> list[list[float]]:
    groups = [SharedPrefix(tuple(ids), suffixes) for ids in prompts]
    return [list(row) for row in sequence_logprobs(top, groups)]


def _behind_gap(
    top: Top, prompts: Sequence[list[int]], spaced: tuple[tuple[int, ...], ...], opening: Sequence[float]
) -> list[list[float]]:
    """Log-probabilities of the choices behind a space, whose own are `opening`."""
    if not prompts:
        return []
    if any(len(ids) > 2 for ids in spaced):
        return _sequence_rows(top, prompts, spaced)
    # What the prompts share runs once more, not each prompt as a whole.
    longer, tokens = [[*ids, spaced[0][0]] for ids in prompts], [ids[1] for ids in spaced]
    rows, _ = next_token_logprobs(top, longer, tokens)
    return [[first + each for each in row] for first, row in zip(opening, rows, strict=True)]


def _nested(tokens: Sequence[tuple[int, ...]]) -> list[list[bool]]:
    return [[one != other and other[: len(one)] == one for other in tokens] for one in tokens]


def _added(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Log-probabilities of choices whose two spellings are mutually exclusive."""
    return torch.tensor([one, other], dtype=torch.float64).logsumexp(0).tolist()


class TransformersBackend:
    """Labels with a model in this process. `identity` is known before the weights are loaded.

    Args:
        identity: the model's description from `describe_model`, with its compute dtype.
        load: returns the model on first use, so that a fully cached labeling loads nothing.
        top: what answers, of the loaded model; None for its own weights.
        max_rows: rows generated at once.
    """

    def __init__(
        self,
        identity: dict[str, Any],
        load: Callable[[], LanguageModel],
        *,
        top: Top | None = None,
        max_rows: int,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._given = top
        self._identity, self._load, self._max_rows, self._progress = identity, load, max_rows, progress
        self._model: LanguageModel | None = None
        self._top: Top | None = None
        self._warm = WarmPrompts(0)

    def identity(self) -> dict[str, Any]:
        return {"engine": "transformers", "reads": READS, **self._identity}

    def _ready(self) -> tuple[LanguageModel, Top]:
        if self._model is None or self._top is None:
            self._model = self._load()
            # A labeler is never trained: it is kept in the compute dtype, with no cast at each use.
            self._top = (self._given or self._model.trunk.new_top()).frozen_copy()
        return self._model, self._top

    def _encode(self, message: Message) -> list[int]:
        model, _ = self._ready()
        tokenizer = model.tokenizer
        if message.chat:
            return chat_ids(tokenizer, render_chat(tokenizer, message.user) + message.assistant)
        # An empty prompt to which the tokenizer adds nothing is its BOS, or EOS without one.
        start = model.eos_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        return text_ids(tokenizer, message.user + message.assistant) or [start]

    def _check_length(self, ids: Sequence[int], extra: int) -> str | None:
        limit, size = self._ready()[0].trunk.config.max_positions, len(ids) + extra
        return f"{size} tokens exceed the model's context of {limit}" if size > limit else None

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
        answers, results = iter(drawn), []
        for ids, error in zip(encoded, errors, strict=True):
            if error is not None:
                results.append(Generation("", False, len(ids), 0, error=error))
                continue
            got = next(answers)
            body = got.ids[:-1] if got.finished else got.ids
            text = model.tokenizer.decode(body, skip_special_tokens=True)
            results.append(Generation(text, got.finished, len(ids), len(got.ids)))
        return results

    def choice_logprobs(self, prompts: Sequence[Message], choices: Sequence[str]) -> list[ChoiceScores]:
        """A choice's two spellings count together: right after the prompt, and with a space in between."""
        release_free_memory()
        model, top = self._ready()
        encoded = [self._encode(p) for p in prompts]
        spelled = Spellings.of(model.tokenizer, choices)
        errors = [self._check_length(ids, max(map(len, spelled.plain + spelled.spaced))) for ids in encoded]
        fit = [i for i, error in enumerate(errors) if error is None]
        scores, saved = self._choice_scores(top, [encoded[i] for i in fit], spelled)
        counts, cached = tuple(map(len, spelled.plain)), saved // max(len(fit), 1)
        answers, results = iter(scores), []
        for ids, error in zip(encoded, errors, strict=True):
            logprobs = (None,) * len(choices) if error else tuple(next(answers))
            results.append(ChoiceScores(logprobs, len(ids), 0 if error else cached, error, counts))
        return results

    def _choice_scores(
        self, top: Top, prompts: list[list[int]], spelled: Spellings
    ) -> tuple[list[list[float]], int]:
        """Log-probabilities of each prompt's choices, and the number of prompt tokens that were not run again."""
        if not prompts:
            return [], 0
        plain, spaced, gap, size = spelled.plain, spelled.spaced, spelled.gap, len(spelled.plain)
        first = plain + (spaced if gap is None else ((gap,),))
        if all(len(ids) == 1 for ids in first):
            warm, self._warm = self._warm, WarmPrompts(0)  # a verdict is read once: frees the memory
            tokens = [ids[0] for ids in first]
            known = warm_next_token_logprobs(top, prompts, tokens, warm)
            rows, saved = known or next_token_logprobs(top, prompts, tokens)
        else:
            rows = _sequence_rows(top, prompts, first)
            saved = shared_tokens(top, prompts) * (len(prompts) - 1)
        if gap is None:
            return [_added(row[:size], row[size:]) if spaced else row for row in rows], saved
        scores = [row[:size] for row in rows]
        # A second pass only if the model might really write the space first.
        opening = [i for i, row in enumerate(rows) if row[size] > LEAST_GAP]
        behind = _behind_gap(top, [prompts[i] for i in opening], spaced, [rows[i][size] for i in opening])
        for i, row in zip(opening, behind, strict=True):
            scores[i] = _added(scores[i], row)
        return scores, saved

    def sequence_logprobs(self, items: Sequence[tuple[Message, str]]) -> list[SequenceScore]:
        """Items with the same prompt share its forward pass, wherever they are in `items`."""
        release_free_memory()
        model, top = self._ready()
        members: dict[Message, list[int]] = {}
        for index, (message, _) in enumerate(items):
            members.setdefault(message, []).append(index)
        suffixes = [tuple(inner_ids(model.tokenizer, continuation)) for _, continuation in items]
        results: list[SequenceScore | None] = [None] * len(items)
        groups, owners = [], []
        for message, indices in members.items():
            ids, usable = self._encode(message), []
            for i in indices:
                error = self._check_length(ids, len(suffixes[i])) if suffixes[i] else "nothing to score"
                if error:
                    results[i] = SequenceScore(0.0, 0, len(ids), error=error)
                else:
                    usable.append(i)
            for part in portions([len(suffixes[i]) for i in usable], PACKED_TOKENS * top.trunk.packs):
                owners.append([usable[place] for place in part])
                groups.append(SharedPrefix(tuple(ids), tuple(suffixes[i] for i in owners[-1])))
        for group, usable, scores in zip(
            groups, owners, sequence_logprobs(top, groups, self._progress), strict=True
        ):
            for place, (i, score) in enumerate(zip(usable, scores, strict=True)):
                size = len(group.prefix) + len(suffixes[i])
                results[i] = SequenceScore(score, len(suffixes[i]), size, len(group.prefix) if place else 0)
        return [result for result in results if result is not None]
