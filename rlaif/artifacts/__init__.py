"""The artifact store: stage outputs under a digest of what they are made from."""

from rlaif.artifacts.cleaning import damaged_copies, stale_partials, unneeded
from rlaif.artifacts.store import Artifact, ArtifactSpec, ArtifactStore, finished_folder

__all__ = [
    "Artifact",
    "ArtifactSpec",
    "ArtifactStore",
    "damaged_copies",
    "finished_folder",
    "stale_partials",
    "unneeded",
]
