"""Calls to a backend through the label store: fixed batches, each answered once and kept."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rlaif.backends.base import Backend, ChoiceScores, Generation, Message, SequenceScore
from rlaif.io import digest
from rlaif.labelers.store import LabelStore

Progress = Callable[[str, int, int], None]
"""(phase, done, total), called when a phase begins (done = 0) and after each batch."""

Answer = TypeVar("Answer", Generation, ChoiceScores, SequenceScore)
_WAIT_SECONDS = 0.05


@dataclass
class Counters:
    """What a labeling cost: calls put to the backend, answers reused, tokens and seconds of the calls."""

    asked: int = 0
    reused: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Answered:
    """A backend's answer and the seconds it took (its share of the batch)."""

    answer: Any
    seconds: float


@dataclass(frozen=True)
class Sampling:
    """Decoding of generated text; `temperature` 0 is greedy and `top_k` 0 no limit."""

    max_new_tokens: int
    temperature: float
    top_k: int


class Asker:
    """Answers calls from the store where it can and from the backend where it must.

    Batches are fixed from the full list of calls before the store is looked at, and a batch with any
    answer missing is computed whole: what a call's batch neighbours do to its last bits then never
    depends on what an earlier run left behind. Stored answers are kept as they are. Answers with an
    error are handed out but not stored, so that the next run asks again.
    """

    def __init__(
        self, backend: Backend, store: LabelStore | None, *, batch_size: int, progress: Progress | None
    ) -> None:
        self._backend = backend
        self._store = store
        self._batch_size = batch_size
        self._progress = progress
        self._identity = backend.identity()
        self.counters = Counters()

    def generate(
        self,
        phase: str,
        prompts: Sequence[Message],
        groups: Sequence[Hashable],
        *,
        sampling: Sampling,
        seeds: Sequence[int],
        samples: Sequence[int],
    ) -> list[Answered]:
        """Continuations. Greedy ones do not depend on seed and sample, so neither do their keys."""
        greedy = sampling.temperature == 0
        params = {"max_new_tokens": sampling.max_new_tokens, "temperature": float(sampling.temperature)}
        params |= {} if greedy else {"top_k": sampling.top_k}
        keys = [
            self._key("generate", params, [prompt], None if greedy else [sample, seed])
            for prompt, seed, sample in zip(prompts, seeds, samples, strict=True)
        ]

        def compute(batch: list[int]) -> list[Generation]:
            return self._backend.generate(
                [prompts[index] for index in batch],
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                seeds=[0 if greedy else seeds[index] for index in batch],
            )

        return self._resolve(phase, "generate", keys, groups, compute, Generation)

    def choices(
        self, phase: str, prompts: Sequence[Message], groups: Sequence[Hashable], choices: Sequence[str]
    ) -> list[Answered]:
        """Log-probabilities of `choices` after each prompt."""
        keys = [self._key("choices", {"choices": list(choices)}, [prompt], None) for prompt in prompts]

        def compute(batch: list[int]) -> list[ChoiceScores]:
            return self._backend.choice_logprobs([prompts[index] for index in batch], choices)

        return self._resolve(phase, "choices", keys, groups, compute, ChoiceScores)

    def sequences(
        self, phase: str, items: Sequence[tuple[Message, str]], groups: Sequence[Hashable]
    ) -> list[Answered]:
        """Log-probability of each continuation; an empty one is 0 nats over 0 tokens, without a call."""
        filled = [index for index, (_, text) in enumerate(items) if text]
        keys = [self._key("sequences", {}, [items[index][0], items[index][1]], None) for index in filled]

        def compute(batch: list[int]) -> list[SequenceScore]:
            return self._backend.sequence_logprobs([items[filled[index]] for index in batch])

        scored = self._resolve(
            phase, "sequences", keys, [groups[index] for index in filled], compute, SequenceScore
        )
        results = [Answered(SequenceScore(0.0, 0, 0), 0.0)] * len(items)
        for index, answered in zip(filled, scored, strict=True):
            results[index] = answered
        return results

    def _key(self, kind: str, params: dict[str, Any], parts: Sequence[Message | str], draw: Any) -> str:
        texts = [part if isinstance(part, str) else dataclasses.asdict(part) for part in parts]
        return digest(
            {"backend": self._identity, "kind": kind, "params": params, "prompt": texts, "draw": draw}
        )

    def _resolve(
        self,
        phase: str,
        kind: str,
        keys: Sequence[str],
        groups: Sequence[Hashable],
        compute: Callable[[list[int]], Sequence[Answer]],
        answer_type: type[Answer],
    ) -> list[Answered]:
        first = {key: index for index, key in reversed(list(enumerate(keys)))}
        unique = [index for index, key in enumerate(keys) if first[key] == index]
        waiting = deque(fixed_batches(unique, [groups[index] for index in unique], self._batch_size))
        answers: dict[str, dict[str, Any]] = {}
        done, idle = 0, 0
        if self._progress is not None and unique:
            self._progress(phase, 0, len(unique))
        while waiting:
            batch = waiting.popleft()
            resolved = self._batch(kind, [keys[index] for index in batch], batch, compute)
            if resolved is None:
                waiting.append(batch)
                idle += 1
                if idle >= len(waiting):
                    time.sleep(_WAIT_SECONDS)
                continue
            idle = 0
            answers |= resolved
            done += len(batch)
            if self._progress is not None:
                self._progress(phase, done, len(unique))
        return [_decode(answers[key], answer_type) for key in keys]

    def _batch(
        self, kind: str, keys: list[str], batch: list[int], compute: Callable[[list[int]], Sequence[Answer]]
    ) -> dict[str, dict[str, Any]] | None:
        """One batch's answers by key, or None while another process is at it."""
        if self._store is None:
            return self._compute(keys, batch, compute)
        claim = self._store.claim(keys)
        if len(claim.found) == len(keys):
            self.counters.reused += len(keys)
            return claim.found
        if not claim.granted:
            return None
        missing = [key for key in keys if key not in claim.found]
        try:
            computed = self._compute(keys, batch, compute)
            self._store.put(kind, {key: computed[key] for key in missing if computed[key]["error"] is None})
        finally:
            self._store.release(missing)
        return computed | self._store.get(keys)

    def _compute(
        self, keys: list[str], batch: list[int], compute: Callable[[list[int]], Sequence[Answer]]
    ) -> dict[str, dict[str, Any]]:
        start = time.perf_counter()
        answers = list(compute(batch))
        if len(answers) != len(batch):
            raise ValueError(f"the backend gave {len(answers)} answers to {len(batch)} calls")
        seconds = time.perf_counter() - start
        self.counters.asked += len(batch)
        self.counters.seconds += seconds
        rows = [dataclasses.asdict(answer) | {"seconds": seconds / len(batch)} for answer in answers]
        for row in rows:
            self.counters.tokens_in += row["tokens_in"]
            self.counters.tokens_out += row.get("tokens_out", 0)
            self.counters.tokens_cached += row["tokens_cached"]
        return dict(zip(keys, rows, strict=True))


def fixed_batches(items: Sequence[int], groups: Sequence[Hashable], batch_size: int) -> list[list[int]]:
    """Consecutive items in batches of at most `batch_size`, neighbours of one group kept together.

    A group (the two orders of a pair, say) shares a prefix, which a split would compute twice; a group
    larger than a batch is cut.
    """
    batches: list[list[int]] = []
    for run in _runs(items, groups):
        for start in range(0, len(run), batch_size):
            part = run[start : start + batch_size]
            if batches and len(batches[-1]) + len(part) <= batch_size:
                batches[-1].extend(part)
            else:
                batches.append(list(part))
    return batches


def _runs(items: Sequence[int], groups: Sequence[Hashable]) -> list[list[int]]:
    runs: list[list[int]] = []
    previous: Hashable = None
    for item, group in zip(items, groups, strict=True):
        if runs and group == previous:
            runs[-1].append(item)
        else:
            runs.append([item])
        previous = group
    return runs


def _decode(row: dict[str, Any], answer_type: type[Answer]) -> Answered:
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in row.items()
        if key != "seconds"
    }
    return Answered(answer_type(**values), row["seconds"])
