"""The trunk's activations of texts: computed once, kept on disk by content, read by every arm, seed and subset.

A prompt's activations are kept once and each response's separately, under digests of the tokens that determine
them. So whatever set of texts is requested, only what no earlier set contained is computed.

Decoding computes the same activations token by token; what it has computed can be stored here (`storing`). It differs
from a packed pass by rounding, so the last bits of what is read depend on which of the two stored a text first.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlaif.inference.batches import forward_batches
from rlaif.inference.packing import SharedPrefix, pack, portions
from rlaif.io import digest
from rlaif.models.load import LanguageModel
from rlaif.models.split import Trunk

logger = logging.getLogger(__name__)

VERSION = 1  # of a shard's layout and of the arithmetic that fills it
MAX_ROWS = 128
MAX_RESPONSE_TOKENS = 1024  # after a short prompt in one row: the cost of attention is quadratic
SHARD_BYTES = 128 * 2**20
ABANDONED_SECONDS = 3600.0  # age at which an unfinished file is taken to have no writer any more


@dataclass(frozen=True)
class GroupFeatures:
    """Features of a group on the CPU: prefix (P, D), each suffix (S, D); ids (P,), (S,) if the model is `full`.

    They are views of memory-mapped files in the compute dtype: what is read stays in the system's file cache
    and takes no memory of this process.
    """

    prefix: Tensor
    suffixes: tuple[Tensor, ...]


@dataclass(frozen=True)
class _Row:
    """A packed row to compute, and the places of its parts: (key, start, end)."""

    group: SharedPrefix
    parts: tuple[tuple[str, int, int], ...]


def _key(ids: Sequence[int], after: str = "") -> str:
    return hashlib.blake2b(array("q", ids).tobytes(), digest_size=16, key=after.encode()).hexdigest()


def _keys(group: SharedPrefix) -> tuple[str, ...]:
    """The names of a group's parts in the cache: of its prefix, then of each suffix."""
    prefix = _key(group.prefix)
    return prefix, *(_key(suffix, after=prefix) for suffix in group.suffixes)


def _rows(
    groups: Sequence[SharedPrefix], keys: Sequence[tuple[str, ...]], held: Set[str], packs: bool
) -> list[_Row]:
    """What is not held yet: each prompt with all its missing responses in one row (or a few, if there are many).

    For a model that does not pack, each response is in a row of its own.
    """
    missing: dict[tuple[str, tuple[int, ...]], dict[str, tuple[int, ...]]] = {}
    for group, (key, *names) in zip(groups, keys, strict=True):
        if not {key, *names} <= held:
            own = missing.setdefault((key, group.prefix), {})
            own.update((k, s) for k, s in zip(names, group.suffixes, strict=True) if k not in held)
    rows = []
    for (key, prefix), responses in missing.items():
        names, texts = list(responses), list(responses.values())
        parts = [] if key in held else [(key, 0, len(prefix))]
        # A prompt whose responses are all held is a row by itself.
        room = max(MAX_RESPONSE_TOKENS, 2 * len(prefix)) if packs else 0
        for portion in portions(list(map(len, texts)), room) or [[]]:
            group = SharedPrefix(prefix, tuple(texts[i] for i in portion))
            parts += [(names[i], *span) for i, span in zip(portion, group.spans(), strict=True)]
            rows.append(_Row(group, tuple(parts)))
            parts = []
    return rows


def _compute(trunk: Trunk, rows: Sequence[_Row], device: str) -> Tensor:
    """Features (N, D) of all parts of the rows, one after another, on the CPU."""
    packed = pack([row.group for row in rows], device)
    features = trunk(packed.ids, packed.attend, packed.positions, packed.max_position)
    return torch.cat(
        [own[start:end] for own, row in zip(features, rows, strict=True) for _, start, end in row.parts]
    ).cpu()


def _checksum(features: Tensor) -> str:
    return str(zlib.crc32(features.view(torch.uint8).numpy().data))


def _open(path: Path, wanted: Set[str]) -> dict[str, Tensor]:
    """Views of the wanted parts in a shard. A damaged or absent file raises whatever its readers raise."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        spans = {key: span for key, span in json.loads(metadata["parts"]).items() if key in wanted}
        if not spans:
            return {}
        features = file.get_tensor("features")
    if _checksum(features) != metadata["crc32"]:
        raise ValueError("its checksum does not match")
    return {key: features[start:end] for key, (start, end) in spans.items()}


class _Shards:
    """The shards of one model as seen by one call: parts found or written so far, and the files in use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts: dict[str, Tensor] = {}
        self.used: set[Path] = set()

    def find(self, wanted: Set[str]) -> None:
        """Map the wanted parts that are on disk; a damaged shard is removed."""
        missing = wanted - self.parts.keys()
        for path in sorted(self.folder.glob("*.safetensors")):
            if not missing:
                return
            try:
                found = _open(path, missing)
            except FileNotFoundError:  # evicted by another process
                continue
            except RuntimeError:  # the same, seen by torch, which reopens the file by name
                if path.exists():
                    raise
                continue
            except (SafetensorError, KeyError, TypeError, ValueError) as error:
                logger.warning("trunk cache: %s is damaged (%s); removed, to be computed again", path, error)
                path.unlink(missing_ok=True)
                continue
            if found:
                self._use(path, found)
                missing -= found.keys()

    def write(self, parts: Sequence[tuple[str, int]], features: Sequence[Tensor]) -> None:
        """Store parts (key, length), whose features (., D) come one after another, and map what was stored."""
        joined = torch.cat(tuple(features))
        ends = accumulate(length for _, length in parts)
        spans = {key: (end - length, end) for (key, length), end in zip(parts, ends, strict=True)}
        path = self.folder / f"{digest(list(spans), 24)}.safetensors"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        metadata = {"parts": json.dumps(spans, allow_nan=False), "crc32": _checksum(joined)}
        try:
            save_file({"features": joined}, temporary, metadata)
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            # Mapped before it is renamed: under its final name another process may evict it at once.
            stored = _open(temporary, spans.keys())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)  # half a shard would take space on a full disk
            raise
        self._use(path, stored)

    def _use(self, path: Path, parts: dict[str, Tensor]) -> None:
        self.parts |= parts
        self.used.add(path)
        with suppress(FileNotFoundError):
            os.utime(path)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One process at a time computes for this model; the others wait and then find what it stored."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "writing.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            logger.info("waiting for another process's trunk pass over the same model")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


