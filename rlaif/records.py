"""The records that travel between stages: frozen, checked on construction, stored as JSON lines.

task --Prompt--> sft --policy--> sample --Pair--> label --Judgement/Preference--> rm --reward model-->
rl --policy--> eval --Comparison--> report
"""

from __future__ import annotations

import dataclasses
import math
import unicodedata
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Origin = Literal["policy", "dataset"]
GoldSource = Literal["human", "simulated", "constructed", "programmatic"]
Order = Literal["ab", "ba"]
ParseState = Literal["ok", "unparsed", "failed"]
Provenance = Literal[
    "logprob", "top_k", "frequency", "score", "likelihood", "text", "scripted", "reference", "rule"
]
Outcome = Literal["win", "loss", "tie", "unparsed", "failed"]

Record = TypeVar("Record")

_ONLY_SOME = ("group", "ids", "ids_a", "ids_b", "subset")
_ONLY_SOME_PAIRS = (*_ONLY_SOME, "reference")
_BLANK = frozenset({"Zs", "Zl", "Zp", "Cc", "Cf"})  # spaces, line ends, control and invisible characters


def is_empty(response: str) -> bool:
    """Whether a response has no visible character.

    An empty response is a bad answer, not a missing one: it loses to any text and ties with another empty one.
    """
    return all(unicodedata.category(character) in _BLANK for character in response)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _freeze_ids(record: Any, *names: str) -> None:
    """A file has token ids, and other tuples, as lists."""
    for name in names:
        ids = getattr(record, name)
        object.__setattr__(record, name, None if ids is None else tuple(ids))


def _check_probability(name: str, value: float | None) -> None:
    known = value is None or (isinstance(value, int | float) and 0.0 <= value <= 1.0)
    _require(known, f"{name} must be a probability in [0, 1], got {value!r}")


class _Grouped:
    """A record of a prompt that may belong to a group of prompts.

    A group is the conversation whose turns the prompts are, or copies of one text; `group` is the id of its first
    prompt (None for that prompt itself). It is never on both sides of a split, and is resampled as a whole.
    """

    prompt_id: str
    group: str | None

    @property
    def cluster(self) -> str:
        """The group, or the prompt if it has none."""
        return self.prompt_id if self.group is None else self.group


@dataclass(frozen=True)
class Prompt:
    """An input of the policy, with the author's own answer if the task has one. `group` as in `_Grouped`."""

    id: str
    prompt: str
    reference: str | None = None
    group: str | None = None

    @property
    def cluster(self) -> str:
        """The group, or the prompt itself if it has none."""
        return self.id if self.group is None else self.group

    def __post_init__(self) -> None:
        _require(bool(self.id), "Prompt.id is empty")
        _require(bool(self.prompt.strip()), f"Prompt {self.id}: prompt is empty")


@dataclass(frozen=True)
class Pair(_Grouped):
    """Two responses to one prompt. `gold` is the probability that response **a** is better.

    `gold_source` says whose verdict it is: `human`; `simulated` (people simulated by similarity to the reference);
    `constructed` (`construction` names how the worse response was made, for instance `mismatched`); `programmatic`.
    `subset` names the part of a data set that the pair belongs to. Alignment is reported per construction and per
    subset. `reference` is the author's own answer, which a judge by reference reads and no labeler does. `ids_a` and
    `ids_b` are the tokens of responses that a policy wrote, including the one that ended them, if any: their text is
    never tokenised again.
    """

    id: str
    prompt_id: str
    prompt: str
    response_a: str
    response_b: str
    origin: Origin
    gold: float | None = None
    gold_source: GoldSource | None = None
    construction: str | None = None
    group: str | None = None
    ids_a: tuple[int, ...] | None = None
    ids_b: tuple[int, ...] | None = None
    reference: str | None = None
    subset: str | None = None

    def __post_init__(self) -> None:
        _freeze_ids(self, "ids_a", "ids_b")
        _require(bool(self.id), "Pair.id is empty")
        _require(self.origin in ("policy", "dataset"), f"Pair {self.id}: origin {self.origin!r}")
        _check_probability(f"Pair {self.id}: gold", self.gold)
        together = (self.gold is None) == (self.gold_source is None)
        _require(together, f"Pair {self.id}: gold and gold_source come together")

    @classmethod
    def between(cls, a: Sample, b: Sample, id: str | None = None) -> Pair:
        """Two samples' responses to one prompt, with their tokens. `id` defaults to the prompt's."""
        own, texts = a.prompt_id if id is None else id, (a.prompt, a.response, b.response)
        pair = cls(own, a.prompt_id, *texts, "policy", group=a.group, ids_a=a.ids, ids_b=b.ids)
        return dataclasses.replace(pair, reference=a.reference)


@dataclass(frozen=True)
class Judgement:
    """One call of the labeler on one order of one pair.

    `p_a` is the preference for response **a** whatever the order shown; it is None unless `state` is `ok`. `mass` is
    the total probability that the model put on the choices; `logprobs` are the choices' raw log-probabilities (nats)
    in the order shown, with probability zero as -inf here and as null in the file (JSON has no infinity).
    Provenance `rule` is for a pair with an empty response, about which no labeler is asked.
    """

    pair_id: str
    order: Order
    sample: int
    prompt_hash: str
    state: ParseState
    provenance: Provenance
    p_a: float | None = None
    logprobs: tuple[float, ...] = ()
    mass: float | None = None
    text: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        known = tuple(-math.inf if value is None else value for value in self.logprobs)
        object.__setattr__(self, "logprobs", known)
        name = f"Judgement of {self.pair_id}"
        finite = all(value == -math.inf or math.isfinite(value) for value in known)
        _require(finite, f"{name}: logprobs {known} are not log-probabilities")
        _require(self.order in ("ab", "ba"), f"{name}: order {self.order!r}")
        _require(self.state in ("ok", "unparsed", "failed"), f"{name}: state {self.state!r}")
        parsed = (self.p_a is not None) == (self.state == "ok")
        _require(parsed, f"{name}: p_a is present exactly when the state is ok")
        _check_probability(f"{name}: p_a", self.p_a)


