"""Calls to a backend through the label store: fixed batches, each answered once and kept."""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, cast

from rlaif.backends.base import (
    Altering,
    Backend,
    BatchInvariant,
    ChoiceScores,
    Comparing,
    Ended,
    Generation,
    Message,
    SequenceScore,
    SimilarityScore,
)
from rlaif.errors import UserError
from rlaif.io import digest
from rlaif.labelers.answers import checked, from_row, to_row
from rlaif.labelers.cost import Meter
from rlaif.labelers.store import LabelStore

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""(phase, done, total), called when a phase begins (done = 0) and after each batch."""

Follow = Callable[[list[int], list["Answered"]], None]
"""(indices of a batch, their answers): asks the calls that extend these answers."""

Unwanted = Callable[[str, Any], bool]
"""(phase, a stored answer) -> whether it is to be asked again."""

_WAIT_SECONDS = 0.05


@dataclass
class Counters:
    """What a labeling cost: calls to the backend, answers reused, tokens and seconds of the calls.

    `asked_again` counts those whose stored answer was set aside (`labeler.retry`), `usage_estimated` those whose token
    counts are estimates, because the engine did not report them.
    """

    asked: int = 0
    asked_again: int = 0
    reused: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    seconds: float = 0.0
    usage_estimated: int = 0


@dataclass(frozen=True)
class Answered:
    """A backend's answer and the seconds it took (its share of the batch)."""

    answer: Any
    seconds: float


def cost_of(answers: Sequence[Answered]) -> dict[str, Any]:
    """What these answers cost, as fields of a judgement."""
    return {
        "tokens_in": sum(answered.answer.tokens_in for answered in answers),
        "tokens_cached": sum(answered.answer.tokens_cached for answered in answers),
        "seconds": sum(answered.seconds for answered in answers),
    }


def known(logprobs: Sequence[float | None]) -> tuple[float, ...]:
    """The log-probabilities if the engine gave them all (of a part, nobody could say which choices it covers)."""
    values = tuple(value for value in logprobs if value is not None)
    return values if len(values) == len(logprobs) else ()


class Stopped(Exception):
    """A bound of the meter ended a phase: `done` of its `total` items have their answers."""

    def __init__(self, bound: str, done: int, total: int) -> None:
        super().__init__(f"{bound}: {done} of {total}")
        self.bound, self.done, self.total = bound, done, total


def bound_error(stop: Stopped, what: str, total: int, meter: Meter, *, kept: bool) -> UserError:
    """The message of a bound that ended a job; the items of a phase are `what`, or equal parts of one."""
    done = stop.done * total // stop.total
    told = "they are kept" if kept else "without a label store nothing is kept"
    return UserError(
        f"{stop.bound} has no room for another batch: {done} of {total} {what} are done, for {meter} in this run;"
        f" {told}, and the same command with a higher bound continues from there"
    )


