"""The fenced blocks of the documentation, and how each is run."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

CODE = Path(__file__).resolve().parents[2]
DOCS = CODE / "docs"
PAGES = [CODE / "README.md", *sorted(DOCS.rglob("*.md"))]
SERVER = "http://localhost:8000/v1"
SETUP = ("pip install ", "make ")
"""What installs, builds or tests: lines that begin so are not run here (CI and the wheel's tests do)."""

_BLOCK = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file it stands for (or ""), and its text."""

    language: str
    file: str
    text: str


def blocks_of(page: Path) -> list[Block]:
    """The page's blocks. A block without a language would be run by nothing and is refused."""
    blocks = [Block(*found) for found in _BLOCK.findall(page.read_text(encoding="utf-8"))]
    assert all(block.language for block in blocks), f"{page}: a block has no language"
    return blocks


def commands_of(block: Block) -> list[list[str]]:
    """The `rlaif` commands of a bash block, as words without the program."""
    commands = []
    for line in block.text.splitlines():
        words = shlex.split(line, comments=True)
        if not words or line.startswith(SETUP):
            continue
        assert words[0] == "rlaif", f"{line!r} is no command of rlaif's"
        commands.append(words[1:])
    return commands


def inline_commands_of(page: Path) -> list[list[str]]:
    """The `rlaif` commands in the running text, as words without the program; of a sweep, its first job."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    commands = [shlex.split(line) for line in re.findall(r"`rlaif ([^`]+)`", text)]
    return [
        [word.split(",")[0] for word in words[1:]] if words[0] == "-m" else words
        for words in commands
        if "=" in words[0] or words[0] == "-m"
    ]