@dataclass(frozen=True)
class Preference:
    """The labeler's aggregate for one pair: `p_a`, or None if nothing could be parsed.

    `p_ab` and `p_ba` are the values of the two orders, both as the preference for response a.
    """

    pair_id: str
    p_a: float | None
    p_ab: float | None
    p_ba: float | None
    samples: int
    state: ParseState
    provenance: Provenance

    def __post_init__(self) -> None:
        for name in ("p_a", "p_ab", "p_ba"):
            _check_probability(f"Preference {self.pair_id}: {name}", getattr(self, name))
        parsed = (self.p_a is not None) == (self.state == "ok")
        _require(parsed, f"Preference {self.pair_id}: p_a is present exactly when the state is ok")


@dataclass(frozen=True)
class Sample(_Grouped):
    """One response of a policy, as text with its counts (the tensors of RL are `inference.rollouts.Rollout`).

    `ids` are its tokens, including the one that ended it if it `finished`; None for a text that no policy wrote.
    """

    prompt_id: str
    prompt: str
    response: str
    tokens: int
    finished: bool
    reference: str | None = None
    group: str | None = None
    ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _freeze_ids(self, "ids")


@dataclass(frozen=True)
class Comparison(_Grouped):
    """One held-out prompt answered by two policies and judged in both orders.

    `p_policy` is the judge's averaged preference for the policy's response over the baseline's.
    """

    id: str
    prompt_id: str
    prompt: str
    policy_response: str
    baseline_response: str
    outcome: Outcome
    p_policy: float | None
    policy_tokens: int
    baseline_tokens: int
    reference: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        _check_probability(f"Comparison {self.id}: p_policy", self.p_policy)
        judged = (self.p_policy is None) == (self.outcome in ("unparsed", "failed"))
        _require(
            judged,
            f"Comparison {self.id}: p_policy is missing exactly when the outcome is unparsed or failed",
        )


@dataclass(frozen=True)
class Revision:
    """A policy's response to one prompt, criticised and rewritten by principles (Bai et al. 2022, arXiv:2212.08073).

    Round r applies `principles[r]`: `critiques[r]` is of the text before it, `revisions[r]` the text after it. `cut`:
    the last one reached the limit on new tokens. `error` says why a call failed; then there are fewer texts than
    principles. `split` is the part of the task that the prompt is from.
    """

    prompt_id: str
    prompt: str
    split: Literal["train", "validation"]
    response: str
    principles: tuple[str, ...]
    critiques: tuple[str, ...]
    revisions: tuple[str, ...]
    cut: bool = False
    error: str | None = None

    def __post_init__(self) -> None:
        _freeze_ids(self, "principles", "critiques", "revisions")
        name, rounds = f"Revision of {self.prompt_id}", len(self.principles)
        _require(rounds > 0, f"{name}: no principle")
        complete = len(self.critiques) == len(self.revisions) == rounds
        _require(complete != (self.error is not None), f"{name}: a text per round exactly if no call failed")

    @property
    def text(self) -> str:
        """The last revision; empty if a call failed."""
        return "" if self.error is not None else self.revisions[-1]

    @property
    def unchanged(self) -> bool:
        """Whether the last revision is the first response again, apart from surrounding space."""
        return self.error is None and self.text.strip() == self.response.strip()


@dataclass(frozen=True)
class TaskData:
    """The data of a task: disjoint prompt splits, training pairs and gold pairs.

    `pairs` (training candidates of a data set, possibly empty) and `gold_pairs` (for alignment, never trained on) are
    disjoint. `fingerprint` is a hash of the content. `notes` say what was read and dropped, with the place of the
    first row per reason in `examples`; `places` give the rows that prompts and pairs (by id) were made from.
    """

    name: str
    train: tuple[Prompt, ...]
    validation: tuple[Prompt, ...]
    test: tuple[Prompt, ...]
    pairs: tuple[Pair, ...]
    gold_pairs: tuple[Pair, ...]
    fingerprint: str
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    examples: dict[str, str] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    places: dict[str, str] = dataclasses.field(default_factory=dict, compare=False, repr=False)


def to_dict(record: Any) -> dict[str, Any]:
    """A record as plain JSON-able data: missing values and log-probabilities of -inf are None.

    What only some records have (a group, ids, a pair's subset and reference) is left out if there is none.
    """
    row = dataclasses.asdict(record)
    for name in _ONLY_SOME_PAIRS if isinstance(record, Pair) else _ONLY_SOME:
        if row.get(name, "") is None:
            del row[name]
    if isinstance(record, Judgement):
        row["logprobs"] = [None if value == -math.inf else value for value in record.logprobs]
    return row


def from_dict(kind: type[Record], row: dict[str, Any]) -> Record:
    """Read a record back; an unknown or missing column raises TypeError, a bad value ValueError."""
    return kind(**row)
