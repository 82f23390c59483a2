"""The folder of an export: what an earlier one left there, and what every kind writes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from rlaif.io import read_json
from rlaif.models.files.headers import INDEX
from rlaif.models.load import LanguageModel
from rlaif.models.weights import NORMALIZATION_FILE

ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_CONFIG = "config.json"
# Each would be read in place of, or beside, what is written next: a single file before shards, an adapter on a model.
_STALE = (
    ADAPTER_FILE,
    ADAPTER_CONFIG,
    _CONFIG,
    INDEX,
    NORMALIZATION_FILE,
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "added_tokens.json",
    "special_tokens_map.json",
)
_WEIGHTS = re.compile(r"model(?:-\d{5}-of-\d{5})?\.safetensors")


def emptied(folder: Path) -> Path:
    """`folder`, made if need be, without an earlier export's files; other files stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.is_file() and (file.name in _STALE or _WEIGHTS.fullmatch(file.name)):
            file.unlink()
    return folder


def member_folder(folder: Path, index: int) -> Path:
    """The first member of an ensemble is in the export's folder itself, further ones are below it."""
    return folder / f"member{index}" if index else folder


def remove_members(folder: Path, since: int) -> None:
    """Remove members that an earlier, larger ensemble left: with the new ones they would make another reward."""
    for member in folder.glob("member*"):
        number = member.name.removeprefix("member")
        if number.isdigit() and int(number) >= since and _is_member(member):
            shutil.rmtree(member)


def _is_member(folder: Path) -> bool:
    if (folder / ADAPTER_CONFIG).is_file():
        return (folder / NORMALIZATION_FILE).is_file()
    config = folder / _CONFIG
    return config.is_file() and "reward_scale" in read_json(config)


def end_ids(model: LanguageModel) -> int | list[int]:
    """The ids that end a response, as transformers writes them: one id or a list."""
    return model.eos_id if len(model.eos_ids) == 1 else list(model.eos_ids)


def with_text(config: Any) -> list[Any]:
    """A configuration and, if it is of more than text, the part of it that is of text."""
    text = config.get_text_config()
    return [config] if text is config else [config, text]
