"""Which code a sweep was started with: versions, commit, and a digest of each file that can change a result."""

from __future__ import annotations

import ast
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlaif.app.home import CODE
from rlaif.io import digest
from rlaif.io.versions import library_versions

_PACKAGE = Path(__file__).resolve().parents[2]
# What starts jobs, and what reads their runs once they are over. (Configuration is compared as it is resolved.)
_NO_RESULTS = ("app", "figures", "report", "tracking", "api.py", "version.py")


def code_state() -> dict[str, Any]:
    """`versions` of Python and of libraries, `commit` (None outside git), `dirty`, and `files` with their digests.

    Comments, docstrings and formatting are not in a digest, and neither is a file that cannot change a result.
    """
    commit, dirty = _git()
    versions = library_versions() | {"python": ".".join(platform.python_version_tuple()[:2])}
    return {"versions": versions, "commit": commit, "dirty": dirty, "files": dict(_files())}


def _files() -> Iterator[tuple[str, str]]:
    for file in sorted(_PACKAGE.rglob("*.py")):
        own = file.relative_to(_PACKAGE)
        if own.parts[0] not in _NO_RESULTS:
            yield f"rlaif/{own.as_posix()}", digest(_meaning(file.read_text(encoding="utf-8")), 16)
    for file in sorted((CODE / "conf" / "templates").rglob("*")):
        if file.is_file():
            yield file.relative_to(CODE).as_posix(), digest(file.read_text(encoding="utf-8"), 16)


def _meaning(source: str) -> str:
    """The syntax tree without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                first.value = ast.Constant("")
    return ast.dump(tree)


def _git() -> tuple[str | None, bool]:
    """The checkout's commit, and whether tracked files differ from it."""
    try:
        commit = _asked("rev-parse", "HEAD")
        return (
            (commit, bool(_asked("status", "--porcelain", "--untracked-files=no")))
            if commit
            else (None, False)
        )
    except (OSError, subprocess.SubprocessError):
        return None, False


def _asked(*words: str) -> str:
    command = ["git", *words]
    done = subprocess.run(command, cwd=_PACKAGE, capture_output=True, text=True, timeout=10, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def commit_text(code: Mapping[str, Any]) -> str:
    """A commit as people write it: 8 digits, and whether it was changed."""
    commit = code.get("commit")
    return f"{str(commit)[:8]}{' with changes' if code.get('dirty') else ''}" if commit else "no commit"