class Asker:
    """Answers calls from the store if it can and from the backend if it must.

    Batches are fixed from the full list of calls before the store is consulted, and a batch with any answer missing
    is computed whole: the effect of a call's batch neighbours on its last bits then never depends on what an earlier
    run left behind (if there is no effect, `BatchInvariant`, only the missing calls are asked). Stored answers are
    kept, except those that are `unwanted`: these are asked once more in the lifetime of `renewed`, and replaced if an
    answer comes. An invalid answer (see `checked`) gets an error; answers with an error are returned but not stored,
    so that the next run asks again.

    Raises Stopped between two batches if the meter has no room for the next one that must be asked.
    """

    def __init__(
        self,
        backend: Backend | Comparing,
        store: LabelStore | None,
        *,
        batch_size: int,
        progress: Progress | None,
        meter: Meter,
        unwanted: Unwanted | None = None,
        renewed: set[str] | None = None,
    ) -> None:
        self._unwanted, self._renewed = unwanted, set() if renewed is None else renewed
        # Each readout makes only the calls that its engine has.
        self._backend, self._store, self._batch_size = cast(Backend, backend), store, batch_size
        self._progress, self._meter = progress, meter
        self._identity = backend.identity()
        self.counters = Counters()
        self._waited = False

    def quiet(self) -> Asker:
        """This asker without progress, for calls inside a phase that reports its own."""
        twin = copy.copy(self)
        twin._progress = None
        return twin

    def generate(
        self,
        phase: str,
        prompts: Sequence[Message],
        groups: Sequence[Hashable],
        *,
        max_new_tokens: int,
        temperature: float,
        top_k: int,
        seeds: Sequence[int],
        samples: Sequence[int],
        follow: Follow | None = None,
    ) -> list[Answered]:
        """Continuations. Greedy ones do not depend on seed and sample, so neither do their keys.

        `follow` is called with each batch's indices and answers before they are stored, while the backend still holds
        what it computed for them.
        """
        greedy = temperature == 0
        params = {"max_new_tokens": max_new_tokens, "temperature": float(temperature)}
        params |= {} if greedy else {"top_k": top_k}
        keys = [
            self._key("generate", params, [prompt], None if greedy else [sample, seed])
            for prompt, seed, sample in zip(prompts, seeds, samples, strict=True)
        ]

        def compute(batch: list[int]) -> list[Generation]:
            return self._backend.generate(
                [prompts[index] for index in batch],
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                seeds=[0 if greedy else seeds[index] for index in batch],
            )

        def altered() -> str | None:
            if not isinstance(self._backend, Altering):
                return None
            try:
                return self._backend.alteration(temperature)
            except UserError:
                return None  # the engine is unreachable: its stored answers stand

        ask = _Ask(phase, "generate", compute, Generation, altered=altered)
        return self._resolve(ask, keys, groups, follow)

    def choices(
        self,
        phase: str,
        prompts: Sequence[Message],
        groups: Sequence[Hashable],
        choices: Sequence[str],
        follow: Follow | None = None,
    ) -> list[Answered]:
        """Log-probabilities of `choices` after each prompt; `follow` as in `generate`."""
        params = {"choices": list(choices), **choice_rules(self._backend)}
        keys = [self._key("choices", params, [prompt], None) for prompt in prompts]

        def compute(batch: list[int]) -> list[ChoiceScores]:
            return self._backend.choice_logprobs([prompts[index] for index in batch], choices)

        ask = _Ask(phase, "choices", compute, ChoiceScores, choices=len(choices))
        return self._resolve(ask, keys, groups, follow)

    def sequences(
        self, phase: str, items: Sequence[tuple[Message, str]], groups: Sequence[Hashable]
    ) -> list[Answered]:
        """Log-probability of each continuation; an empty one is 0 nats over 0 tokens, without a call."""
        filled = [index for index, (_, text) in enumerate(items) if text]
        keys = [self._key("sequences", {}, [items[index][0], items[index][1]], None) for index in filled]

        def compute(batch: list[int]) -> list[SequenceScore]:
            return self._backend.sequence_logprobs([items[filled[index]] for index in batch])

        ask = _Ask(phase, "sequences", compute, SequenceScore)
        scored = self._resolve(ask, keys, [groups[index] for index in filled])
        results = [Answered(SequenceScore(0.0, 0, 0), 0.0)] * len(items)
        for index, answered in zip(filled, scored, strict=True):
            results[index] = answered
        return results

    def similarities(
        self, phase: str, items: Sequence[tuple[str, str]], groups: Sequence[Hashable]
    ) -> list[Answered]:
        """Similarity of each (text, reference)."""
        keys = [self._key("similarities", {}, item, None) for item in items]
        engine = cast(Comparing, self._backend)

        def compute(batch: list[int]) -> list[SimilarityScore]:
            return engine.similarities([items[index] for index in batch])

        return self._resolve(_Ask(phase, "similarities", compute, SimilarityScore), keys, groups)

    def _key(self, kind: str, params: dict[str, Any], parts: Sequence[Message | str], draw: Any) -> str:
        texts = [part if isinstance(part, str) else dataclasses.asdict(part) for part in parts]
        return digest(
            {"backend": self._identity, "kind": kind, "params": params, "prompt": texts, "draw": draw}
        )

    def _resolve(
        self, ask: _Ask, keys: Sequence[str], groups: Sequence[Hashable], follow: Follow | None = None
    ) -> list[Answered]:
        first = {key: index for index, key in reversed(list(enumerate(keys)))}
        unique = [index for index, key in enumerate(keys) if first[key] == index]
        waiting = deque(self._batches(unique, [groups[index] for index in unique], alone=ask.choices > 2))
        answers: dict[str, dict[str, Any]] = {}

        def after(resolved: dict[str, dict[str, Any]], batch: list[int]) -> None:
            if follow is not None:
                follow(batch, [ask.answered(resolved[keys[index]]) for index in batch])

        done, idle = 0, 0
        if self._progress is not None and unique:
            self._progress(ask.phase, 0, len(unique))
        while waiting:
            batch = waiting.popleft()
            try:
                resolved = self._batch(ask, [keys[index] for index in batch], batch, after)
            except Stopped as full:
                answered = sum(key in answers for key in keys)
                raise Stopped(full.bound, answered, len(keys)) from None
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
                self._progress(ask.phase, done, len(unique))
        return [ask.answered(answers[key]) for key in keys]

    def _batches(self, unique: Sequence[int], groups: Sequence[Hashable], *, alone: bool) -> list[list[int]]:
        """`alone`: the first call goes before all others if batches do not matter, since it may end the phase."""
        if alone and isinstance(self._backend, BatchInvariant):
            return [list(unique[:1])] * bool(unique) + fixed_batches(unique[1:], groups[1:], self._batch_size)
        return fixed_batches(unique, groups, self._batch_size)

    def _altered_now(self, ask: _Ask, keys: Sequence[str]) -> str | None:
        """How the engine now alters answers; it is asked only if a stored answer is altered."""
        if ask.altered is None or self._store is None:
            return None
        return ask.altered() if any(row.get("altered") for row in self._store.get(keys).values()) else None

    def _stale(self, ask: _Ask, row: dict[str, Any], key: str, now: str | None) -> bool:
        """Whether a stored answer counts as missing: it is invalid, or is to be asked again.

        So is text that was not decoded as requested, once the engine decodes differently (`now`).
        """
        answer = ask.answered(row).answer
        if now is not None and row.get("altered") not in (None, "", now):
            return True
        if checked(answer, choices=ask.choices).error is not None:
            return True
        return self._unwanted is not None and key not in self._renewed and self._unwanted(ask.phase, answer)

    def _batch(
        self,
        ask: _Ask,
        keys: list[str],
        batch: list[int],
        after: Callable[[dict[str, dict[str, Any]], list[int]], None],
    ) -> dict[str, dict[str, Any]] | None:
        """One batch's answers by key, or None while another process is computing it.

        The calls that follow a batch are asked and stored before the batch itself: a killed run then never leaves a
        batch without them, which would later be asked under other circumstances, with other last bits.
        """
        if self._store is None:
            computed = self._compute(ask, keys, batch)
            after(computed, batch)
            return computed
        now = self._altered_now(ask, keys)
        claim = self._store.claim(keys, stale=lambda key, row: self._stale(ask, row, key, now))
        if len(claim.found) == len(keys):
            self.counters.reused += len(keys)
            after(claim.found, batch)
            return claim.found
        if not claim.granted:
            if not self._waited:
                logger.warning("waiting for answers that %s is asking for", claim.held)
            self._waited = True
            self._make_room(ask.phase, 0)
            return None
        index_of = dict(zip(keys, batch, strict=True))
        missing = [key for key in keys if key not in claim.found]
        asked = missing if isinstance(self._backend, BatchInvariant) else keys
        self.counters.reused += len(keys) - len(asked)
        try:
            self.counters.asked_again += len(claim.stale)
            self._renewed |= claim.stale
            try:
                computed = self._compute(ask, asked, [index_of[key] for key in asked])
            except Ended as end:
                self._store.put(ask.kind, self._rescued(ask, asked, end.answers), replace=claim.stale)
                raise
            resolved = computed | claim.found
            try:
                after(resolved, batch)
            finally:
                good = {key: computed[key] for key in missing if computed[key]["error"] is None}
                self._store.put(ask.kind, good, replace=claim.stale)
        finally:
            self._store.release(missing)
        return resolved

    def _rescued(self, ask: _Ask, keys: Sequence[str], answers: Sequence[Any]) -> dict[str, dict[str, Any]]:
        """The good answers to a batch that an engine gave before it ended: they were paid for."""
        given = {
            key: checked(answer, choices=ask.choices)
            for key, answer in zip(keys, answers, strict=True)
            if answer is not None
        }
        rows = {key: to_row(answer, 0.0) for key, answer in given.items() if answer.error is None}
        self._count(ask.phase, [*rows.values()], 0.0)
        return rows

    def _make_room(self, phase: str, calls: int) -> None:
        bound = self._meter.reached(phase, calls)
        if bound is not None:
            raise Stopped(bound, 0, 0)  # `_resolve` knows how many are done

    def _compute(self, ask: _Ask, keys: list[str], batch: list[int]) -> dict[str, dict[str, Any]]:
        self._make_room(ask.phase, len(batch))
        start = self._meter.clock()
        answers = [checked(answer, choices=ask.choices) for answer in ask.compute(batch)]
        if len(answers) != len(batch):
            raise ValueError(f"the backend gave {len(answers)} answers to {len(batch)} calls")
        seconds = self._meter.clock() - start
        rows = [to_row(answer, seconds / len(batch)) for answer in answers]
        self._count(ask.phase, rows, seconds)
        return dict(zip(keys, rows, strict=True))

    def _count(self, phase: str, rows: Sequence[dict[str, Any]], seconds: float) -> None:
        tokens = {
            name: sum(row.get(name, 0) for row in rows)
            for name in ("tokens_in", "tokens_out", "tokens_cached")
        }
        self._meter.add(phase, calls=len(rows), seconds=seconds, **tokens)
        self.counters.asked += len(rows)
        self.counters.seconds += seconds
        self.counters.usage_estimated += sum(row["usage_estimated"] for row in rows)
        for name, count in tokens.items():
            setattr(self.counters, name, getattr(self.counters, name) + count)


