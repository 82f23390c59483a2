"""A causal language model's weights, any of which that is missing is an error.

transformers converts names and shapes while it loads, fills what a checkpoint lacks with random weights and drops what
it does not know. Here it loads, so that its conversions are its own, and a weight comes from the checkpoint or the run
ends with a message. Before any weight is read, the same loading of tensors that have shapes alone (on the meta device)
shows most of what is wrong.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from rlaif.errors import UserError
from rlaif.models.files.conversions import missing_parts, renaming
from rlaif.models.files.headers import Stored, some
from rlaif.models.files.source import quiet, reading
from rlaif.models.sizes import skeleton

logger = logging.getLogger(__name__)

# Buffers that older files hold; here they are computed.
_COMPUTED = re.compile(r"(?:rotary_emb\.inv_freq|\.masked_bias|\.position_ids)$")


def check_weights(key: str, name: str, hf_config: Any, stored: Mapping[str, Stored]) -> bool:
    """Raises UserError for what `load_causal_lm` would refuse, as far as names and shapes show; False if they do not.

    A weight that is missing or has another shape, and a part of the model that would go unused (layers that the
    configuration does not count, biases that it does not know): then checkpoint and configuration are of different
    models. Other unused weights are named in a warning.
    """
    with reading(key, name):
        bare = skeleton(hf_config)
    named = _named_as(bare, stored)
    gaps = missing_parts(bare, named)
    if gaps:
        raise UserError(f"{key}={name}: the checkpoint lacks {some(gaps)}, which would be random")
    shapes = {n: torch.empty(place.shape, device="meta") for n, place in named.items()}
    try:
        loaded = _load(bare, hf_config, shapes, device_map={"": "meta"})
    except Exception:  # a conversion that needs values, say: the load itself says what is wrong
        return False
    _report(key, name, bare, loaded)
    _warn_of_unused(key, name, bare, loaded)
    return True


def load_causal_lm(key: str, name: str, hf_config: Any, stored: Mapping[str, Stored]) -> nn.Module:
    """transformers' own module in float32, frozen and in evaluation mode, with every weight from the checkpoint.

    Raises UserError as `check_weights` does, and for values that are not finite or a tied head that differs.
    """
    seen = check_weights(key, name, hf_config, stored)
    with reading(key, name):
        bare = skeleton(hf_config)
        files = _opened(key, stored)
        weights = {n: _Weight(key, name, n, place, files[place.file]) for n, place in stored.items()}
        loaded = _load(bare, hf_config, _named_as(bare, weights))
    _report(key, name, bare, loaded)
    if not seen:
        _warn_of_unused(key, name, bare, loaded)
    _check_ties(key, name, bare, loaded.lm)
    return loaded.lm.requires_grad_(False).eval()


@dataclass(frozen=True)
class _Weight:
    """A weight that is read when transformers asks for it, by an index, as it does for safetensors' own slices."""

    key: str
    model: str
    name: str
    place: Stored
    file: Any

    def __getitem__(self, index: Any) -> Tensor:
        value: Tensor = self.file.get_tensor(self.place.name)[index]
        if not value.is_floating_point():
            return value.clone()
        # Copied: the file is mapped into memory, and an export may overwrite it.
        value = value.to(torch.float32, copy=True)
        if not value.isfinite().all():
            raise UserError(f"{self.key}={self.model}: {self.name} holds values that are not finite")
        return value


def _opened(key: str, stored: Mapping[str, Stored]) -> dict[Path, Any]:
    """The files of `stored`, open; not closed by hand, since transformers' threads may still read after an error."""
    found = {}
    for file in sorted({place.file for place in stored.values()}):
        with reading(key, str(file)):
            found[file] = safe_open(file, "pt")
    return found


@dataclass(frozen=True)
class _Loaded:
    """What transformers made of a state dict. Names are the module's."""

    lm: nn.Module
    missing: set[str]
    unused: set[str]
    odd: dict[str, tuple[list[int], list[int]]]  # shapes: (of the checkpoint, of the module)


