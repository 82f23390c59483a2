"""How a refusal opens: one rule for the refusal rate and for the report's marker, with its phrases in a text file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlaif.errors import UserError
from rlaif.records import is_empty

REFUSALS_FILE = "refusals.txt"  # of the task's templates, or of `_common`
_SENTENCES = 2  # of a response that may open with a refusal
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\s*\n\s*")
_BUT = re.compile(r"\bbut\b", re.IGNORECASE)
_CONTRACTIONS = (
    (r"\bcan'?t\b|\bcan not\b", "cannot"),
    (r"\bwon't\b", "will not"),
    (r"n't\b", " not"),
    (r"'m\b", " am"),
    (r"'re\b", " are"),
    (r"'d\b", " would"),
    (r"'ve\b", " have"),
    (r"'ll\b", " will"),
    (r"\b(it|that|this)'s\b", r"\1 is"),
)


@dataclass(frozen=True)
class Refusals:
    """`opening`: the pattern of what opens a refusal, in words as `normalised` makes them."""

    opening: re.Pattern[str]

    @classmethod
    def load(cls, path: Path) -> Refusals:
        """Read and check the file of phrases. Raises UserError for one that cannot be used."""
        return cls(_pattern(path))

    def refused(self, response: str) -> bool:
        """Whether a question got no answer: the response is empty, or opens like a refusal.

        Its first two sentences count, and what follows a `but` in them. The rule is blind to what comes later, to a
        refusal in other words (a change of subject, a counter-question, another language), and to an answer given
        after all behind a refusing opening.
        """
        if is_empty(response):
            return True
        sentences = _SENTENCE_END.split(response.strip())[:_SENTENCES]
        clauses = [clause for sentence in sentences for clause in _BUT.split(sentence)]
        return any(self.opening.match(normalised(clause)) for clause in clauses)


def normalised(text: str) -> str:
    """Lower-case words, contractions written out, without punctuation."""
    plain = text.lower().replace("\u2019", "'").replace("\u2018", "'")
    for pattern, words in _CONTRACTIONS:
        plain = re.sub(pattern, words, plain)
    return " ".join(re.findall(r"\w+", plain))


def text_lines(path: Path) -> list[str]:
    """The lines of a text that people edit. Raises UserError if it is missing or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"{path}: this file is missing: write it, or take the one of conf/templates/_common"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from error


def _pattern(path: Path) -> re.Pattern[str]:
    """Any number of lead-ins, then an opening."""
    given = [line.strip() for line in text_lines(path) if line.strip() and not line.lstrip().startswith("#")]
    leads = [_alternatives(line[1:]) for line in given if line.startswith("+")]
    openings = [_alternatives(line) for line in given if not line.startswith("+")]
    if not all((*openings, *leads)) or not openings:
        raise UserError(f"{path}: write how a refusal opens, one opening per line (+ before a lead-in)")
    lead = f"(?:(?:{'|'.join(leads)}) )*" if leads else ""
    return re.compile(rf"{lead}(?:{'|'.join(openings)})\b")


def _alternatives(line: str) -> str:
    """`a/b c` as a pattern of normalised words."""
    words: Sequence[Sequence[str]] = [
        [normalised(one) for one in word.split("/") if normalised(one)] for word in line.split()
    ]
    return " ".join(f"(?:{'|'.join(map(re.escape, own))})" for own in words if own)
