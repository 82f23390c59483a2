"""The in-process engine: a transformers-format model, batched, with shared prefixes computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rlaif.backends.base import ChoiceScores, Generation, Message, SequenceScore
from rlaif.inference.packing import SharedPrefix
from rlaif.inference.sampler import Decoding, sample
from rlaif.inference.scorer import next_token_logprobs, sequence_logprobs
from rlaif.inference.warm import WarmPrompts, warm_next_token_logprobs
from rlaif.io import release_free_memory
from rlaif.models.load import LanguageModel
from rlaif.models.split import Top

# Tokens of suffixes that share one packed row.
PACKED_TOKENS = 256
# Memory for the prompts of the last generation, from which verdicts go on.
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


class TransformersBackend:
    """Labels with a model in this process. `identity` is known before the weights are loaded.

    Args:
        identity: what `describe_model` says of the model, with its compute dtype.
        load: gives the model on first use, so that a fully cached labelling loads nothing.
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
        return {"engine": "transformers", **self._identity}

    def _ready(self) -> tuple[LanguageModel, Top]:
        if self._model is None or self._top is None:
            self._model = self._load()
            # A labeler never trains: kept in the compute dtype, no cast at each use.
            self._top = self._model.trunk.new_top().to(self._model.device).frozen_copy()
        return self._model, self._top

    def _encode(self, message: Message) -> list[int]:
        model, _ = self._ready()
        tokenizer = model.tokenizer
        if not message.chat:
            return tokenizer.encode(message.user + message.assistant, add_special_tokens=False) or [
                self._start(model)
            ]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": message.user}], tokenize=False, add_generation_prompt=True
        )
        return tokenizer.encode(text + message.assistant, add_special_tokens=False)

    @staticmethod
    def _start(model: LanguageModel) -> int:
        """What stands before an empty prompt: the tokenizer's BOS, or EOS where it has none."""
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
            eos_id=model.eos_id,
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
        release_free_memory()
        model, top = self._ready()
        encoded = [self._encode(p) for p in prompts]
        tokens = [model.tokenizer.encode(c, add_special_tokens=False) for c in choices]
        errors = [self._check_length(ids, max(len(t) for t in tokens)) for ids in encoded]
        fit = [i for i, error in enumerate(errors) if error is None]
        scores, saved = self._choice_scores(top, [encoded[i] for i in fit], tokens)
        answers = dict(zip(fit, scores, strict=True))
        counts, cached = tuple(len(choice) for choice in tokens), saved // max(len(fit), 1)
        results = []
        for index, (ids, error) in enumerate(zip(encoded, errors, strict=True)):
            logprobs = (None,) * len(choices) if error else tuple(answers[index])
            results.append(ChoiceScores(logprobs, len(ids), 0 if error else cached, error, counts))
        return results

    def _choice_scores(
        self, top: Top, prompts: list[list[int]], tokens: list[list[int]]
    ) -> tuple[list[list[float]], int]:
        if not prompts:
            return [], 0
        if all(len(choice) == 1 for choice in tokens):
            single = [choice[0] for choice in tokens]
            warm, self._warm = self._warm, WarmPrompts(0)  # a verdict is read once: the memory goes back
            known = warm_next_token_logprobs(top, prompts, single, warm)
            return known or next_token_logprobs(top, prompts, single)
        suffixes = tuple(tuple(choice) for choice in tokens)
        groups = [SharedPrefix(tuple(ids), suffixes) for ids in prompts]
        return [list(row) for row in sequence_logprobs(top, groups)], 0

    def sequence_logprobs(self, items: Sequence[tuple[Message, str]]) -> list[SequenceScore]:
        """Items with the same prompt share its forward pass, wherever they stand in `items`."""
        release_free_memory()
        model, top = self._ready()
        prompts: dict[Message, list[int]] = {}
        members: dict[Message, list[int]] = {}
        suffixes: list[tuple[int, ...]] = []
        for index, (message, continuation) in enumerate(items):
            if message not in prompts:
                prompts[message] = self._encode(message)
            members.setdefault(message, []).append(index)
            suffixes.append(tuple(model.tokenizer.encode(continuation, add_special_tokens=False)))
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
