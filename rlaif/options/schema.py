"""Every setting and what it may be: one table, held against the composed configuration however a value came there.

A key that is not here is read by nothing, so it is refused. Values of texts that stand for a choice are checked where
they are chosen from; what they may be is said there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

from rlaif.errors import UserError


def missing_value(keys: Iterable[str]) -> str:
    """For keys whose value is `???`."""
    first = min(keys, key=len, default="a value")
    return f"{first} has no value: write {first}=VALUE"


_VARIABLE = re.compile(r"Environment variable '([^']+)' not found")


@dataclass(frozen=True)
class Number:
    """A number between two bounds, both allowed unless `above` or `below` leaves them out."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    whole: bool = False
    null: bool = False

    def wrong(self, key: str, value: Any, example: str) -> str | None:
        """What is wrong with `value`; None if nothing."""
        if value is None:
            return None if self.null else f"{key}=null is no {self._kind}: write {self._range}"
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            null = ", or null" if self.null else ""
            return f"{key}={_shown(value)} is no {self._kind}: write one, such as {key}={example}{null}"
        low = value > self.low if self.above else value >= self.low
        high = value < self.high if self.below else value <= self.high
        if math.isfinite(value) and low and high:
            return None
        return f"{key}={_shown(value)} is out of range: write {self._range}{', or null' if self.null else ''}"

    @property
    def _kind(self) -> str:
        return "whole number" if self.whole else "number"

    @property
    def _range(self) -> str:
        what = f"a {self._kind}"
        if self.low == -math.inf and self.high == math.inf:
            return f"a finite {self._kind}"
        if self.high == math.inf:
            return f"{what} above {self.low:g}" if self.above else f"{what} from {self.low:g}"
        least = f"above {self.low:g}" if self.above else f"from {self.low:g}"
        return f"{what} {least} and below {self.high:g}" if self.below else f"{what} {least} to {self.high:g}"


@dataclass(frozen=True)
class Switch:
    """true or false."""

    def wrong(self, key: str, value: Any, example: str) -> str | None:
        return (
            None
            if isinstance(value, bool)
            else f"{key}={_shown(value)} is no switch: write {key}=true or false"
        )


@dataclass(frozen=True)
class Text:
    """One text; a number counts as how it is written."""

    null: bool = False
    empty: bool = True

    def wrong(self, key: str, value: Any, example: str) -> str | None:
        if value is None:
            return None if self.null else f"{key}=null says nothing: write a text"
        if isinstance(value, dict | list | bool):
            return f"{key}={_shown(value)} is no text: write one, in quotes if it has special characters"
        return f"{key} is empty: write a text" if not self.empty and not str(value).strip() else None


@dataclass(frozen=True)
class Texts:
    """A list of texts, or one alone."""

    null: bool = False

    def wrong(self, key: str, value: Any, example: str) -> str | None:
        rows = value if isinstance(value, list) else [value]
        if value is None and self.null:
            return None
        if any(row is None or isinstance(row, dict | list | bool) for row in rows):
            return f"{key}={_shown(value)} is no list of texts: write [A,B]"
        return None


@dataclass(frozen=True)
class Anything:
    """Checked where it is read."""

    def wrong(self, key: str, value: Any, example: str) -> str | None:
        return None


Rule = Number | Switch | Text | Texts | Anything

POSITIVE = Number(0, above=True)
FROM_0 = Number(0)
SHARE = Number(0, 1)
PART = Number(0, 1, below=True)  # something must be left
COUNT = Number(1, whole=True)
COUNT_0 = Number(0, whole=True)
ANY_NUMBER = Number()
SWITCH, TEXT, NAME = Switch(), Text(), Text(empty=False)


def _or_null(rule: Any) -> Any:
    return replace(rule, null=True)


