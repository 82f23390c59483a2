"""The trunk's activations of a set of texts: computed once, kept on disk, read by every arm and seed.

Texts that share a prompt (the two responses of a pair) share its forward pass.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlaif.inference.batches import length_buckets
from rlaif.inference.packing import SharedPrefix, pack
from rlaif.io import digest
from rlaif.models.load import LanguageModel
from rlaif.models.split import Trunk

MAX_TOKENS = 3072
MAX_ROWS = 128


@torch.no_grad()
def _group_features(trunk: Trunk, groups: Sequence[SharedPrefix], device: str) -> list[tuple[Tensor, ...]]:
    """Features (P + S, D) of prefix + suffix for every suffix of every group."""
    packed = pack(groups, device)
    rows = trunk(packed.ids, packed.attend, packed.positions, packed.max_position)
    return [
        tuple(torch.cat((row[: len(group.prefix)], row[start:end])) for start, end in group.spans())
        for row, group in zip(rows, groups, strict=True)
    ]


def compute_features(
    model: LanguageModel, groups: Sequence[SharedPrefix], progress: Callable[[int], None] | None = None
) -> list[tuple[Tensor, ...]]:
    """Features of every group's texts, in order: (P + S, D) in the compute dtype, or ids (P + S,) if `full`."""
    if model.trunk.full:
        return [tuple(torch.tensor([*g.prefix, *s]) for s in g.suffixes) for g in groups]
    results: list[tuple[Tensor, ...]] = [()] * len(groups)
    for indices in length_buckets([len(g) for g in groups], max_tokens=MAX_TOKENS, max_rows=MAX_ROWS):
        computed = _group_features(model.trunk, [groups[i] for i in indices], model.device)
        for index, texts in zip(indices, computed, strict=True):
            results[index] = tuple(text.cpu() for text in texts)
        if progress:
            progress(len(indices))
    return results


@dataclass(frozen=True)
class FeatureCache:
    """Features on disk, one memory-mapped file for each (model, split, set of texts); the oldest go first.

    Args:
        directory: where the files lie.
        max_bytes: the files' total size above which the least recently used are removed.
    """

    directory: Path
    max_bytes: int

    def get(
        self,
        model: LanguageModel,
        groups: Sequence[SharedPrefix],
        progress: Callable[[int], None] | None = None,
    ) -> list[tuple[Tensor, ...]]:
        """Features of `groups`, computed at most once for each set of texts."""
        if model.trunk.full:
            return compute_features(model, groups)
        content = [[list(g.prefix), [list(s) for s in g.suffixes]] for g in groups]
        key = digest([model.identity, model.trunk.top_layers, str(model.trunk.dtype), content], 24)
        path = self.directory / f"{key}.safetensors"
        if not path.exists():
            self._write(path, compute_features(model, groups, progress))
            self._evict(keep=path)
        os.utime(path)
        return self._read(path, groups)

    def _write(self, path: Path, features: list[tuple[Tensor, ...]]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        save_file({"features": torch.cat([text for texts in features for text in texts])}, temporary)
        os.replace(temporary, path)

    def _read(self, path: Path, groups: Sequence[SharedPrefix]) -> list[tuple[Tensor, ...]]:
        with safe_open(path, framework="pt") as file:
            flat = file.get_tensor("features")
        sizes = [len(g.prefix) + len(s) for g in groups for s in g.suffixes]
        texts = iter(flat.split(sizes))
        return [tuple(next(texts) for _ in g.suffixes) for g in groups]

    def _evict(self, keep: Path) -> None:
        files = sorted(self.directory.glob("*.safetensors"), key=lambda f: f.stat().st_mtime)
        total = sum(f.stat().st_size for f in files)
        for file in files:
            if total <= self.max_bytes:
                return
            if file != keep:
                total -= file.stat().st_size
                file.unlink(missing_ok=True)
