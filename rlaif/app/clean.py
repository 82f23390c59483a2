"""stage=clean: remove artifacts that no run needs, and what crashes left behind."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from rlaif.stages.common.context import Context
from rlaif.store import damaged_copies, stale_partials, unneeded

logger = logging.getLogger(__name__)


def _size(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def clean(ctx: Context) -> dict[str, float]:
    """List and remove; with plan=true, only list."""
    freed, count = 0, 0
    for artifact in unneeded(ctx.store, ctx.root / "runs"):
        freed, count = freed + artifact.bytes, count + 1
        print(f"artifact  {artifact.name}  {artifact.bytes / 2**20:.1f} MiB  (no run needs it)")
        if not ctx.options.plan:
            ctx.store.remove(artifact)
    for folder in stale_partials(ctx.store):
        freed, count = freed + _size(folder), count + 1
        print(f"partial   {folder.name}  (left by a run that stopped)")
        if not ctx.options.plan:
            ctx.store.remove_folder(folder)
    for folder in damaged_copies(ctx.store):
        freed, count = freed + _size(folder), count + 1
        print(f"damaged   {folder.name}  (set aside earlier)")
        if not ctx.options.plan:
            shutil.rmtree(folder)
    print(f"{'would free' if ctx.options.plan else 'freed'} {freed / 2**20:.1f} MiB in {count} folders")
    return {"clean/folders": count, "clean/mib": freed / 2**20}
