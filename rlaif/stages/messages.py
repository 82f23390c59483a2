"""Hydra's and OmegaConf's errors as one sentence that says what to write instead."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue

_NO_OVERRIDE = re.compile(r"Could not override '([^']+)'")
_AMBIGUOUS = re.compile(r"Ambiguous value for argument '([^']+)'")
_FULL_KEY = re.compile(r"full_key: (\S+)")
_FOLLOWS = re.compile(r"\$\{([\w.]+)\}")
_NOISE = re.compile(
    r"full_key:|object_type=|See https?:|Config search path:|provider=|Set the environment variable"
)


def one_sentence(error: BaseException, conf: Path) -> str:
    """`error` on one line; a configuration error says what there is. `conf` is the folder of YAML files."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _unknown_option(str(error.missing_cfg_file), error.options or [])
    if isinstance(error, MissingMandatoryValue):
        return missing_value([found[1]] if (found := _FULL_KEY.search(text)) else [])
    if isinstance(error, ConfigCompositionException) and (found := _NO_OVERRIDE.search(text)):
        return _unknown_key(found[1], conf)
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


def _unknown_key(key: str, conf: Path) -> str:
    parent, _, name = key.rpartition(".")
    known = _keys_below(parent, conf)
    near = get_close_matches(name, known, n=1)
    place = f"{parent} has {', '.join(known)}" if parent else "see --help for groups and conf/config.yaml"
    hint = f"did you mean {f'{parent}.' if parent else ''}{near[0]}?" if near else place
    return f"{key} is no configuration key: {hint if known else 'see --help'}"


def wrong_kind(key: str, value: Any, conf: Path) -> str | None:
    """What is wrong with text (or a fraction) where every file has a number or a switch; None if nothing."""
    known = _defaults(key, conf)
    kinds = {type(default) for default in known}
    if not kinds or not kinds <= {bool, int, float} or value is None:
        return None
    if kinds == {bool}:
        return None if isinstance(value, bool) else f"{key}={value} is no switch: write {key}=true or false"
    whole = kinds == {int}
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return f"{key}={value} is no {'whole ' if whole else ''}number: write one, such as {key}={known[0]}"
    return None


def _defaults(key: str, conf: Path) -> list[Any]:
    """The values that the YAML files give to `key`, or to the key that it follows (`${other.key}`)."""
    parent, _, name = key.rpartition(".")
    values = [source[name] for source in _values_below(parent, conf) if source.get(name) is not None]
    followed = [found[1] for value in values if (found := _FOLLOWS.fullmatch(str(value)))]
    return _defaults(followed[0], conf) if followed else values


def _keys_below(parent: str, conf: Path) -> list[str]:
    """Keys that the YAML files give below `parent` (a dotted key, empty for the top)."""
    found = {str(key) for source in _values_below(parent, conf) for key in source}
    if not parent and conf.is_dir():
        found |= {folder.name for folder in conf.iterdir() if folder.is_dir()}
    return sorted(found - {"defaults", "hydra", "templates"})


def _values_below(parent: str, conf: Path) -> list[dict[str, Any]]:
    """What each YAML file that has something to say about `parent` gives below it."""
    main = _mapping(conf / "config.yaml")
    if not parent:
        return [main]
    group, *rest = parent.split(".")
    folder = conf / ("labeler" if group == "judge" else group)
    found = []
    for source in (main.get(group), *(_mapping(file) for file in sorted(folder.glob("*.yaml")))):
        for part in rest:
            source = source.get(part) if isinstance(source, dict) else None
        if isinstance(source, dict):
            found.append(source)
    return found


def _mapping(file: Path) -> dict[str, Any]:
    value = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    return value if isinstance(value, dict) else {}
