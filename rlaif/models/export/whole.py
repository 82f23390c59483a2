"""Whole models that transformers' Auto classes load, in float32."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rlaif.io import read_json, write_text
from rlaif.models.export.classifier import reward_classifier, with_pad
from rlaif.models.export.folder import emptied, end_ids, member_folder, remove_members, with_text
from rlaif.models.load import LanguageModel
from rlaif.models.parts.view import shallow
from rlaif.models.split import Top
from rlaif.models.weights import RewardMember, disk_errors

_OF_FILE = ("transformers_version", "_from_model_config")  # of generation_config.json, about the file itself


def export_policy(directory: Path, model: LanguageModel, top: Top) -> None:
    """Write the whole policy so that `AutoModelForCausalLM.from_pretrained(directory)` loads it.

    generation_config.json has what the base model's has, but for the tokens that end and pad a response.
    """
    ends = {"pad_token_id": model.pad_id, "eos_token_id": end_ids(model)}
    _write(directory, model.tokenizer, top.whole(), ends)
    kept = {name: value for name, value in model.generation.items() if name not in _OF_FILE}
    _write_json(directory / "generation_config.json", {**kept, **ends})


def export_reward(directory: Path, model: LanguageModel, members: Sequence[RewardMember]) -> None:
    """Write the reward model so that `AutoModelForSequenceClassification` (num_labels=1) scores the same.

    The first member goes to `directory` itself, further ones to `member1`, `member2` and so on below it. A logit is the
    score before the shift (the head has no bias), which config.json has as `reward_shift`, next to the `reward_scale`
    that is folded in. transformers pools the last token that is not a pad; our responses end in EOS, or anywhere if
    they were cut, and the pad never ends one: if the model has no token free for it, the exported tokenizer and
    embedding get one more.
    """
    for index, member in enumerate(members):
        _export_member(member_folder(directory, index), model, member)
    remove_members(directory, since=len(members))


def _export_member(directory: Path, model: LanguageModel, member: RewardMember) -> None:
    tokenizer, pad = (
        (model.tokenizer, model.pad_id) if model.pad_id is not None else with_pad(model.tokenizer)
    )
    settings = {
        "pad_token_id": pad,
        "eos_token_id": end_ids(model),
        "id2label": {0: "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "reward_scale": member.normalization.scale,
        "reward_shift": member.shift,
    }
    _write(directory, tokenizer, reward_classifier(member.top, member.head, pad + 1), settings)


def _write(directory: Path, tokenizer: Any, lm: nn.Module, settings: Mapping[str, Any]) -> None:
    """Write a model of transformers in float32, with `settings` in its config.json, and its tokenizer.

    transformers names the weights, and undoes what it does to them while loading. `lm` stays as it is.
    """
    from transformers import GenerationConfig

    emptied(directory)
    lm = shallow(lm)
    lm.config = deepcopy(lm.config)
    _configure(lm.config, settings)
    if getattr(lm, "generation_config", None) is not None:
        # What transformers guesses from config.json may not pass its own checks; a policy's is written on its own.
        lm.generation_config = GenerationConfig()
    with disk_errors(directory):
        lm.save_pretrained(directory, state_dict=_wide(lm.state_dict()))  # type: ignore[operator]
    # transformers states the dtype that the model computes in, not that of the weights it is given.
    _write_json(directory / "config.json", {**read_json(directory / "config.json"), "dtype": "float32"})
    tokenizer.save_pretrained(directory)


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    """As transformers writes it: infinities, which some configurations hold, are kept."""
    write_text(file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _configure(config: Any, settings: Mapping[str, Any]) -> None:
    """Put `settings` into a configuration, and where it has one for text alone, the tokens there as well."""
    for part in with_text(config):
        for name, value in settings.items():
            if part is config or name.endswith("_token_id"):
                _set(part, name, value)


def _set(config: Any, name: str, value: Any) -> None:
    try:
        setattr(config, name, value)
    except Exception:  # of a strict configuration, which takes one id only
        if not isinstance(value, list):
            raise
        setattr(config, name, value[0])


def _wide(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in float32, integers and masks as they are; tied weights stay one tensor, which is written once."""
    done: dict[tuple[Any, ...], Tensor] = {}
    for value in state.values():
        place = _place(value)
        if place not in done:
            wide = value.detach().float() if value.is_floating_point() else value.detach()
            done[place] = wide.cpu().contiguous()
    return {name: done[_place(value)] for name, value in state.items()}


def _place(value: Tensor) -> tuple[Any, ...]:
    return value.device, value.data_ptr(), value.shape, value.stride(), value.dtype
