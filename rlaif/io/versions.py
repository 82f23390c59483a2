"""Versions of what results depend on, read from package metadata (nothing heavy is imported)."""

from __future__ import annotations

import platform
from importlib import metadata

from rlaif.version import __version__


def library_versions() -> dict[str, str]:
    """Versions of python, rlaif, torch, transformers and pytorch_lightning ("absent" if not installed)."""
    versions = {"python": platform.python_version(), "rlaif": __version__}
    for name in ("torch", "transformers", "pytorch_lightning"):
        try:
            versions[name] = metadata.version(name.replace("_", "-"))
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions
