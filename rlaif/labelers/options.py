"""What defines a labeler: the four orthogonal choices, as plain values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from rlaif.errors import UserError
from rlaif.options.labeling import Averaging, LabelingOptions, OrderMode, ReadoutOptions

SCORE_PREAMBLES = ("base", "detailed")  # those for which score.j2 has a wording


@dataclass(frozen=True)
class LabelerOptions:
    """Prompt strategy x readout x order x self-consistency.

    `min_mass` is the least total probability of the next token for the choices of a `choice` or `score` readout:
    below it the answer says something else and is unparsed. `temperature` and `top_k` (0 = no limit) govern sampled
    text: the rationales, or the verdicts of a `text` readout without rationale. `batch_size` is how many prompts
    reach the backend at once and are committed to the store together. Raises UserError for a combination without
    meaning.
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
        """Whether any text is sampled."""
        return self.temperature > 0 and (self.cot or self.readout.kind == "text")

    @classmethod
    def of(cls, options: LabelingOptions, *, seed: int) -> LabelerOptions:
        """The labeler's options from its configuration, without those that a stage reads."""
        names = {field.name for field in dataclasses.fields(cls)} - {"seed"}
        return cls(**{name: getattr(options, name) for name in names}, seed=seed)

    def identity(self) -> dict[str, Any]:
        """The options that labels depend on, without those that have no effect.

        `batch_size` is not included: it changes no more than the last bits of a low-precision sum.
        """
        values: dict[str, Any] = {"readout": self._readout_identity()}
        if self.readout.kind not in ("likelihood", "reference"):
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
            if readout.direction == "forward" and readout.prior_weight != 1:
                values["prior_weight"] = float(readout.prior_weight)
        return values