def _load(bare: nn.Module, hf_config: Any, weights: Mapping[str, Any], **options: Any) -> _Loaded:
    """`weights` as a module of `bare`'s class."""
    quiet()
    lm, info = type(bare).from_pretrained(  # type: ignore[attr-defined]
        None,
        config=hf_config,
        state_dict=dict(weights),
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # they are reported here
        output_loading_info=True,
        **options,
    )
    odd = {name: (list(found), list(wanted)) for name, found, wanted in info["mismatched_keys"]}
    return _Loaded(lm, set(info["missing_keys"]), set(info["unexpected_keys"]), odd)


def _named_as(bare: nn.Module, stored: Mapping[str, Any]) -> dict[str, Any]:
    """`stored` as named, with the backbone's prefix added or with one removed: whichever matches most names."""
    wanted, prefix = bare.state_dict(), f"{bare.base_model_prefix}."

    def known(names: Iterable[str]) -> set[str]:
        rename = renaming(bare)
        return {name for name in sorted(names) if rename(name)[0] in wanted}

    kept, plain = known(stored), dict(stored)
    if len(kept) == len(plain):
        return plain
    backbone = {n if n in kept or n.startswith(_parts(bare)) else prefix + n: s for n, s in stored.items()}
    whole = {n.removeprefix(prefix): s for n, s in stored.items()}  # model.model.layers, model.lm_head
    return max((plain, backbone, whole), key=lambda names: len(known(names)))


def _ties(bare: nn.Module) -> dict[str, str]:
    """Weights that are another weight, such as a tied head, by that weight's name."""
    return dict(getattr(bare, "all_tied_weights_keys", {}))


def _report(key: str, name: str, bare: nn.Module, loaded: _Loaded) -> None:
    wanted = [n for n in bare.state_dict() if n not in _ties(bare)]
    missing = sorted(set(wanted) & loaded.missing)
    if missing:
        hint = " (a base model saved without its head?)" if missing == [_head_name(bare)] else ""
        raise UserError(
            f"{key}={name}: the checkpoint lacks {some(missing)}, which would be random{hint}: it holds "
            f"{len(wanted) - len(missing)} of the {len(wanted)} weights that its config.json asks for"
        )
    odd = [n for n in wanted if n in loaded.odd] or list(loaded.odd)
    if odd:
        found, asked = loaded.odd[odd[0]]
        raise UserError(
            f"{key}={name}: {odd[0]} has the shape {found} in the checkpoint and {asked} by its config.json"
            f"{f' ({len(odd)} such weights)' if len(odd) > 1 else ''}: the two are of different models"
        )
    part = [n for n in _unused(loaded) if n.startswith(_parts(bare))]
    if part:
        raise UserError(
            f"{key}={name}: its config.json leaves {len(part)} weights of the checkpoint unused, such as "
            f"{some(part)}, so that a model other than the saved one would run: correct config.json"
        )


def _warn_of_unused(key: str, name: str, bare: nn.Module, loaded: _Loaded) -> None:
    unused = [n for n in _unused(loaded) if not n.startswith(_parts(bare))]
    if unused:
        logger.warning("%s=%s: unused weights of the checkpoint: %s", key, name, some(unused))


def _unused(loaded: _Loaded) -> list[str]:
    return sorted(n for n in loaded.unused if not _COMPUTED.search(n))


def _parts(bare: nn.Module) -> tuple[str, ...]:
    """How the names of a model's own weights begin: with its backbone or its head."""
    return tuple(f"{name}." for name, _ in bare.named_children())


def _head_name(bare: nn.Module) -> str | None:
    head = bare.get_output_embeddings()  # type: ignore[operator]
    return next((f"{n}.weight" for n, module in bare.named_modules() if module is head), None)


def _check_ties(key: str, name: str, bare: nn.Module, lm: nn.Module) -> None:
    """transformers leaves weights apart that are to be the same one but differ in the checkpoint."""
    for one, other in _ties(bare).items():
        if lm.get_parameter(one) is not lm.get_parameter(other):
            raise UserError(
                f"{key}={name}: {one} differs from {other}, but config.json has tie_word_embeddings=true: write false "
                "there if the model has its own head"
            )
