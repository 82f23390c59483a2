"""What a labeler is: the four orthogonal choices, as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rlaif.errors import UserError

ReadoutKind = Literal["choice", "score", "likelihood", "text"]
Direction = Literal["forward", "reverse"]
Normalize = Literal["none", "tokens"]
OrderMode = Literal["first", "random", "both", "both_consistent"]
Averaging = Literal["prob", "logit"]
Retry = Literal["unparsed", "failed", "all"]

SCORE_PREAMBLES = ("base", "detailed")  # of which score.j2 has a wording
STAGE_KEYS = frozenset(
    {"name", "backend", "scripted", "max_unparsed", "min_alignment", "budget_usd", "max_seconds", "retry"}
)
"""Keys of a labeler's config that the stage reads and the labeler does not."""


def _one_of(key: str, value: object, allowed: Any) -> None:
    names = get_args(allowed)
    if value not in names:
        raise UserError(f"labeler.{key} is {value!r}; write one of {', '.join(names)}")


def _at_least(key: str, value: float, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
        raise UserError(f"labeler.{key} is {value!r}; write a number of at least {least}")


@dataclass(frozen=True)
class ReadoutOptions:
    """How a number is read from the model.

    `temperature` divides the choices' log-probabilities (`choice`) or the difference of the two
    responses' scores (`score`, `likelihood`) before the softmax or sigmoid that gives `p_a`.
    `direction` and `normalize` belong to `likelihood`, `max_tokens` (new tokens of a verdict) to `text`.
    """

    kind: ReadoutKind
    temperature: float
    direction: Direction
    normalize: Normalize
    max_tokens: int

    def __post_init__(self) -> None:
        _one_of("readout.kind", self.kind, ReadoutKind)
        _one_of("readout.direction", self.direction, Direction)
        _one_of("readout.normalize", self.normalize, Normalize)
        _at_least("readout.max_tokens", self.max_tokens, 1)
        if not self.temperature > 0:
            raise UserError(f"labeler.readout.temperature is {self.temperature!r}; write a number above 0")

    @property
    def pointwise(self) -> bool:
        """Whether each response is read by itself, so that a pair has no positions."""
        return self.kind in ("score", "likelihood")


@dataclass(frozen=True)
class LabelerOptions:
    """Prompt strategy x readout x order x self-consistency.

    `min_mass` is the least probability of the next token that the choices of a `choice` or `score` readout
    must carry together: below it the answer says something else, and is unparsed.
    `temperature` and `top_k` (0 = no limit) govern sampled text: the rationales, or the verdicts of a
    `text` readout without rationale. `batch_size` is how many prompts reach the backend at once and
    are committed to the store together. Raises UserError for a value or combination without meaning.
    """

    preamble: str
    exemplars: int
    cot: bool
    readout: ReadoutOptions
    order: OrderMode
    averaging: Averaging
    samples: int
    temperature: float
    top_k: int
    max_rationale_tokens: int
    min_mass: float
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        _one_of("order", self.order, OrderMode)
        _one_of("averaging", self.averaging, Averaging)
        for key, least in (("exemplars", 0), ("temperature", 0), ("top_k", 0)):
            _at_least(key, getattr(self, key), least)
        for key in ("samples", "max_rationale_tokens", "batch_size"):
            _at_least(key, getattr(self, key), 1)
        if isinstance(self.min_mass, bool) or not (
            isinstance(self.min_mass, int | float) and 0 <= self.min_mass <= 1
        ):
            raise UserError(f"labeler.min_mass is {self.min_mass!r}; write a probability from 0 to 1")
        self._check_combination()

    def _check_combination(self) -> None:
        kind = self.readout.kind
        if self.readout.pointwise and (self.cot or self.exemplars):
            raise UserError(
                f"labeler.readout.kind={kind} rates each response by itself and takes neither rationale nor"
                " exemplars; write labeler.cot=false labeler.exemplars=0"
            )
        if kind == "score" and self.preamble not in SCORE_PREAMBLES:
            raise UserError(
                f"labeler.preamble={self.preamble} says nothing in score.j2, which words the readout score: write"
                f" labeler.preamble={' or '.join(SCORE_PREAMBLES)}, or another labeler.readout.kind"
            )
        if self.samples > 1 and not self.sampled:
            raise UserError(
                f"labeler.samples={self.samples} would repeat one answer; write labeler.cot=true (or"
                " labeler.readout.kind=text) with labeler.temperature above 0, or labeler.samples=1"
            )

    @property
    def sampled(self) -> bool:
        """Whether any text is drawn at random."""
        return self.temperature > 0 and (self.cot or self.readout.kind == "text")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, seed: int) -> LabelerOptions:
        """Options from a labeler's resolved config (the stage's own keys are passed over).

        Raises UserError for a key that is unknown or missing.
        """
        own = {key: value for key, value in values.items() if key not in STAGE_KEYS}
        names = {field.name for field in dataclasses.fields(cls)} - {"seed"}
        _check_keys("labeler", own, names)
        readout = own.pop("readout")
        if not isinstance(readout, Mapping):
            raise UserError("labeler.readout is not a mapping; set labeler.readout.kind instead")
        _check_keys("labeler.readout", readout, {field.name for field in dataclasses.fields(ReadoutOptions)})
        return cls(**own, readout=ReadoutOptions(**readout), seed=seed)

    def identity(self) -> dict[str, Any]:
        """The options that labels depend on, with those that have no effect left out.

        `batch_size` is not among them: it moves no more than the last bits of a low-precision sum.
        """
        values: dict[str, Any] = {"readout": self._readout_identity()}
        if self.readout.kind != "likelihood":
            values["preamble"] = self.preamble
        if not self.readout.pointwise:
            values |= {"exemplars": self.exemplars, "cot": self.cot, "order": self.order}
            if self.order in ("both", "both_consistent"):
                values["averaging"] = self.averaging
            if self.cot:
                values["max_rationale_tokens"] = self.max_rationale_tokens
        if self.sampled:
            values |= {"samples": self.samples, "temperature": self.temperature, "top_k": self.top_k}
        if self.sampled or (self.order == "random" and not self.readout.pointwise):
            values["seed"] = self.seed
        return values

    def _readout_identity(self) -> dict[str, Any]:
        readout = self.readout
        values: dict[str, Any] = {"kind": readout.kind}
        if readout.kind == "text":
            return values | {"max_tokens": readout.max_tokens}
        values["temperature"] = readout.temperature
        if readout.kind in ("choice", "score"):
            values["min_mass"] = float(self.min_mass)
        if readout.kind == "likelihood":
            values |= {"direction": readout.direction, "normalize": readout.normalize}
        return values


def check_retry(key: str, value: object) -> Retry | None:
    """The value of `<key>.retry`. Raises UserError for one that is not known."""
    if value is not None and value not in get_args(Retry):
        raise UserError(f"{key}.retry is {value!r}; write one of {', '.join(get_args(Retry))}, or null")
    return value  # type: ignore[return-value]


def _check_keys(place: str, values: Mapping[str, Any], names: set[str]) -> None:
    unknown, missing = sorted(set(values) - names), sorted(names - set(values))
    if unknown:
        raise UserError(
            f"{place}.{unknown[0]} is no option of a labeler; write one of {', '.join(sorted(names))}"
        )
    if missing:
        raise UserError(f"{place}.{missing[0]} is missing; set it in the labeler's file under conf/labeler")
