"""The recipes of CONTRIBUTING.md, as edits of files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

CODE = Path(__file__).resolve().parents[2]
PRODUCT = ("rlaif", "conf", "experiments")
_BLOCK = re.compile(
    r"^\*\*`([^`]+)`\*\*(?: \(new\)|, ([^\n]+))\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Edit:
    """A text to write: a new file, or `before NAME`, `in NAME` or `at the top` of an existing one."""

    file: str
    place: str
    text: str

    def apply(self, root: Path) -> None:
        path = root / self.file
        if not self.place:
            assert not path.exists(), f"{self.file} already exists"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.text, encoding="utf-8")
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        lines.insert(self._line(lines), self.text)
        path.write_text("".join(lines), encoding="utf-8")

    def _line(self, lines: list[str]) -> int:
        """Where the text goes: the index of the line that it is inserted before."""
        if self.place == "at the top":
            return lines.index("from __future__ import annotations\n") + 1
        where, name = self.place.split(" ", 1)
        (found,) = (
            i for i, line in enumerate(lines) if re.match(rf" *{name.strip('`')}\b.*( = {{|:)$", line)
        )
        return found + (where == "in")


def read_recipes() -> dict[str, list[Edit]]:
    """By title, the edits of each section of CONTRIBUTING.md that has any."""
    sections = re.split(r"^## ", (CODE / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    edits = {part.split("\n")[0]: [Edit(*found) for found in _BLOCK.findall(part)] for part in sections}
    return {title: found for title, found in edits.items() if found}
