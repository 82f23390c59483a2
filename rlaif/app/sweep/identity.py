"""What makes two command lines the same sweep, and two jobs the same job."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from rlaif.io import digest
from rlaif.options.job import seeded_stages

_SEED = re.compile(r"seed$|seeds\.")
# What changes no result: where it is written, how it is shown, and how this one command goes about it.
_ASIDE = re.compile(r"(?:paths|tracking|report|sweep)(?:\.|$)|(?:plan|force)$|trainer\.(?:progress|threads)$")


@dataclass(frozen=True)
class Identity:
    """A sweep is the keys that it varies and the words that all its jobs share; values and seeds may be added.

    `own`: the ID of a search, which is more than that.
    """

    name: str
    swept: tuple[str, ...]
    fixed: tuple[str, ...]
    own: str | None = None

    @property
    def id(self) -> str:
        """The name, and 8 hex digits over everything."""
        return self.own or f"{self.name}-{digest([self.name, list(self.swept), list(self.fixed)], 8)}"


def identity_of(overrides: Sequence[Override]) -> Identity:
    """The identity of the sweep that the words of its file and of the command line make, in this order."""
    swept, fixed = set(), {}
    for override in overrides:
        key = override.get_key_element()
        if _SEED.match(_plain(key)) or _ASIDE.match(_plain(key)):
            continue
        if override.is_sweep_override():
            swept.add(key)
        else:
            fixed[key] = f"{key}={override.get_value_element_as_str()}"
    words = {key: word for key, word in fixed.items() if key not in swept}
    return Identity(_name(words, swept), tuple(sorted(swept)), tuple(sorted(words.values())))


def _name(words: Mapping[str, str], swept: Iterable[str]) -> str:
    """What the sweep is called: its file, its experiment, or its stage."""
    for key in ("sweeps", "experiments", "stage"):
        if key in words:
            return re.sub(r"[^\w-]+", "-", words[key].partition("=")[2]).strip("-") or key
        if key in swept:
            return "experiments" if key == "experiments" else "stages"
    return "pipeline"


def _plain(key: str) -> str:
    return key.lstrip("+~")


def job_key(cfg: DictConfig, words: Sequence[str]) -> str:
    """12 hex digits over a job's words and its seeds, so that seed=0 and no seed at all are one job where they are."""
    seeds = {str(key): str(cfg.seeds[key]) for key in cfg.seeds}
    if cfg.seed is not None:
        until = "rl" if cfg.until == "ppo" else str(cfg.until)
        seeds |= {name: str(cfg.seed) for name in seeded_stages(str(cfg.stage), until) if name in seeds}
    own = [word for word in words if not aside(word) and not _SEED.match(_plain(word.partition("=")[0]))]
    return digest([sorted(own), seeds], 12)


def aside(word: str) -> bool:
    """Whether a word changes nothing that a job computes."""
    return _ASIDE.match(_plain(word.partition("=")[0])) is not None


def flat_config(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A job's resolved configuration by full key, without what changes no result."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        place = f"{prefix}{key}"
        if _ASIDE.match(place):
            continue
        if isinstance(value, Mapping) and value:
            found |= flat_config(value, f"{place}.")
        else:
            found[place] = value
    return found
