"""What a page says first: a sentence, its tone, and what speaks against believing it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tone = Literal["win", "loss", "open", "none"]


@dataclass(frozen=True)
class Verdict:
    """`tone` is `win` or `loss` only when the interval leaves 50% out and the test agrees."""

    sentence: str
    tone: Tone
    warnings: tuple[str, ...] = ()
