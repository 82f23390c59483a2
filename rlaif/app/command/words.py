"""The words of a command line before Hydra reads them, and one sentence for what is wrong with them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue

from rlaif.app.home import CODE, CONF, OPTIONAL
from rlaif.errors import UserError
from rlaif.options.read import missing_value, unknown_key

_MOST, _NEAR = 16, 3  # options that a sentence names: all of so many, else so many that resemble the word
_NO_OVERRIDE = re.compile(r"Could not override '([^']+)'")
_AMBIGUOUS = re.compile(r"Ambiguous value for argument '([^']+)'")
_FULL_KEY = re.compile(r"full_key: (\S+)")
_NOISE = re.compile(
    r"full_key:|object_type=|See https?:|Config search path:|provider=|Set the environment variable"
)


def one_sentence(error: BaseException) -> str:
    """`error` on one line; for an unknown option, with the options that exist."""
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
        return (
            f"{error.override!r} is not an override: write KEY=VALUE (with quotes around special characters)"
        )
    lines = [line.strip() for line in text.splitlines()]
    return " ".join(line for line in lines if line and not _NOISE.search(line)) or type(error).__name__


def refuse_null(words: Sequence[str]) -> None:
    """Raises UserError for GROUP=null, which Hydra answers with a traceback."""
    for group, _, value in (word.partition("=") for word in words):
        if "null" not in value.lower().split(","):
            continue
        if group in OPTIONAL:
            raise UserError(f"{group}=null: leave {group} out to have none")
        if group.isidentifier() and (CONF / group).is_dir():
            raise UserError(
                _unknown_option(f"{group}/null", sorted(f.stem for f in (CONF / group).glob("*.yaml")))
            )


def _unknown_option(missing: str, options: Iterable[str]) -> str:
    group, _, name = missing.rpartition("/")
    known = [option for option in options if not option.startswith("_")]
    what = _one_of(name, known) if known else f"the name of a file in {group}/ (without .yaml)"
    return f"{group}={name} is not an option of {group}: write {what}"


def _one_of(name: str, known: Sequence[str]) -> str:
    """All of a few options, or those of many that resemble `name`."""
    if len(known) <= _MOST:
        return f"one of {', '.join(known)}"
    near = get_close_matches(name, known, n=_NEAR, cutoff=0.4)
    return f"{', '.join([*near, 'or another'] if near else ['one'])} of the {len(known)} that --help lists"


def with_judges(words: Sequence[str], folder: Path) -> list[str]:
    """The words, so that labelers in a `--config-dir` can judge too, by a copy of them below `folder`."""
    options = dict(pairwise(words))
    own = options.get("--config-dir") or options.get("-cd")
    own = own or next((word.partition("=")[2] for word in words if word.startswith("--config-dir=")), None)
    if own is None or not (Path(own) / "labeler").is_dir() or (Path(own) / "judge").exists():
        return list(words)
    shutil.copytree(Path(own) / "labeler", folder / "judge")
    return [*words, f"hydra.searchpath=['file://{CODE}','file://{folder}']"]


# At the start of a value, or of an item of a list or sweep; Hydra's grammar has no such value without quotes.
_HOME = re.compile(r"(?<=[=,\[])~(?=/|$|[,\]])")


def arranged(words: Sequence[str]) -> list[str]:
    """The words as Hydra takes them: `-m` first, `~` expanded as the shell does, and short ones in full."""
    flags = ("-m", "--multirun")
    return sorted((in_full(expand_home(word)) for word in words), key=lambda word: word not in flags)


def in_full(word: str) -> str:
    """The words that are short for a setting of stage=report (`sweep=ID`, `runs=A,B`, `watch=true`) as that setting.

    Each run's name is quoted: Hydra would read one of digits as a number, and has no `~` without quotes.
    """
    key, sign, value = word.partition("=")
    if key in ("sweep", "watch") and sign:
        return f"report.{word}"
    if key != "runs" or not value:
        return word
    names = [name.strip().strip("'\"") for name in value.removeprefix("[").removesuffix("]").split(",")]
    quoted = [name.replace("\\", "\\\\").replace("'", "\\'") for name in names]
    return "report.runs=[" + ",".join(f"'{name}'" for name in quoted) + "]"


def expand_home(word: str) -> str:
    """`key=~/file` expanded as the shell expands `~/file`; quoted words are left unchanged."""
    if "'" in word or '"' in word:
        return word
    return _HOME.sub(lambda _: os.path.expanduser("~"), word)
