"""Adds the generated reference to the site while it is built."""

from __future__ import annotations

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from reference_pages import pages  # noqa: E402


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Append a page for each of `reference_pages.pages()`."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files
