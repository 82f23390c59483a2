"""One smoke pipeline, run through the API."""

from __future__ import annotations

from pathlib import Path

import pytest

import rlaif


@pytest.fixture(scope="session")
def api_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api") / "outputs"


@pytest.fixture(scope="session")
def api_run(api_root: Path) -> rlaif.RunRecord:
    return rlaif.run(["profile=smoke", "tracking=none", f"paths.root={api_root}"])
