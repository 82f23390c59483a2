"""Trained weights on disk: a top (and its scalar head) as safetensors, and whole models for use elsewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from rlaif.io import read_json, write_json
from rlaif.models.load import LanguageModel
from rlaif.models.split import ScalarHead, Top

TOP_FILE = "top.safetensors"
EMBEDDING = "model.embed_tokens.weight"
NEW_PAD = "<|pad|>"
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
    tensors = {
        f"{key}.{name}": value.detach().float().cpu().contiguous()
        for key, module in modules.items()
        for name, value in module.state_dict().items()
    }
    _save(tensors, path)


def _save(tensors: dict[str, Any], path: Path) -> None:
    """Raises OSError if the disk is full, where the library's writer raises its own error."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        path.unlink(missing_ok=True)  # half a file on a full disk is in the way
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


def _write_hf(directory: Path, tokenizer: Any, state: dict[str, Any], config: dict[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().float().cpu().contiguous().clone() for k, v in state.items()}
    _save(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(directory)


def _config(model: LanguageModel, kind: str) -> dict[str, Any]:
    """The configuration of a `kind` of transformers model, such as `ForCausalLM`."""
    config = model.trunk.hf_config.to_dict()
    family = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}[config["model_type"]]
    config.update(dtype="float32", pad_token_id=model.pad_id, eos_token_id=_ends(model))
    return config | {"architectures": [family + kind]}


def _ends(model: LanguageModel) -> int | list[int]:
    """The ids that end a response, as transformers writes them: one id or a list."""
    return model.eos_id if len(model.eos_ids) == 1 else list(model.eos_ids)


def export_policy(directory: Path, model: LanguageModel, top: Top) -> None:
    """Write the whole policy so that `AutoModelForCausalLM.from_pretrained(directory)` loads it."""
    _write_hf(directory, model.tokenizer, top.to_hf(), _config(model, "ForCausalLM"))
    generation = {"eos_token_id": _ends(model), "pad_token_id": model.pad_id}
    text = json.dumps(generation, indent=2) + "\n"
    (directory / "generation_config.json").write_text(text, encoding="utf-8")


def export_reward(directory: Path, model: LanguageModel, members: Sequence[RewardMember]) -> None:
    """Write the reward model so that `AutoModelForSequenceClassification` (num_labels=1) scores the same.

    The first member goes to `directory` itself, further ones to `member1`, `member2` and so on below it. A logit is the
    score before the shift (the head has no bias), which config.json has as `reward_shift`, next to the `reward_scale`
    that is folded in. transformers pools the last token that is not a pad; our responses end in EOS, or anywhere if
    they were cut, and the pad never ends one: if the model has no token free for it, the exported tokenizer and
    embedding get one more.
    """
    for index, member in enumerate(members):
        _export_member(directory / f"member{index}" if index else directory, model, member)
    _remove_members(directory, since=len(members))


def _remove_members(directory: Path, since: int) -> None:
    """Remove members that an earlier, larger ensemble left: with the new ones they would make another reward."""
    for folder in directory.glob("member*"):
        number, config = folder.name.removeprefix("member"), folder / "config.json"
        stale = number.isdigit() and int(number) >= since
        if stale and config.is_file() and "reward_scale" in read_json(config):
            shutil.rmtree(folder)


def _export_member(directory: Path, model: LanguageModel, member: RewardMember) -> None:
    config = _config(model, "ForSequenceClassification")
    config.update(
        num_labels=1,
        id2label={"0": "LABEL_0"},
        label2id={"LABEL_0": 0},
        reward_scale=member.normalization.scale,
        reward_shift=member.shift,
    )
    state = {name: value for name, value in member.top.to_hf().items() if name != "lm_head.weight"}
    tokenizer = model.tokenizer
    if model.pad_id is None:
        tokenizer, pad = _with_pad(tokenizer)
        rows = state[EMBEDDING]
        missing = max(pad + 1 - len(rows), 0)
        state[EMBEDDING] = torch.cat([rows, rows.new_zeros(missing, rows.shape[1])])
        config.update(pad_token_id=pad, vocab_size=len(rows) + missing)
    _write_hf(directory, tokenizer, {**state, "score.weight": member.head.weight}, config)


def _with_pad(tokenizer: Any) -> tuple[Any, int]:
    """The tokenizer with one more token, the pad, and its id."""
    more = deepcopy(tokenizer)
    more.add_special_tokens({"pad_token": NEW_PAD})
    return more, more.pad_token_id
