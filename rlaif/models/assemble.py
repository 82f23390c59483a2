"""From a causal language model of transformers to a trunk: swaps, the probe's verdict, the split."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlaif.errors import UserError
from rlaif.io import digest, read_json, write_json
from rlaif.models.lora import parse_lora
from rlaif.models.parts import probe
from rlaif.models.parts.decoder import Decoder
from rlaif.models.parts.interface import NAME, set_implementation
from rlaif.models.parts.probe import Verdict, examine
from rlaif.models.parts.swaps import swap_modules
from rlaif.models.sizes import ModelSizes
from rlaif.models.split import Trunk, parse_trainable

logger = logging.getLogger(__name__)

OWN_CACHE = {
    True: "with transformers' own cache",
    False: "and decodes without a cache, since its own gives other numbers",
}


def make_trunk(
    lm: nn.Module,
    trainable: str,
    dtype: torch.dtype,
    lora_alpha: float | None,
    *,
    device: str | torch.device = "cpu",
    verdicts: Path | None = None,
    identity: Any = None,
) -> Trunk:
    """The trunk of `lm` (float32, every weight known) on `device`, split as `model.trainable` says.

    The probe's verdict is kept in the folder `verdicts` by the model's `identity` and the versions of what decides it.
    Raises UserError if the model cannot be split so.
    """
    sizes = ModelSizes.of(lm.config)
    top_layers = parse_trainable(trainable, sizes.num_layers)
    lm.to(device).requires_grad_(False).eval()
    lm.tie_weights()  # type: ignore[operator]  # some devices' weights are new ones, each by itself
    _without_router_loss(lm)
    # A pad is never fed where it counts; but its token may be a word, or EOS, which would then not be trained.
    lm.get_input_embeddings().padding_idx = None  # type: ignore[operator]
    swap_modules(lm)
    file = None if verdicts is None or identity is None else _verdict_file(verdicts, identity)
    verdict = _known(file)
    before = _sums(lm) if verdict is None else []
    decoder = Decoder(lm)
    if verdict is None:
        verdict = examine(lm, decoder)
        if _sums(lm) != before:
            verdict = replace(verdict, wrong="it changes its weights")
        _keep(file, verdict)
    _require(lm, verdict, trainable, top_layers < sizes.num_layers, dtype)
    if verdict.patterns:
        set_implementation(lm, NAME)
    elif verdict.why:
        logger.info(
            "%s runs in plain rows, %s (%s)", type(lm).__name__, OWN_CACHE[verdict.cached], verdict.why
        )
    trunk = Trunk(lm, decoder, verdict, sizes, top_layers, dtype, parse_lora(trainable, lora_alpha))
    if not trunk.owned_paths():
        raise UserError(
            f"model.trainable={trainable}: {type(lm).__name__} has no linear layers for adapters: write full or top:4"
        )
    return trunk


def _require(lm: nn.Module, verdict: Verdict, trainable: str, split: bool, dtype: torch.dtype) -> None:
    """Raises UserError for what the probe has found that the model cannot do."""
    if verdict.wrong:
        raise UserError(
            f"{type(lm).__name__} cannot be used: its own forward pass fails for some lengths of a text, lets a token "
            f"see what follows it, or changes the model ({verdict.wrong})"
        )
    if split and not verdict.split:
        raise UserError(
            f"model.trainable={trainable}: the layers of {type(lm).__name__} cannot run in two parts ({verdict.why}): "
            "write full or lora:8"
        )
    if dtype == torch.bfloat16 and verdict.bf16:
        raise UserError(
            f"model.dtype=bfloat16: {type(lm).__name__} does not compute in it ({verdict.bf16}): write float32"
        )


def _sums(lm: nn.Module) -> list[float]:
    """A mark of each weight: a forward pass must leave them all as they are (RWKV's rescales its own)."""
    return [float(weight.sum()) for weight in lm.parameters()]


def _without_router_loss(lm: nn.Module) -> None:
    """A mixture of experts' balancing loss is for pretraining: nothing here reads it, and RL has none."""
    text = lm.config.get_text_config()  # type: ignore[union-attr, operator]
    if getattr(text, "output_router_logits", False):
        text.output_router_logits = False


_found: dict[str, Verdict] = {}  # in this process, for caches in several folders


def _known(file: Path | None) -> Verdict | None:
    if file is None:
        return None
    if not file.exists() and file.name in _found:
        _keep(file, _found[file.name])
    return Verdict.from_json(read_json(file)) if file.exists() else None


def _keep(file: Path | None, verdict: Verdict) -> None:
    if file is not None:
        write_json(file, verdict.to_json())
        _found[file.name] = verdict


def known_verdict(folder: Path, identity: Any) -> Verdict | None:
    """What the probe has found for the model of this `identity`; None if it has not been loaded by these versions."""
    return _known(_verdict_file(folder, identity))


def _verdict_file(folder: Path, identity: Any) -> Path:
    marks = [probe.VERSION, _sources(), identity, version("torch"), version("transformers")]
    return folder / f"{digest(marks, 24)}.json"


@cache
def _sources() -> str:
    """A digest of the code that the verdict is about."""
    files: Sequence[Path] = sorted(Path(__file__).parent.rglob("*.py"))
    return digest([file.read_text(encoding="utf-8") for file in files], 16)
