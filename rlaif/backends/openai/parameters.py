"""Request fields that a server refuses: learned from the refusal, then left out or renamed, and reported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rlaif.backends.openai.refusals import Refusal

_NAMES = ("seed", "top_p", "max_tokens", "max_completion_tokens", "temperature")
"""What may be left out or renamed; if a refusal names several, the first that is in the request."""

_UNWANTED = re.compile(
    r"unsupported|n[o']t support|unknown|unrecogni[sz]ed|unexpected|not (?:permitted|allowed|available|accepted)"
    r"|extra (?:inputs|fields)|extra_forbidden|cannot find field|only the default|deprecated|invalid"
    r"|cannot (?:both )?be (?:specified|used|set)|must be|at least|below minimum",
    re.IGNORECASE,
)
_TOO_MUCH = re.compile(r"too (?:large|long)|context (?:length|window)|exceeds?\b", re.IGNORECASE)
_LEAST = re.compile(
    r"(?:>=|at least|greater than or equal to|minimum (?:value )?(?:of |is ))\s*(\d+)", re.IGNORECASE
)
_POSITIVE = re.compile(r"positive|greater than 0|> ?0|above 0", re.IGNORECASE)
_DEFAULT = re.compile(r"only the default \(?(\d+(?:\.\d+)?)", re.IGNORECASE)
_NEARLY_GREEDY = 0.01


class Parameters:
    """What one server has refused so far; `remarks` has one sentence for each."""

    def __init__(self) -> None:
        self.remarks: list[str] = []
        self._left_out: set[str] = set()
        self._limit = "max_tokens"
        self._least_tokens = 1
        self._least_temperature = 0.0
        self._temperature: float | None = None

    def applied(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """`body` as this server accepts it."""
        fields = {key: value for key, value in body.items() if key not in self._left_out}
        if "max_tokens" in fields:
            fields[self._limit] = max(fields.pop("max_tokens"), self._least_tokens)
        if "temperature" in fields:
            wanted = fields["temperature"] if self._temperature is None else self._temperature
            fields["temperature"] = max(wanted, self._least_temperature)
        return fields

    def alteration(self, temperature: float) -> str:
        """What is used instead when text is requested at this temperature; empty if nothing changes."""
        changes = []
        if "temperature" in self._left_out:
            changes.append("temperature left out")
        elif self._temperature not in (None, temperature):
            changes.append(f"temperature {self._temperature:g}")
        if "top_p" in self._left_out and (temperature > 0 or changes):
            changes.append("top_p left out")
        return ", ".join(changes)

    def learn(self, refusal: Refusal, sent: Mapping[str, Any]) -> str | None:
        """Learn from the refusal of `sent`. Returns a sentence if it is about a field that is dispensable."""
        name = _named(refusal, sent)
        if name is None:
            return None
        said = self._lesson(name, refusal.message, sent[name])
        if said is not None:
            self.remarks.append(said)
        return said

    def forget(self, said: str) -> None:
        """The lesson `said` changed nothing: the refusal was about something else."""
        if said not in self.remarks:
            return
        self.remarks.remove(said)
        name = said.split(" ", 1)[0]
        self._left_out.discard(name)
        if name == "max_tokens":
            self._limit, self._least_tokens = "max_tokens", 1
        if name == "temperature":
            self._least_temperature, self._temperature = 0.0, None

    def _lesson(self, name: str, message: str, value: Any) -> str | None:
        if name in ("max_tokens", "max_completion_tokens"):
            least = _LEAST.search(message)
            if least and int(least[1]) > value:
                self._least_tokens = int(least[1])
                return f"max_tokens is at least {least[1]} there, so every answer may cost that many tokens"
            if name == "max_completion_tokens":
                return None  # an answer without a limit could cost anything
            self._limit = "max_completion_tokens"
            return "max_tokens is sent as max_completion_tokens"
        if name == "temperature" and value == 0 and _POSITIVE.search(message):
            self._least_temperature = _NEARLY_GREEDY
            return f"temperature 0 is refused and sent as {_NEARLY_GREEDY}: text is practically greedy"
        default = _DEFAULT.search(message)
        if name == "temperature" and default and float(default[1]) != value:
            self._temperature = float(default[1])
            return (
                f"temperature {value:g} is refused and sent as {default[1]}, all that the server takes: text is"
                " sampled, and not greedy"
            )
        self._left_out.add(name)
        return {
            "seed": "seed is refused and left out: sampled text cannot be drawn again",
            "top_p": "top_p is refused and left out: sampled text follows the server's own",
            "temperature": f"temperature {value:g} is refused and left out: text is sampled at the server's own"
            " temperature, and not greedy",
        }[name]


def _named(refusal: Refusal, sent: Mapping[str, Any]) -> str | None:
    """The field of `sent` that the refusal is about, and that may be left out or renamed."""
    words = f"{refusal.message} {' '.join(refusal.codes)}"
    if not _UNWANTED.search(words) or _TOO_MUCH.search(words):
        return None
    if refusal.param in _NAMES and refusal.param in sent:
        return refusal.param
    known = (name for name in _NAMES if name in sent)
    return next((name for name in known if re.search(rf"(?<![\w]){name}(?![\w])", refusal.message)), None)
