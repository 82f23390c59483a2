"""What a page says first: a sentence, its tone, and reasons to doubt it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tone = Literal["win", "loss", "open", "none"]


@dataclass(frozen=True)
class Verdict:
    """`tone` is `win` or `loss` only if the interval excludes 50% and the test agrees."""

    sentence: str
    tone: Tone
    warnings: tuple[str, ...] = ()
