"""The command line: its words before Hydra reads them, and what is wrong with them in one sentence."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue

from rlaif.options.read import missing_value, unknown_key

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


def _unknown_option(missing: str, options: Iterable[str]) -> str:
    group, _, name = missing.rpartition("/")
    known = [option for option in options if not option.startswith("_")]
    what = f"one of {', '.join(known)}" if known else f"the name of a file in {group}/ (without .yaml)"
    return f"{group}={name} is no option of {group}: write {what}"


# At the start of a value, or of an item of a list or sweep; Hydra's grammar has no such value without quotes.
_HOME = re.compile(r"(?<=[=,\[])~(?=/|$|[,\]])")


def expand_home(word: str) -> str:
    """`key=~/file` as the shell would have it, were it the word's beginning; quoted words stay as they are."""
    if "'" in word or '"' in word:
        return word
    return _HOME.sub(lambda _: os.path.expanduser("~"), word)
