"""How much of a labeling gave no value, and why, in one sentence: failed calls, answers that name no choice."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlaif.labelers.readout.readouts import Reading
from rlaif.records import Judgement

_CAUSES = 3  # distinct causes that a sentence names
_LONGEST = 200  # characters per cause


@dataclass(frozen=True)
class Unread:
    """Counts over all calls: `unparsed` (of which `low_mass` put too little on the choices) and `failed`.

    `mass` is the mean probability on the choices (None without any); `causes` are the messages of failed calls with
    their counts, most frequent first.
    """

    asked: int
    unparsed: int
    failed: int
    low_mass: int
    mass: float | None
    causes: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, rows: Iterable[Judgement | Reading], *, min_mass: float) -> Unread:
        """Counts over judgements, or over readings of single responses; what a rule decided is left out."""
        rows = [row for row in rows if row.provenance != "rule"]
        masses = [row.mass for row in rows if row.mass is not None]
        low = [r for r in rows if r.state == "unparsed" and r.mass is not None and r.mass < min_mass]
        said = Counter(_cause(row) for row in rows if row.state == "failed")
        return cls(
            asked=len(rows),
            unparsed=sum(row.state == "unparsed" for row in rows),
            failed=sum(row.state == "failed" for row in rows),
            low_mass=len(low),
            mass=math.fsum(masses) / len(masses) if masses else None,
            causes=tuple(said.most_common()),
        )

    @property
    def rate(self) -> float:
        """The share without a value."""
        return (self.unparsed + self.failed) / max(self.asked, 1)

    def sentence(self, key: str, what: str, *, limit: float, min_mass: float, hints: Sequence[str]) -> str:
        """Why a run stops above `limit`; `key` is `labeler` or `judge`; `hints` help with too little mass."""
        verb = "failed" if not self.unparsed else "gave no value" if self.failed else "could not be read"
        parts = []
        if self.failed:
            parts.append(f"{self.failed} of {self.asked} calls failed ({self._said()})")
        if self.low_mass:
            parts.append(
                f"in {self.low_mass} of {self.asked} the choices carry less than {key}.min_mass={min_mass:g} of the"
                f" next token (mean of all {self.mass:.2%}): write {', '.join(hints)}, or a lower {key}.min_mass"
            )
        if self.unparsed > self.low_mass:
            rest = self.unparsed - self.low_mass
            parts.append(f"{rest} of {self.asked} name no choice: change the prompt or the readout")
        again = f" ({key}.retry=unparsed asks again)" if self.unparsed else ""
        return (
            f"{self.rate:.1%} of {what} {verb}, more than {key}.max_unparsed={limit}: {'; '.join(parts)}."
            f" The answers are kept{again}"
        )

    def _said(self) -> str:
        shown = [f"{count} x: {cause}" for cause, count in self.causes[:_CAUSES]]
        more = len(self.causes) - len(shown)
        return "; ".join(shown) + (f"; and {more} other causes" if more else "")


def _cause(row: Judgement | Reading) -> str:
    text = " ".join((row.text if isinstance(row, Judgement) else row.note).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
