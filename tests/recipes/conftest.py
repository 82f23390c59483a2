"""CONTRIBUTING.md carried out: every recipe is applied to a copy of the checkout, and its command is run there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from recipe_edits import CODE, PRODUCT, read_recipes


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the product with all recipes applied."""
    root = tmp_path_factory.mktemp("scratch") / "checkout"
    skip = shutil.ignore_patterns("__pycache__")
    for name in PRODUCT:
        shutil.copytree(CODE / name, root / name, symlinks=True, ignore=skip)
    (root / "tests").mkdir()
    shutil.copy(CODE / "tests" / "jobs.py", root / "tests")
    shutil.copy(Path(__file__).with_name("commands.py"), root / "tests")
    for edits in read_recipes().values():
        for edit in edits:
            edit.apply(root)
    rows = [
        {
            "prompt": f"What has {i} keys and opens no lock?",
            "response_a": "A piano." if i % 3 else "Something that is of no use for it at all.",
            "response_b": "Some other thing, I suppose." if i % 3 else "A piano.",
            "label": 1.0 if i % 3 else 0.0,
        }
        for i in range(60)
    ]
    (root / "riddles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="session")
def told(scratch: Path) -> dict[str, dict[str, Any]]:
    """The results of `commands.py` in the copy: by recipe title, the run's summary or `error`."""
    environment = {**os.environ, "PYTHONPATH": str(scratch), "RLAIF_ROOT": str(scratch)}
    done = subprocess.run(
        [sys.executable, str(scratch / "tests" / "commands.py")],
        cwd=scratch,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((scratch / "told.json").read_text())
