"""What a labeler needs from an LLM engine: three calls and an identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from rlaif.errors import UserError


@dataclass(frozen=True)
class Message:
    """A prompt for a backend.

    With `chat` the model's chat template wraps `user` as the user's turn and `assistant` opens the model's turn (the
    model continues right after it, for instance after `Preferred Response=`). Without, the text is
    `user + assistant` unchanged.
    """

    user: str
    assistant: str = ""
    chat: bool = True


class Ended(UserError):
    """The engine no longer answers. `answers` are those of this call, in order; None where there is none."""

    def __init__(self, why: str, answers: Sequence[Any]) -> None:
        super().__init__(why)
        self.answers = tuple(answers)


@dataclass(frozen=True)
class Generation:
    """A sampled continuation. `finished` says whether the model ended it by itself.

    `altered` names decoding settings that the engine used instead of those requested, if that changes the text.
    `usage_estimated`, here and below: the engine did not report token counts, so they are estimates.
    """

    text: str
    finished: bool
    tokens_in: int
    tokens_out: int
    tokens_cached: int = 0
    error: str | None = None
    usage_estimated: bool = False
    altered: str = ""


@dataclass(frozen=True)
class ChoiceScores:
    """Log-probability (nats) of each choice as the continuation, in the order given.

    None if the engine could not give one: then `error` says why, or the choice was outside a server's top-k.
    `token_counts` are the choices' lengths in tokens, empty if the engine cannot tell: the `score` readout needs
    them to know whether "10" begins with the token "1". `ceiling` is an upper bound for a choice that is None,
    from the lowest log-probability the server did return. `source` is `frequency` if the probabilities are
    shares of sampled answers.
    """

    logprobs: tuple[float | None, ...]
    tokens_in: int
    tokens_cached: int = 0
    error: str | None = None
    token_counts: tuple[int, ...] = ()
    tokens_out: int = 0
    ceiling: float | None = None
    source: Literal["logprob", "frequency"] = "logprob"
    usage_estimated: bool = False


@dataclass(frozen=True)
class SequenceScore:
    """Sum of the log-probabilities (nats) of a continuation's `tokens` tokens given its prompt."""

    logprob: float
    tokens: int
    tokens_in: int
    tokens_cached: int = 0
    error: str | None = None
    usage_estimated: bool = False


@dataclass(frozen=True)
class SimilarityScore:
    """Cosine similarity, from -1 to 1, of a text and a reference."""

    similarity: float
    tokens_in: int
    tokens_cached: int = 0
    error: str | None = None
    usage_estimated: bool = False


class Comparing(Protocol):
    """An engine that compares texts with references; it reads no prompts."""

    def identity(self) -> dict[str, Any]:
        """What the similarities depend on: weights, tokenizer, pooling."""
        ...

    def similarities(self, items: Sequence[tuple[str, str]]) -> list[SimilarityScore]:
        """The similarity of each (text, reference), in their order."""
        ...


class Backend(Protocol):
    """An LLM engine. All calls keep the order of their inputs."""

    def identity(self) -> dict[str, Any]:
        """What the answers depend on: engine, model, revision or hash of the weights, dtype, chat template."""
        ...

    def generate(
        self,
        prompts: Sequence[Message],
        *,
        max_new_tokens: int,
        temperature: float,
        top_k: int,
        seeds: Sequence[int],
    ) -> list[Generation]:
        """One continuation per prompt; `temperature` 0 is greedy, `top_k` 0 means no limit.

        `seeds[i]` alone determines the noise of prompt i, whatever else is in the batch.
        """
        ...

    def choice_logprobs(self, prompts: Sequence[Message], choices: Sequence[str]) -> list[ChoiceScores]:
        """Log-probability of each choice (scored as a token sequence) right after each prompt."""
        ...

    def sequence_logprobs(self, items: Sequence[tuple[Message, str]]) -> list[SequenceScore]:
        """Log-probability of each continuation given its prompt."""
        ...


@runtime_checkable
class BatchInvariant(Protocol):
    """Marks engines whose answer to a prompt does not depend on its batch.

    Then only the missing part of a batch is asked again, not the rest.
    """

    batch_invariant: Literal[True]


@runtime_checkable
class Remarking(Protocol):
    """Marks engines that report what they turned out to refuse or to leave out."""

    @property
    def remarks(self) -> tuple[str, ...]: ...


@runtime_checkable
class Altering(Protocol):
    """Marks engines that may, at some times and not at others, decode differently from what was requested."""

    def alteration(self, temperature: float) -> str:
        """What `Generation.altered` would be now at this temperature. UserError if the engine is unreachable."""
        ...
