"""Fences around judged text, so that the text cannot decide where it begins and ends.

A fence is `<<<label`, the text, `>>>`, each on its own lines. Inside the text, runs of three or more angle brackets
and the turn markers of common chat templates are split with spaces, so that the text can neither close its fence,
open another, nor start a turn.

By convention the label of a judged response ends in its number (`summary 1`); that of a context does not.
"""

from __future__ import annotations

import re

_RUNS = re.compile(r"<{3,}|>{3,}")
_MARKER_NAMES = r"s|bos|eos|sop|eop|pad|unk|mask|think|filename|reponame|[A-Za-z]+(?:_[A-Za-z0-9]+)+"
_BRACKET_NAMES = (
    r"INST|gMASK|THINK|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|ARGS|IMG"
)
_MARKERS = re.compile(
    rf"(?P<open><(?=[|｜])|<(?=/?(?:{_MARKER_NAMES})>)|<(?=</?SYS>>)|\[(?=/?(?:{_BRACKET_NAMES})\]))|(?P<close>(?<=[|｜])>)"
)
_FENCE = re.compile(r"^<<<([^\n<>]*)\n(.*?)\n>>>$", re.MULTILINE | re.DOTALL)


def neutralise(text: str) -> str:
    """`text` without anything that could end its fence or open a chat turn.

    Only spaces are added, so a reader still sees every character; a second application changes nothing.
    """
    apart = _RUNS.sub(lambda match: " ".join(match.group()), text)
    return _MARKERS.sub(lambda match: f"{match['open']} " if match["open"] else f" {match['close']}", apart)


def fence(label: str, text: str) -> str:
    """`text` between the delimiters of `label`, neutralised."""
    return f"<<<{label}\n{neutralise(text)}\n>>>"


def read_fences(prompt: str) -> list[tuple[str, str]]:
    """The fences of a rendered prompt as (label, text), in order."""
    return [(match[1], match[2]) for match in _FENCE.finditer(prompt)]
