"""Trained weights on disk: a top (and its scalar head) as safetensors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlaif.io import read_json, write_json
from rlaif.models.load import LanguageModel
from rlaif.models.split import ScalarHead, Top

TOP_FILE = "top.safetensors"
NORMALIZATION_FILE = "normalization.json"
_NO_SPREAD = 1e-6  # a model that gives everything the same score has no scale of its own


@dataclass(frozen=True)
class Normalization:
    """reward = scale * score + shift. Scores are as trained: the sigmoid of their difference is a probability."""

    scale: float
    shift: float

    @classmethod
    def of(cls, scores: Sequence[float]) -> Normalization:
        """The one that gives `scores` mean 0 and (population) standard deviation 1, as in Ziegler et al. (2019).

        Mean 0 on reference responses is from Huang et al. (2024).
        """
        values = torch.tensor(scores, dtype=torch.float64)
        scale = 1 / max(float(values.std(correction=0)), _NO_SPREAD)
        return cls(scale, -scale * float(values.mean()))

    def apply(self, score: float) -> float:
        """The reward of a score."""
        return self.scale * score + self.shift


@dataclass(frozen=True)
class RewardMember:
    """One reward model of an ensemble: its normalised reward is head(hidden) + normalization.shift.

    The scale is folded into the head. The ensemble's reward is the mean over its members.
    """

    top: Top
    head: ScalarHead
    normalization: Normalization

    @classmethod
    def fold(cls, top: Top, head: ScalarHead, normalization: Normalization) -> RewardMember:
        """The member with a copy of `head`, trained without a scale, that includes the scale."""
        folded = deepcopy(head)
        with torch.no_grad():
            folded.weight.mul_(normalization.scale)
        return cls(top, folded, normalization)

    @property
    def shift(self) -> float:
        return self.normalization.shift

    def frozen_copy(self) -> RewardMember:
        """An independent copy for scoring, its top in the compute dtype."""
        return replace(self, top=self.top.frozen_copy(), head=deepcopy(self.head).requires_grad_(False))


def save_modules(path: Path, modules: Mapping[str, nn.Module]) -> None:
    """Save the modules' weights as fp32 safetensors, with names prefixed by the modules' keys."""
    save_tensors(
        {f"{key}.{name}": v for key, module in modules.items() for name, v in module.state_dict().items()},
        path,
    )


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Save tensors as fp32 safetensors. Raises OSError if the disk is full."""
    wide = {name: value.detach().float().cpu().contiguous() for name, value in tensors.items()}
    with disk_errors(path):
        save_file(wide, path, metadata={"format": "pt"})


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raises OSError if the disk is full, where the library's writer raises its own error."""
    try:
        yield
    except SafetensorError as error:
        for half in path.glob("*.safetensors") if path.is_dir() else [path]:
            half.unlink(missing_ok=True)  # half a file on a full disk is in the way
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


def load_modules(path: Path, modules: Mapping[str, nn.Module]) -> None:
    """Load what `save_modules` wrote; every name must be present."""
    tensors = load_file(path)
    for key, module in modules.items():
        start = f"{key}."
        module.load_state_dict({k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)})


def load_top(model: LanguageModel, directory: Path | None) -> Top:
    """The policy top stored in `directory`, or the base model's own top."""
    top = model.trunk.new_top()
    if directory is not None:
        load_modules(directory / TOP_FILE, {"top": top})
    return top


def save_reward(directory: Path, members: Sequence[RewardMember]) -> None:
    """Write the members' weights and normalisations into `directory`."""
    modules = {
        f"{_prefix(index)}{name}": module
        for index, member in enumerate(members)
        for name, module in (("top", member.top), ("score", member.head))
    }
    save_modules(directory / TOP_FILE, modules)
    write_json(directory / NORMALIZATION_FILE, [asdict(member.normalization) for member in members])


def load_reward(model: LanguageModel, directory: Path) -> list[RewardMember]:
    """The members that `save_reward` wrote into `directory`."""
    members, modules = [], {}
    for index, row in enumerate(read_json(directory / NORMALIZATION_FILE)):
        top, head = model.trunk.new_top(), ScalarHead(model.trunk.config.hidden_size)
        modules.update({f"{_prefix(index)}top": top, f"{_prefix(index)}score": head})
        members.append(RewardMember(top, head.to(model.device), Normalization(**row)))
    load_modules(directory / TOP_FILE, modules)
    return members


def _prefix(index: int) -> str:
    return f"member{index}." if index else ""
