"""From Hydra's composed configuration to the typed options of a job."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

from rlaif.app.command.words import refuse_null
from rlaif.app.home import CONF
from rlaif.errors import UserError
from rlaif.options.job import Options, with_engine, with_seed
from rlaif.options.read import UNSET, read, require
from rlaif.stages.common.context import Compose

_VARIABLE = re.compile(r"Environment variable '([^']+)' not found")
_READ_LATER = ("compare", "report", "clean")
"""Stages for which a setting may be unset: an arm gives it, or nothing reads it."""


@contextmanager
def composed(words: Sequence[str]) -> Iterator[DictConfig]:
    """The configuration that `words` make, as the command line composes it; arms can be composed within the context."""
    refuse_null(words)
    with initialize_config_dir(str(CONF), job_name="rlaif", version_base="1.3"):
        cfg = compose("config", overrides=list(words), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            cfg.pop("hydra")
        yield cfg


def read_options(cfg: DictConfig) -> Options:
    """The options of a composed configuration. Raises UserError for an invalid one."""
    values = resolved(cfg)
    if values.get("until") == "ppo":  # as stage=ppo, the other name of stage=rl
        values["until"] = "rl"
    options = read(Options, values)
    if options.stage not in _READ_LATER:
        require(values)
    return with_engine(with_seed(options))


def labeling_options(cfg: DictConfig) -> Options:
    """The options of a configuration of which only the labeler is used, so the task need not name any data."""
    values = resolved(cfg)
    require({name: value for name, value in values.items() if name != "task"})
    return with_engine(read(Options, values))


def arm_composer(overrides: Sequence[str]) -> Compose:
    """Composes the job's own words together with an arm's; every setting must have its value then."""

    def composed(words: Sequence[str]) -> Options:
        refuse_null(words)
        own = {_key(word) for word in words}
        # A key that the arm sets itself is the arm's: a sweep over it would otherwise be undone silently.
        base = [word for word in overrides if _key(word) not in own]
        hydra = HydraConfig.get()
        places = [word for word in hydra.overrides.hydra if word.startswith("hydra.searchpath=")]
        cfg = compose(hydra.job.config_name, overrides=[*places, *base, *words])
        require(resolved(cfg))
        return read_options(cfg)

    return composed


def _key(override: str) -> str:
    return override.split("=")[0].lstrip("+~")


def resolved(value: Any, place: str = "") -> Any:
    """A configuration as plain data; `UNSET` for a value that is still to be set, or that refers to one."""
    if OmegaConf.is_dict(value):
        return {str(key): _item(value, key, f"{place}.{key}".lstrip(".")) for key in value}
    if OmegaConf.is_list(value):
        return [_item(value, index, f"{place}.{index}") for index in range(len(value))]
    return value


def _item(value: Any, key: Any, place: str) -> Any:
    try:
        return resolved(value[key], place)
    except MissingMandatoryValue:
        return UNSET
    except InterpolationResolutionError as error:
        found = _VARIABLE.search(str(error))
        if found is None:
            return UNSET
        raise UserError(
            f"{place} refers to the environment variable {found[1]}, which is not set: set it"
        ) from None
