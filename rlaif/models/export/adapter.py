"""Adapters of `model.trainable=lora:R` as PEFT writes them, on a base model that stays where it is.

PEFT and the servers that read its format (vLLM, say) find an adapter's layers by `target_modules`, the ends of module
names, and its weights by `base_model.model.<path>.lora_A.weight` (r, in) and `lora_B.weight` (out, r). The update is
(lora_alpha / r) B A, as in `rlaif.models.lora`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlaif.errors import UserError
from rlaif.io import write_json
from rlaif.models.export.classifier import require_classifier
from rlaif.models.export.folder import ADAPTER_CONFIG, ADAPTER_FILE, emptied, member_folder, remove_members
from rlaif.models.files.conversions import taken_for_others
from rlaif.models.load import LanguageModel
from rlaif.models.lora import Adapted, transposed
from rlaif.models.split import Top
from rlaif.models.weights import NORMALIZATION_FILE, RewardMember, save_tensors

_PREFIX = "base_model.model."
_TOKENS = [0, 1, 2, 1]


@dataclass(frozen=True)
class BaseFiles:
    """Where an adapter's base model is: a hub id and its commit, or a directory's absolute path."""

    name: str
    revision: str | None = None


def export_policy_adapter(directory: Path, model: LanguageModel, top: Top, base: BaseFiles) -> None:
    """Write the policy's adapters so that PEFT puts them on `base`, a causal language model.

    Raises UserError as `require_adapters` does, or if `directory` holds the base model.
    """
    require_adapters(model, pad=False)
    _write(directory, model, top, _config(top, base, "CAUSAL_LM"), {}, base)


def export_reward_adapters(
    directory: Path, model: LanguageModel, members: Sequence[RewardMember], base: BaseFiles
) -> None:
    """Write each member's adapters and score head so that PEFT puts them on `base`, a sequence classifier (one label).

    The first member goes to `directory` itself, further ones to `member1`, `member2` and so on below it. A logit is the
    score before the shift, which normalization.json has, next to the scale that is folded into the head. Raises
    UserError as `export_policy_adapter` and `require_classifier` do.
    """
    require_adapters(model, pad=True)
    head = require_classifier(model.trunk.hf_config)
    name = head.rpartition(".")[2]
    for index, member in enumerate(members):
        settings = {**_config(member.top, base, "SEQ_CLS"), "modules_to_save": [name]}
        own, score = member_folder(directory, index), {f"{_PREFIX}{head}.weight": member.head.weight}
        _write(own, model, member.top, settings, score, base)
        write_json(own / NORMALIZATION_FILE, asdict(member.normalization))
    remove_members(directory, since=len(members))


def require_adapters(model: LanguageModel, *, pad: bool) -> None:
    """Raises UserError if PEFT could not compute what this model's adapters do. Runs a few tokens.

    With `pad`, as for reward models, also if texts cannot be padded without a new row of the embedding.
    """
    top = model.trunk.new_top()
    if model.trunk.lora is None:
        raise UserError(
            "export_format=adapter is for model.trainable=lora:R, which trains adapters: write export_format=whole"
        )
    if pad and model.pad_id is None:
        raise UserError(
            "export_format=adapter: the base model has no token free for the pad, which a classifier needs, and an "
            "adapter cannot bring one: write export_format=whole"
        )
    name = type(model.trunk.lm).__name__
    others = taken_for_others(model.trunk.lm, [path for path, _ in top.adapters()])
    if others:
        raise UserError(
            f"export_format=adapter: in {name}, PEFT takes {', '.join(others)} for other weights (the experts', say): "
            "write export_format=whole"
        )
    read = _read_elsewhere(top)
    if read:
        raise UserError(
            f"export_format=adapter: {name} reads the weights of {', '.join(read)} itself, where adapters of PEFT "
            "have no effect: write export_format=whole"
        )


@torch.no_grad()
def _read_elsewhere(top: Top) -> list[str]:
    """The last names of adapted layers whose weights other code than their own computes with."""
    read: set[str] = set()

    class Unseen(Adapted):
        """As PEFT's layers: whoever reads its weight gets the base's."""

        name: str

        @property
        def weight(self) -> Tensor:
            read.add(self.name)
            return self.base.weight  # type: ignore[return-value]

    generator, ids = torch.Generator().manual_seed(1), torch.tensor([_TOKENS], device=top.device)
    for path, part in top.adapters():
        part.b.copy_(torch.randn(part.b.shape, generator=generator))
        part.name = path.rpartition(".")[2]  # type: ignore[assignment]
    ours = top(top.trunk(ids))
    for _, part in top.adapters():
        part.__class__ = Unseen
    return [] if torch.equal(top(top.trunk(ids)), ours) else sorted(read)


def _write(
    directory: Path,
    model: LanguageModel,
    top: Top,
    settings: Mapping[str, Any],
    more: Mapping[str, Tensor],
    base: BaseFiles,
) -> None:
    if directory.resolve() == Path(base.name).resolve():
        raise UserError(
            f"export={directory} holds the base model that the adapter goes on: write another folder"
        )
    tensors = {
        f"{_PREFIX}{path}.{name}.weight": weight
        for path, part in top.adapters()
        for name, weight in (("lora_A", part.a), ("lora_B", part.b))
    }
    emptied(directory)
    save_tensors({**tensors, **more}, directory / ADAPTER_FILE)
    write_json(directory / ADAPTER_CONFIG, settings)
    model.tokenizer.save_pretrained(directory)


def _config(top: Top, base: BaseFiles, task: str) -> dict[str, Any]:
    lora, adapters = top.trunk.lora, top.adapters()
    assert lora is not None
    return {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base.name,
        "revision": base.revision,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": target_modules(top.trunk.lm, [path for path, _ in adapters]),
        "modules_to_save": None,
        "fan_in_fan_out": any(transposed(part.base) for _, part in adapters),
        "inference_mode": True,
    }


def target_modules(lm: nn.Module, paths: Collection[str]) -> list[str]:
    """Ends of module names that select the modules at `paths` in `lm` and no other: the shortest that do.

    PEFT takes a module whose name is an end, or ends in a dot and an end.
    """
    names, wanted = [name for name, _ in lm.named_modules()], set(paths)

    def exact(end: str) -> bool:
        return all(name in wanted for name in names if name == end or name.endswith(f".{end}"))

    ends = set()
    for path in paths:
        parts = path.split(".")
        tails = (".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1))
        ends.add(next(end for end in tails if exact(end)))
    return sorted(ends)
