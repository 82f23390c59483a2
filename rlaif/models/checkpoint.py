"""A model folder on disk: its configuration and its weights, any of which that is missing is an error.

transformers fills what a file lacks with random weights and drops what it does not know. Here a weight comes from the
checkpoint or the run ends with a message; the headers of safetensors files show it before any weight is read.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from rlaif.errors import UserError

logger = logging.getLogger(__name__)

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Wrappers that training leaves in names: torch.compile's and FSDP's anywhere, DataParallel's at the start.
_WRAPPERS = re.compile(
    r"(?:^module\.|(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)"
)
# Buffers that older files hold; here they are computed.
_COMPUTED = re.compile(r"(?:rotary_emb\.inv_freq|\.masked_bias|\.position_ids)$")
_BACKBONE = "model."
_HEAD = "lm_head.weight"
_EMBEDDING = "model.embed_tokens.weight"
_SHOWN = 3
_HUB_SECONDS = 5.0


@contextmanager
def reading(key: str, name: str) -> Iterator[None]:
    """Whatever goes wrong while `name` is read becomes one sentence that names the configuration's `key`.

    Reading runs other people's files through other people's code: any exception there is about the input.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = lines[0] if lines else type(error).__name__
        raise UserError(f"{key}={name} could not be loaded: {why}") from error


def read_config(key: str, name: str, **origin: Any) -> Any:
    """The transformers configuration of a directory or hub id. Raises UserError, also for a quantised model."""
    from transformers import AutoConfig

    require_source(key, name)
    with reading(key, name):
        config = AutoConfig.from_pretrained(name, **origin)
    quantization = getattr(config, "quantization_config", None)
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise UserError(
            f"{key}={name} is quantised ({method or 'quantization_config in its config.json'}), and its weights "
            "cannot be read as they are: give the model it was made from, or save it dequantised"
        )
    return config


def require_source(key: str, name: str) -> None:
    """Raises UserError, within seconds, if `name` is neither a directory nor a hub id that can be reached."""
    if Path(name).is_dir():
        return
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"{key}={name}: no such directory; write a local directory or a hub id ORG/NAME")
    _reach_hub(key, name)


@lru_cache
def _reach_hub(key: str, name: str) -> None:
    """One short request, since transformers retries each of its own for a minute if the hub does not answer."""
    import httpx
    from huggingface_hub import constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"{key}={name}: no such directory, and as a hub id it is not in the cache while HF_HUB_OFFLINE is set: "
            "write the path of a directory, or download it first"
        )
    try:
        httpx.head(constants.ENDPOINT, timeout=_HUB_SECONDS, follow_redirects=True)
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise UserError(
            f"{key}={name}: no such directory, and the hub at {constants.ENDPOINT} cannot be reached "
            f"({error or type(error).__name__}): write the path of a directory, or a hub id ORG/NAME while online"
        ) from None


@dataclass(frozen=True)
class Stored:
    """Where a weight is stored: its file, its name there, and its shape."""

    file: Path
    name: str
    shape: tuple[int, ...]


def local_folder(key: str, name: str, revision: str | None) -> Path:
    """The folder `name`, or the one that its files are downloaded to. Raises UserError."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    with reading(key, name):
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))


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
        raise UserError(f"{key}={folder} lacks {_some(gone)}, which its {INDEX} names: copy it there")
    return files


def match_weights(key: str, name: str, hf_config: Any, stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """Every weight of a causal language model by transformers' name, with its place in the checkpoint.

    Raises UserError for one that is missing or has another shape, and if part of the model would go unused (layers
    that the configuration does not count, biases that it does not know): then checkpoint and configuration are of
    different models. Other unused weights are named in a warning.
    """
    wanted = _wanted(hf_config)
    found = _named_as(wanted, stored)
    tied = bool(hf_config.tie_word_embeddings)
    missing = sorted(set(wanted) - set(found))
    if missing:
        hint = " (a base model saved without its head?)" if missing == [_HEAD] else ""
        raise UserError(
            f"{key}={name}: the checkpoint lacks {_some(missing)}, which would be random{hint}: it holds "
            f"{len(found)} of the {len(wanted)} weights that its config.json asks for"
        )
    odd = [n for n, shape in wanted.items() if found[n].shape != shape]
    if odd:
        first = odd[0]
        raise UserError(
            f"{key}={name}: {first} has the shape {list(found[first].shape)} in the checkpoint and "
            f"{list(wanted[first])} by its config.json{f' ({len(odd)} such weights)' if len(odd) > 1 else ''}: "
            "the two are of different models"
        )
    _report_unused(key, name, [n for n in found if n not in wanted], tied)
    return {n: found[n] for n in (*wanted, *([_HEAD] if tied and _HEAD in found else []))}


def _wanted(hf_config: Any) -> dict[str, tuple[int, ...]]:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf_config)
    weights = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if hf_config.tie_word_embeddings:
        weights.pop(_HEAD, None)
    return weights


def _named_as(wanted: Mapping[str, Any], stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """`stored` as named, with the backbone's prefix added or with one removed: whichever matches most names."""
    plain = dict(stored)
    bare = {n if n.startswith((_BACKBONE, "lm_head.")) else _BACKBONE + n: s for n, s in stored.items()}
    whole = {n.removeprefix(_BACKBONE): s for n, s in stored.items()}  # model.model.layers, model.lm_head
    return max((plain, bare, whole), key=lambda names: sum(name in wanted for name in names))


def _report_unused(key: str, name: str, unused: list[str], tied: bool) -> None:
    unused = sorted(n for n in unused if not _COMPUTED.search(n) and not (tied and n == _HEAD))
    part = [n for n in unused if n.startswith(_BACKBONE)]
    if part:
        raise UserError(
            f"{key}={name}: its config.json leaves {len(part)} weights of the checkpoint unused, such as "
            f"{_some(part)}, so that a model other than the saved one would run: correct config.json"
        )
    if unused:
        logger.warning("%s=%s: unused weights of the checkpoint: %s", key, name, _some(unused))


def load_weights(key: str, name: str, hf_config: Any, stored: Mapping[str, Stored]) -> dict[str, Tensor]:
    """The matched weights in float32. Raises UserError for non-finite values, or a tied head that differs."""
    places = match_weights(key, name, hf_config, stored)
    state: dict[str, Tensor] = {}
    for file in sorted({place.file for place in places.values()}):
        with reading(key, str(file)), safe_open(file, "pt") as opened:
            for weight, place in places.items():
                if place.file == file:
                    # Copied: the file is mapped into memory, and an export may overwrite it.
                    state[weight] = opened.get_tensor(place.name).to(torch.float32, copy=True)
                    if not state[weight].isfinite().all():
                        raise UserError(f"{key}={name}: {weight} holds values that are not finite")
    head = state.pop(_HEAD, None) if hf_config.tie_word_embeddings else None
    if head is not None and not torch.equal(head, state[_EMBEDDING]):
        raise UserError(
            f"{key}={name}: {_HEAD} differs from {_EMBEDDING}, but config.json has tie_word_embeddings=true: "
            "write false there if the model has its own head"
        )
    return state


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


def text_files(folder: Path) -> list[Path]:
    """The files of a model folder that decide how text becomes tokens and where a response ends."""
    templates = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()] + templates


def expanded(name: str) -> str:
    """`name` with `~` as the home directory."""
    return os.path.expanduser(name)