def choice_rules(backend: Backend | Comparing) -> dict[str, int]:
    """The version of how the backend reads choices, if it has one: answers by other rules are not reused."""
    version = getattr(backend, "choice_rules", None)
    return {} if version is None else {"rules": version}


@dataclass(frozen=True)
class _Ask:
    """One kind of call: how the backend is called, and what comes back, for how many choices."""

    phase: str
    kind: str
    compute: Callable[[list[int]], Sequence[Any]]
    answer_type: type[Any]
    choices: int = 0
    altered: Callable[[], str | None] | None = None

    def answered(self, row: dict[str, Any]) -> Answered:
        """The answer that `to_row` wrote as `row`."""
        return Answered(*from_row(row, self.answer_type))


def fixed_batches(items: Sequence[int], groups: Sequence[Hashable], batch_size: int) -> list[list[int]]:
    """Consecutive items in batches of at most `batch_size`; neighbours of one group are kept together.

    A group (for instance the two orders of a pair) shares a prefix, which a split would compute twice; a group larger
    than a batch is cut.
    """
    batches: list[list[int]] = []
    for _, pairs in groupby(zip(groups, items, strict=True), key=itemgetter(0)):
        run = [item for _, item in pairs]
        for start in range(0, len(run), batch_size):
            part = run[start : start + batch_size]
            if batches and len(batches[-1]) + len(part) <= batch_size:
                batches[-1].extend(part)
            else:
                batches.append(part)
    return batches
