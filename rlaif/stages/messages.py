"""Hydra's and OmegaConf's errors as one sentence that says what to write instead."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue

from rlaif.stages.schema import unknown_key

_NO_OVERRIDE = re.compile(r"Could not override '([^']+)'")
_AMBIGUOUS = re.compile(r"Ambiguous value for argument '([^']+)'")
_FULL_KEY = re.compile(r"full_key: (\S+)")
_NOISE = re.compile(
    r"full_key:|object_type=|See https?:|Config search path:|provider=|Set the environment variable"
)


def one_sentence(error: BaseException) -> str:
    """`error` on one line; a configuration error says what there is."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _unknown_option(str(error.missing_cfg_file), error.options or [])
    if isinstance(error, MissingMandatoryValue):
        return missing_value([found[1]] if (found := _FULL_KEY.search(text)) else [])
    if isinstance(error, ConfigCompositionException) and (found := _NO_OVERRIDE.search(text)):
        return unknown_key(found[1])
    if isinstance(error, ConfigCompositionException) and (found := _AMBIGUOUS.search(text)):
        return f"{found[1]} gives several values: add -m to run a job for each, or write KEY=[A,B] for a list"
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} is no override: write KEY=VALUE (with quotes around special characters)"
    lines = [line.strip() for line in text.splitlines()]
    return " ".join(line for line in lines if line and not _NOISE.search(line)) or type(error).__name__


def missing_value(keys: Iterable[str]) -> str:
    """For keys whose value is `???`."""
    first = min(keys, key=len, default="a value")
    return f"{first} has no value: write {first}=VALUE"


def _unknown_option(missing: str, options: Iterable[str]) -> str:
    group, _, name = missing.rpartition("/")
    known = [option for option in options if not option.startswith("_")]
    what = f"one of {', '.join(known)}" if known else f"the name of a file in {group}/ (without .yaml)"
    return f"{group}={name} is no option of {group}: write {what}"
