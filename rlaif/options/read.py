"""Turns plain configuration into typed options: every value must fit its field's annotation, wherever it was set.

A key without a field would be ignored by everything, so it is refused.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from rlaif.errors import UserError
from rlaif.options.rules import ABSENT, Anything, Choice, Number, Rule, Switch, Text, Texts, shown

T = TypeVar("T")
UNSET = "???"
"""A value that the user still has to set. It passes, since not every job reads every setting."""

_KINDS: Mapping[Any, Rule] = {
    bool: Switch(),
    str: Text(),
    int: Number(whole=True),
    float: Number(),
    Any: Anything(),
}


def read(options: type[T], values: Any, place: str = "") -> T:
    """The dataclass `options` from plain `values`, which are at the dotted key `place`.

    Raises UserError for a value that is out of range or of another kind, and for a key without a field. A field
    with a default may be missing: not every option of a group has it.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{place}={shown(values)} is not a group of settings: write {place}.KEY=VALUE")
    known = rules(options)  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise UserError(unknown_key(_below(place, name)))
    found = {}
    for field in fields(options):  # type: ignore[arg-type]
        key = _below(place, field.name)
        if field.name in values:
            found[field.name] = _value(known[field.name], key, values[field.name])
        elif field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{key} is missing: add it to its group's file under conf/")
    return options(**found)


def _value(rule: Any, key: str, value: Any) -> Any:
    if isinstance(rule, type):
        return read(rule, value, key)
    if isinstance(value, Mapping) and not isinstance(rule, Anything):
        raise UserError(unknown_key(next(iter(leaves(value, key)), (f"{key}.", None))[0]))
    if value == UNSET:
        return value
    value = rule.read(value)
    wrong = rule.wrong(key, value)
    if wrong:
        raise UserError(wrong)
    # 1 and 1.0 are one setting, with one digest.
    return float(value) if isinstance(rule, Number) and not rule.whole and value is not None else value


def need(options: Any, place: str, names: Iterable[str], instead: str) -> None:
    """Raises UserError if a needed field belongs to another choice of the group; `instead`: what to write."""
    for name in names:
        if getattr(options, name) is ABSENT:
            raise UserError(f"{place}.{name} is missing: write {instead}")


def refuse_others(options: Any, place: str, names: Iterable[str], chosen: str) -> None:
    """Raises UserError for a field that is set, but that nothing reads under the choice `chosen` of the group."""
    used = set(names)
    for field in fields(options):
        other = field.default is ABSENT and field.name not in used
        if other and getattr(options, field.name) is not ABSENT:
            raise UserError(f"{place}.{field.name} has no meaning with {chosen}: leave it out")


def require(values: Any, place: str = "") -> None:
    """Raises UserError for a setting in `values`, plain configuration, that the user still has to set."""
    if missing := [key for key, value in leaves(values, place) if value == UNSET]:
        raise UserError(missing_value(missing))


def missing_value(keys: Iterable[str]) -> str:
    """The message for keys whose value is `???`."""
    first = min(keys, key=len, default="a value")
    return f"{first} has no value: write {first}=VALUE"


def plain(options: Any) -> Any:
    """Typed options as plain mappings, without the fields that the chosen option of their group lacks."""
    if isinstance(options, Mapping):
        return {name: plain(value) for name, value in options.items()}
    if not is_dataclass(options):
        return list(map(plain, options)) if isinstance(options, list | tuple) else options
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    return {name: plain(value) for name, value in values.items() if value is not ABSENT}


def leaves(values: Any, place: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of everything in plain nested mappings; an empty mapping has no entry."""
    if not isinstance(values, Mapping):
        return [(place, values)]
    return [leaf for name, value in values.items() for leaf in leaves(value, _below(place, str(name)))]


@cache
def rules(options: Any) -> Mapping[str, Any]:
    """What each field may be: a Rule, or the dataclass of a nested group."""
    hints = get_type_hints(options, include_extras=True)
    return {field.name: _rule(hints[field.name]) for field in fields(options)}


def _rule(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        (inner,) = (part for part in get_args(hint) if part is not type(None))
        found = _rule(inner)
        return found if isinstance(found, type) else replace(found, null=True)
    if get_origin(hint) is Annotated:
        return get_args(hint)[1]
    if get_origin(hint) is Literal:
        return Choice(get_args(hint))
    if get_origin(hint) is tuple:
        return Texts()
    return hint if is_dataclass(hint) else _KINDS[hint]


@cache
def all_rules(options: Any, place: str = "") -> Mapping[str, Rule]:
    """Every setting below `options` by its dotted key."""
    found: dict[str, Rule] = {}
    for name, rule in rules(options).items():
        key = _below(place, name)
        found |= all_rules(rule, key) if isinstance(rule, type) else {key: rule}
    return found


def _below(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def unknown_key(key: str) -> str:
    """The message that nothing reads `key`, with the key that may have been meant."""
    from rlaif.options.job import Options

    known = all_rules(Options)
    if key in known:
        return (
            f"{key} is not a setting of this {key.split('.')[0]}=: choose an option that has it, see --help"
        )
    parent, _, name = key.rpartition(".")
    inside = f"{parent}." if parent else ""
    beside = list(dict.fromkeys(k.removeprefix(inside).split(".")[0] for k in known if k.startswith(inside)))
    alias = _ALIASES.get(name)
    if key.startswith("ppo."):
        meant = f"rl.{key.removeprefix('ppo.')}"
    elif close := [alias] if alias in beside else get_close_matches(name, beside, n=1):
        meant = f"{inside}{close[0]}"
    else:
        meant = next((one for one in known if one.endswith(f".{name}")), "")
    if meant:
        return f"{key} is not a configuration key: did you mean {meant}?"
    if not parent or not beside:
        return f"{key} is not a configuration key: see --help for groups and conf/config.yaml"
    return f"{key} is not a configuration key: {parent} has {', '.join(sorted(beside))}"


_ALIASES = {
    "learning_rate": "lr",
    "epochs": "num_epochs",
    "num_train_epochs": "num_epochs",
    "per_device_train_batch_size": "batch_size",
    "max_grad_norm": "gradient_clip",
    "kl_coef": "beta",
    "warmup_ratio": "warmup_fraction",
    "max_new_tokens": "max_response_tokens",
}
