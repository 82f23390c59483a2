"""Where a model's files are: a directory, a hub id, and errors on the way that name the configuration's key."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlaif.errors import UserError

logger = logging.getLogger(__name__)

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


def quiet() -> None:
    """Silence transformers' own reports and bars: what they say is said here, in one sentence, or does not matter."""
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()


def read_config(key: str, name: str, **origin: Any) -> Any:
    """The transformers configuration of a directory or hub id. Raises UserError, also for a quantised model."""
    from transformers import AutoConfig

    require_source(key, name, origin.get("revision"))
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


def require_source(key: str, name: str, revision: str | None = None) -> None:
    """Raises UserError, within seconds, if `name` is neither a directory nor a hub id that can be reached."""
    if Path(name).is_dir():
        return
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"{key}={name}: no such directory; write a local directory or a hub id ORG/NAME")
    _reach_hub(key, name, revision)


@lru_cache
def _reach_hub(key: str, name: str, revision: str | None) -> None:
    """One short request, since transformers retries each of its own for a minute if the hub does not answer."""
    import httpx
    from huggingface_hub import constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
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


@lru_cache
def commit_of(name: str, revision: str | None) -> str | None:
    """The commit that the revision of a hub id stands for: in the cache, else on the hub. None if neither says.

    The cache's comes first, so that a model stays what it was when it was first used, online or not.
    """
    from huggingface_hub import HfApi

    for offline in (True, False):
        try:
            return HfApi().resolve_revision(name, revision=revision, local_files_only=offline).resolved
        except Exception:  # an unknown or gated repository, say: whatever reads its files says so
            logger.debug("no commit of %s", name, exc_info=True)
    return None


def pinned(key: str, name: str, revision: str | None) -> str | None:
    """The `revision` argument of every `from_pretrained` call: the commit of a hub id, if it is known.

    Raises UserError as `require_source` does.
    """
    require_source(key, name, revision)
    return revision if Path(name).is_dir() else commit_of(name, revision) or revision


_FILES = ("*.json", "model*.safetensors", "*.jinja", "*.model", "*.tiktoken", "*.txt")


def local_folder(key: str, name: str, revision: str | None) -> Path:
    """The folder `name`, or the one that its files are downloaded to. Raises UserError.

    Of a hub id, copies of the weights in other formats or for other programs are left where they are.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    with reading(key, name):
        commit = pinned(key, name, revision)
        folder = Path(snapshot_download(name, revision=commit, allow_patterns=list(_FILES)))
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            if any(not (folder / file).is_file() for file in named):
                snapshot_download(name, revision=commit, allow_patterns=sorted(named))
        return folder


def expanded(name: str) -> str:
    """`name` with `~` as the home directory."""
    return os.path.expanduser(name)
