"""A headless Chromium for the pages' tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MACOS = ("Google Chrome.app/Contents/MacOS/Google Chrome", "Chromium.app/Contents/MacOS/Chromium")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def executable() -> str:
    """`RLAIF_CHROME`, else a Chrome or Chromium of this machine; without one the test fails."""
    named = os.environ.get("RLAIF_CHROME")
    on_path = filter(None, map(shutil.which, NAMES))
    apps = (str(file) for name in MACOS if (file := Path("/Applications", name)).is_file())
    found = named or next(on_path, None) or next(apps, None)
    if found is None:
        pytest.fail(
            "no Chrome or Chromium was found: install one (Debian: apt-get install chromium), "
            "or name its program in RLAIF_CHROME"
        )
    return found


@contextmanager
def chrome() -> Iterator[Browser]:
    """A browser that is closed at the end."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()
