"""What can be removed from the artifact store: artifacts that no kept run needs, and abandoned partial work."""

from __future__ import annotations

from pathlib import Path

from rlaif.errors import UserError
from rlaif.io.lineage import LINEAGE_FILE, read_lineage
from rlaif.store.artifacts import PARTIAL_PREFIX, TRASH_PREFIX, ArtifactStore, artifact_name
from rlaif.store.manifest import Artifact

BESIDE = "answers"
"""The kind that no run names: what a policy has answered, kept to be read again."""


def unneeded(store: ArtifactStore, runs_root: Path) -> list[Artifact]:
    """Artifacts that neither a kept run's `lineage.json` nor a build in progress needs, oldest first.

    Ancestors of a needed artifact are needed, and a policy's answers as long as the policy is. Raises UserError for a
    `lineage.json` that cannot be read: treating it as empty would delete what its run needs.
    """
    artifacts = {artifact.name: artifact for artifact in store.all()}
    needed = _named_by_runs(runs_root)
    for name, holder in store.holders().items():
        needed |= {name, *holder.get("parents", [])}
    ancestors = {row.name for name in needed & artifacts.keys() for row in store.lineage(artifacts[name])}
    kept = needed | ancestors
    kept |= {name for name, one in artifacts.items() if one.kind == BESIDE and _parents(one) <= kept}
    return [artifact for name, artifact in artifacts.items() if name not in kept]


def _parents(artifact: Artifact) -> set[str]:
    return {f"{parent['kind']}-{parent['digest']}" for parent in artifact.manifest["parents"]}


def stale_partials(store: ArtifactStore) -> list[Path]:
    """Folders of unfinished or half-deleted work that no live process holds, sorted by name.

    The next run of the same command would resume from a partial folder. Delete one with `store.remove_folder`,
    which takes its lock.
    """
    folders = [*store.root.glob(f"{PARTIAL_PREFIX}*"), *store.root.glob(f"{TRASH_PREFIX}*")]
    return sorted(folder for folder in folders if not store.is_held(artifact_name(folder)))


def damaged_copies(store: ArtifactStore) -> list[Path]:
    """Damaged artifacts that were set aside, sorted by name."""
    return sorted((store.root / ".damaged").glob("*"))


def _named_by_runs(runs_root: Path) -> set[str]:
    """Names of all artifacts in the `lineage.json` files below `runs_root` (parents included)."""
    names = set()
    for file in sorted(runs_root.rglob(LINEAGE_FILE)):
        try:
            names |= {key.name for row in read_lineage(file) for key in (row, *row.parents)}
        except ValueError as error:
            raise UserError(
                f"{file} cannot be read, so what its run needs is unknown; restore it or delete its run folder, "
                "then run stage=clean again"
            ) from error
    return names
