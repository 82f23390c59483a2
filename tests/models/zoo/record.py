"""What held for which type of model, for the page that lists it."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from torch import nn


class Record:
    """Checks that passed, by type; written to the file that an environment variable names, if it is set."""

    def __init__(self, variable: str) -> None:
        self._variable = variable
        self._families: dict[str, dict] = {}

    def __call__(self, name: str, check: str, model: nn.Module | None = None) -> None:
        """`check` held for the type `name`."""
        entry = self._families.setdefault(name, {"held": []})
        entry["held"].append(check)
        if model is not None:
            entry["class"] = type(model).__name__

    def write(self) -> None:
        target = os.environ.get(self._variable)
        if not target:
            return
        versions = {package: version(package) for package in ("torch", "transformers")}
        found = {
            "date": datetime.now(UTC).date().isoformat(),
            "versions": versions,
            "families": self._families,
        }
        Path(target).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