class _Decoded:
    """Parts that decoding has computed, on their way to the shards: at most one shard of them is in memory.

    Once they would take more than the cache may, further ones are left out.
    """

    def __init__(self, cache: FeatureCache, shards: _Shards) -> None:
        self._cache, self._shards, self._room = cache, shards, cache.max_bytes
        self._open: dict[str, Tensor] = {}
        shards.folder.mkdir(parents=True, exist_ok=True)

    def add(self, prompt: Sequence[int], response: Sequence[int], features: Tensor) -> None:
        keys = _keys(SharedPrefix(tuple(prompt), (tuple(response),)))
        for key, part in zip(keys, features.split((len(prompt), len(response))), strict=True):
            if key not in self._open and key not in self._shards.parts and part.nbytes <= self._room:
                self._room -= part.nbytes
                self._open[key] = part.to("cpu", copy=True)  # a view would keep the whole text's features
        if sum(part.nbytes for part in self._open.values()) >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what no shard has yet."""
        self._shards.find(self._open.keys())
        new = {key: part for key, part in self._open.items() if key not in self._shards.parts}
        if new:
            self._shards.write([(key, len(part)) for key, part in new.items()], list(new.values()))
            self._cache.evict(keep=self._shards.used)
        self._open = {}


Store = Callable[[Sequence[int], Sequence[int], Tensor], None]
"""`store(prompt, response, features)`: keep the features (P + R, D) of a prompt and its response, given as ids."""


@dataclass(frozen=True)
class FeatureCache:
    """Features on disk, in shards per (model, split, dtype); the least recently used are removed first.

    Args:
        directory: where the shards are, one folder per (model, split, dtype).
        max_bytes: total file size above which shards are removed, except those that the call itself uses.
    """

    directory: Path
    max_bytes: int

    def get(
        self,
        model: LanguageModel,
        groups: Sequence[SharedPrefix],
        progress: Callable[[int], None] | None = None,
    ) -> list[GroupFeatures]:
        """Features of each group, in order; `progress` receives the number of packed rows just computed.

        Shards are written as they fill up: a killed process loses at most the last one.
        """
        if model.trunk.full:
            return [
                GroupFeatures(torch.tensor(g.prefix), tuple(torch.tensor(s) for s in g.suffixes))
                for g in groups
            ]
        keys = [_keys(group) for group in groups]
        wanted = {name for names in keys for name in names}
        shards = _Shards(self._folder(model))
        shards.find(wanted)
        if wanted - shards.parts.keys():
            with shards.writing():
                shards.find(wanted)
                self._fill(
                    model, shards, _rows(groups, keys, shards.parts.keys(), model.trunk.packs), progress
                )
        return [
            GroupFeatures(prefix, tuple(suffixes))
            for prefix, *suffixes in ([shards.parts[name] for name in names] for names in keys)
        ]

    @contextmanager
    def storing(self, model: LanguageModel) -> Iterator[Store | None]:
        """Store features that decoding has computed, so that `get` finds them; None if none would be kept.

        None would be with `max_bytes` 0, and for a model without a trunk. What would not fit into `max_bytes` is left
        out, for `get` to compute, and what is on disk already is not stored again. At most one shard is in memory;
        it is lost if the block raises.
        """
        if model.trunk.full or not self.max_bytes:
            yield None
            return
        decoded = _Decoded(self, _Shards(self._folder(model)))
        yield decoded.add
        decoded.flush()

    def _folder(self, model: LanguageModel) -> Path:
        trunk = model.trunk
        return self.directory / digest([VERSION, model.identity, trunk.top_layers, str(trunk.dtype)], 24)

    def _fill(
        self,
        model: LanguageModel,
        shards: _Shards,
        rows: Sequence[_Row],
        progress: Callable[[int], None] | None,
    ) -> None:
        """Compute rows of similar length together, and write each shard as soon as it is full."""
        parts: list[tuple[str, int]] = []
        features: list[Tensor] = []
        for indices in forward_batches([len(r.group) for r in rows], model.device, max_rows=MAX_ROWS):
            chosen = [rows[i] for i in indices]
            features.append(_compute(model.trunk, chosen, model.device))
            parts += [(key, end - start) for row in chosen for key, start, end in row.parts]
            if progress:
                progress(len(chosen))
            if sum(block.nbytes for block in features) >= SHARD_BYTES:
                shards.write(parts, features)
                self.evict(keep=shards.used)
                parts, features = [], []
        if parts:
            shards.write(parts, features)
            self.evict(keep=shards.used)

    def evict(self, keep: Set[Path]) -> None:
        """Remove the least recently used shards above `max_bytes`, except those in `keep`."""
        files = []
        for path in self.directory.rglob("*.*"):
            with suppress(FileNotFoundError):
                status = path.stat()
                unfinished = path.suffix == ".tmp" and time.time() - status.st_mtime < ABANDONED_SECONDS
                if path.suffix in (".safetensors", ".tmp") and not unfinished:
                    files.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.max_bytes:
                return
            if path not in keep:
                path.unlink(missing_ok=True)
                total -= size
