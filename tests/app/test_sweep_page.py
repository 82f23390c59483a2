"""How often a sweep's page is rendered."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from rlaif.app.report import is_due


@pytest.mark.parametrize(
    ("runs", "age", "due"),
    [(24, 0, True), (25, 0, False), (25, 12, False), (25, 13, True), (500, 249, False), (500, 251, True)],
)
def test_the_page_of_many_runs_rests_half_a_second_for_each(
    tmp_path: Path, runs: int, age: int, due: bool
) -> None:
    page = tmp_path / "reports" / "sweep-x.html"
    page.parent.mkdir()
    page.touch()
    os.utime(page, (time.time() - age,) * 2)
    assert is_due(tmp_path, "x", runs) is due
    assert is_due(tmp_path, "new", runs), "the first page never waits"
