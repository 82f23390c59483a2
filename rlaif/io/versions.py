"""Versions of what a result depends on, read from package metadata (nothing heavy is imported)."""

from __future__ import annotations

import platform
from importlib import metadata

from rlaif.version import __version__

_DISTRIBUTIONS = {
    "torch": "torch",
    "transformers": "transformers",
    "pytorch_lightning": "pytorch-lightning",
}


def library_versions() -> dict[str, str]:
    """Versions of python, rlaif, torch, transformers and pytorch_lightning ("absent" if not installed)."""
    versions = {"python": platform.python_version(), "rlaif": __version__}
    for name, distribution in _DISTRIBUTIONS.items():
        try:
            versions[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions
