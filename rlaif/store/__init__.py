"""The artifact store: stage outputs under a digest of what they are made from."""

from rlaif.store.artifacts import ArtifactStore, finished_folder
from rlaif.store.cleaning import damaged_copies, stale_partials, unneeded
from rlaif.store.manifest import Artifact, ArtifactSpec

__all__ = [
    "Artifact",
    "ArtifactSpec",
    "ArtifactStore",
    "damaged_copies",
    "finished_folder",
    "stale_partials",
    "unneeded",
]