_TRAINING: dict[str, Rule] = {
    "lr": POSITIVE,
    "weight_decay": FROM_0,
    "eps": POSITIVE,
    "schedule": TEXT,
    "warmup_fraction": SHARE,
    "gradient_clip": FROM_0,
}
_LABELER: dict[str, Rule] = {
    "name": Text(null=True),
    "backend": Text(null=True),
    "preamble": TEXT,
    "exemplars": COUNT_0,
    "cot": SWITCH,
    "max_rationale_tokens": COUNT,
    "min_mass": SHARE,
    "readout.kind": TEXT,
    "readout.temperature": POSITIVE,
    "readout.direction": TEXT,
    "readout.normalize": TEXT,
    "readout.max_tokens": COUNT,
    "order": TEXT,
    "averaging": TEXT,
    "samples": COUNT,
    "temperature": FROM_0,
    "top_k": COUNT_0,
    "batch_size": COUNT,
    "max_unparsed": SHARE,
    "min_alignment": _or_null(SHARE),
    "budget_usd": _or_null(POSITIVE),
    "max_seconds": _or_null(POSITIVE),
    "retry": Text(null=True),
    "scripted.rule": TEXT,
    "scripted.strength": ANY_NUMBER,
    "scripted.noise": FROM_0,
    "scripted.unparsed_rate": SHARE,
    "scripted.position_bias": ANY_NUMBER,
    "scripted.seed": COUNT_0,
}
_NODES: dict[str, dict[str, Rule]] = {
    "": {
        "seed": _or_null(COUNT_0),
        "plan": SWITCH,
        "force": Anything(),
        "export": Text(null=True, empty=False),
        "until": TEXT,
        "stage": TEXT,
        "test": Texts(null=True),
        "compare": Anything(),
        "models.tiny": SWITCH,
        "paths.root": NAME,
        "paths.code": NAME,
        "doctor.injection_pairs": COUNT_0,
    },
    "seeds": dict.fromkeys(("data", "sft", "sample", "label", "rm", "rl", "eval"), COUNT_0),
    "backend": {
        "engine": TEXT,
        "base_url": NAME,
        "name": NAME,
        "revision": Text(null=True),
        "api": TEXT,
        "tokenizer": NAME,
        "api_key_env": Text(null=True),
        "top_logprobs": COUNT,
        "choice_samples": COUNT_0,
        "timeout_s": POSITIVE,
        "connect_timeout_s": POSITIVE,
        "concurrency": COUNT,
        "requests_per_minute": _or_null(POSITIVE),
        "tokens_per_minute": _or_null(POSITIVE),
        "max_retries": COUNT_0,
        "backoff_s": POSITIVE,
        "max_wait_s": FROM_0,
        "seconds_per_call": FROM_0,
        "source": TEXT,
        "dtype": TEXT,
        "chat_template": Text(null=True, empty=False),
        "trust_remote_code": SWITCH,
        "max_rows": COUNT,
    },
    "eval": {
        "num_prompts": COUNT,
        "temperature": FROM_0,
        "top_k": COUNT_0,
        "tie_margin": Number(0, 0.5),
        "max_rows": COUNT,
    },
    "labeler": _LABELER,
    "judge": _LABELER,
    "model": {
        "source": TEXT,
        "name": NAME,
        "revision": Text(null=True),
        "trainable": TEXT,
        "lora_alpha": POSITIVE,
        "dtype": TEXT,
        "chat_template": Text(null=True, empty=False),
        "trust_remote_code": SWITCH,
        "trunk_cache_gb": FROM_0,
    },
    "report": {"stage": Text(null=True), "group": Text(null=True), "limit": COUNT, "samples": COUNT_0},
    "reward": {
        "kind": TEXT,
        "normalize_rows": COUNT_0,
        "how": TEXT,
        "coefficient": FROM_0,
        "name": NAME,
        "revision": Text(null=True),
        "format": TEXT,
        "max_tokens": COUNT,
        "dtype": TEXT,
        "trust_remote_code": SWITCH,
        "target": _or_null(COUNT),
    },
    "rl": {
        **_TRAINING,
        "algorithm": Text(null=True),
        "advantage": Text(null=True),
        "loss": Text(null=True),
        "loss_mean": TEXT,
        "num_epochs": POSITIVE,
        "num_prompts": COUNT,
        "prompts_per_iteration": COUNT,
        "samples_per_prompt": COUNT,
        "minibatch_rollouts": COUNT,
        "ppo_epochs": COUNT,
        "temperature": POSITIVE,
        "value_lr_factor": FROM_0,
        "beta": FROM_0,
        "kl": TEXT,
        "kl_estimator": TEXT,
        "kl_controller": TEXT,
        "kl_target": POSITIVE,
        "kl_horizon": POSITIVE,
        "convex_kl": SWITCH,
        "gamma": SHARE,
        "lam": SHARE,
        "clip": POSITIVE,
        "value_clip": FROM_0,
        "value_coefficient": FROM_0,
        "value": TEXT,
        "whiten_rewards": SWITCH,
        "whiten_advantages": SWITCH,
        "missing_eos_penalty": FROM_0,
        "missing_eos_score": _or_null(ANY_NUMBER),
        "length_penalty": FROM_0,
        "max_kl": _or_null(POSITIVE),
        "max_rows": COUNT,
        "held_out.every": _or_null(COUNT),
        "held_out.num_prompts": COUNT,
        "track.every": _or_null(COUNT),
        "track.judge": TEXT,
        "track.num_prompts": COUNT,
        "track.patience": _or_null(COUNT),
        "track.keep": TEXT,
        "alarms.window": COUNT,
        "alarms.kl": _or_null(POSITIVE),
        "alarms.entropy": _or_null(FROM_0),
        "alarms.explained_variance": _or_null(ANY_NUMBER),
        "alarms.eos_rate": _or_null(SHARE),
        "alarms.length": _or_null(POSITIVE),
    },
    "rm": {
        **_TRAINING,
        "init": TEXT,
        "num_epochs": COUNT,
        "patience": _or_null(COUNT),
        "batch_size": COUNT,
        "micro_batch_size": _or_null(COUNT),
        "ensemble": COUNT,
        "bootstrap": SWITCH,
        "head_lr_factor": FROM_0,
        "labels": TEXT,
        "n": _or_null(COUNT),
        "label_noise": SHARE,
        "min_confidence": SHARE,
        "confidence_weight": FROM_0,
        "hard_labels": SWITCH,
        "margin": FROM_0,
        "label_smoothing": SHARE,
        "label_temperature": POSITIVE,
        "centering": FROM_0,
        "validation_fraction": PART,
        "test_fraction": PART,
        "normalize_rows": COUNT_0,
    },
    "sample": {
        "source": TEXT,
        "num_prompts": COUNT,
        "num_samples": COUNT,
        "temperature": POSITIVE,
        "top_k": COUNT_0,
        "max_redraws": COUNT_0,
        "max_rows": COUNT,
    },
    "sft": {
        **_TRAINING,
        "enabled": SWITCH,
        "num_rows": COUNT,
        "num_epochs": COUNT,
        "batch_size": COUNT,
        "micro_batch_size": _or_null(COUNT),
    },
    "task": {
        "source": TEXT,
        "path": Texts(),
        "hub_split": TEXT,
        "chat": SWITCH,
        "prefix": TEXT,
        "suffix": TEXT,
        "separator": TEXT,
        "max_prompt_tokens": COUNT,
        "max_response_tokens": COUNT,
        "too_long": Text(null=True),
        "too_long_prompts": TEXT,
        "too_long_responses": TEXT,
        "max_rows": _or_null(COUNT),
        "test_fraction": SHARE,
        "validation_fraction": SHARE,
        "gold_fraction": SHARE,
        "sft": SWITCH,
        "public": SWITCH,
        "name": TEXT,
        "hub_data_dir": Text(null=True),
        "templates": TEXT,
        "packages": Texts(null=True),
        "gold_pairs_per_construction": COUNT_0,
        "max_prompt_chars": COUNT,
        "min_reference_words": COUNT_0,
        "max_reference_words": COUNT,
        "gold_confidence": Anything(),
    },
    "task.columns": dict.fromkeys(
        ("prompt", "reference", "response_a", "response_b", "label", "id"), Text(null=True)
    ),
    "tracking": {
        "mode": TEXT,
        "project": Text(null=True, empty=False),
        "entity": Text(null=True),
        "group": Text(null=True),
        "name": Text(null=True),
        "tags": Texts(null=True),
        "upload": Text(null=True),
    },
    "trainer": {
        "accelerator": TEXT,
        "devices": COUNT,
        "strategy": TEXT,
        "threads": _or_null(COUNT),
        "progress": Anything(),
    },
}
RULES: Mapping[str, Rule] = {
    f"{node}.{name}" if node else name: rule for node, rules in _NODES.items() for name, rule in rules.items()
}
"""What each setting may be, by its dotted key."""

