"""Which weights a model folder holds, by the headers of its safetensors files: no weight is read."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from rlaif.errors import UserError
from rlaif.models.files.source import reading

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Wrappers that training leaves in names: torch.compile's and FSDP's anywhere, DataParallel's at the start.
_WRAPPERS = re.compile(
    r"(?:^module\.|(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)"
)
_SHOWN = 3


@dataclass(frozen=True)
class Stored:
    """Where a weight is stored: its file, its name there, and its shape."""

    file: Path
    name: str
    shape: tuple[int, ...]


def stored_weights(key: str, folder: Path) -> dict[str, Stored]:
    """All weights of a folder, by name without wrappers' prefixes; only headers are read."""
    found: dict[str, Stored] = {}
    for file in _weight_files(key, folder):
        with reading(key, str(file)), safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                plain = _WRAPPERS.sub("", name)
                if plain in found:
                    both = f"{found[plain].file.name} and {file.name}"
                    raise UserError(f"{key}={folder} holds {plain} twice, in {both}")
                found[plain] = Stored(file, name, tuple(opened.get_slice(name).get_shape()))
    return found


def _weight_files(key: str, folder: Path) -> list[Path]:
    """The files that transformers would read: the single one, else those of the index."""
    index, single = folder / INDEX, folder / SINGLE
    if single.is_file():
        return [single]
    if not index.is_file():
        raise UserError(f"{key}={folder}: this directory lacks {SINGLE} (or {INDEX} and what it names)")
    with reading(key, str(index)):
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    files = [folder / name for name in names]
    gone = [file.name for file in files if not file.is_file()]
    if gone:
        raise UserError(f"{key}={folder} lacks {some(gone)}, which its {INDEX} names: copy it there")
    return files


def some(names: list[str]) -> str:
    """The first of `names`, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