OPEN = ("arms", "grid", "repeat", "curve", "diagnose", "controls", "prices", "hydra")
"""Nodes whose keys are names of the user's own."""


def check_settings(cfg: DictConfig) -> None:
    """Hold every value of a composed configuration against `RULES`.

    A text that reads as the number wanted, as from `${oc.env:NAME}`, becomes that number in `cfg`.
    Raises UserError for the first value that is out of range or of another kind, and for a key that nothing reads.
    """
    for key in _leaves(OmegaConf.to_container(cfg, resolve=False), ""):
        if key.split(".")[0] in OPEN:
            continue
        rule = RULES.get(key)
        if rule is None:
            raise UserError(unknown_key(key))
        value = _value(cfg, key)
        if value is _MISSING:
            continue
        if (
            isinstance(rule, Number)
            and isinstance(value, str)
            and (number := _number(value, rule)) is not None
        ):
            OmegaConf.update(cfg, key, number)
            value = number
        wrong = rule.wrong(key, value, _example(key, rule))
        if wrong:
            raise UserError(wrong)


_MISSING = object()


def _value(cfg: DictConfig, key: str) -> Any:
    """The resolved value as plain data; `_MISSING` where it is still to be given."""
    try:
        value = OmegaConf.select(cfg, key, throw_on_missing=True)
    except MissingMandatoryValue:
        return _MISSING
    except InterpolationResolutionError as error:
        found = _VARIABLE.search(str(error))
        if found is None:
            return _MISSING  # what it follows has no value yet
        raise UserError(
            f"{key} follows the environment variable {found[1]}, which is not set: set it"
        ) from None
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _number(text: str, rule: Number) -> float | None:
    for kind in (int,) if rule.whole else (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def _leaves(node: Any, place: str) -> Iterator[str]:
    """Dotted keys of all values; an empty mapping has none."""
    if not isinstance(node, dict):
        yield place
        return
    for name, value in node.items():
        yield from _leaves(value, f"{place}.{name}" if place else str(name))


def unknown_key(key: str) -> str:
    """That nothing reads `key`, and which key may have been meant."""
    parent, _, name = key.rpartition(".")
    inside = f"{parent}." if parent else ""
    beside = list(dict.fromkeys(k.removeprefix(inside).split(".")[0] for k in RULES if k.startswith(inside)))
    alias = _ALIASES.get(name)
    meant = [alias] if alias in beside else get_close_matches(name, beside, n=1)
    if meant:
        return f"{key} is no configuration key: did you mean {inside}{meant[0]}?"
    elsewhere = next((known for known in RULES if known.endswith(f".{name}")), None)
    if elsewhere:
        return f"{key} is no configuration key: did you mean {elsewhere}?"
    if not parent or not beside:
        return f"{key} is no configuration key: see --help for groups and conf/config.yaml"
    return f"{key} is no configuration key: {parent} has {', '.join(sorted(beside))}"


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


def _example(key: str, rule: Rule) -> str:
    """A value that `key` may have."""
    if key.endswith(".lr"):
        return "0.0001"
    if isinstance(rule, Number):
        low = rule.low if math.isfinite(rule.low) else 0
        example = (
            low + 1 if rule.above and rule.high > low + 1 else (low + rule.high) / 2 if rule.above else low
        )
        return f"{example:g}" if rule.whole or example != int(example) else f"{example:.1f}"
    return ""


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
