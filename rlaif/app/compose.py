"""From Hydra's composed configuration to the typed options of a job."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

from rlaif.app.command.resolvers import refusal, register
from rlaif.app.command.words import refuse_null
from rlaif.app.home import CONF
from rlaif.app.sweep.plugins import register_plugins
from rlaif.errors import UserError
from rlaif.options.job import Options, with_engine, with_seed
from rlaif.options.read import UNSET, plain, read, require
from rlaif.options.rules import shown
from rlaif.stages.common.context import Compose

_VARIABLE = re.compile(r"Environment variable '([^']+)' not found")
_JUDGE = re.compile(r"[A-Za-z0-9][\w-]*")
_OF_JUDGES = re.compile(r"(?:judge|backend)(?:\.\w+)*=")
register()  # before anything is composed
register_plugins()
_READ_LATER = ("compare", "report", "dashboard", "clean")
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
        # A key that the arm sets itself is the arm's: a sweep over it would otherwise be undone silently.
        base = _without(overrides, {_key(word) for word in words})
        cfg = _config([*base, *words])
        require(resolved(cfg))
        return with_jury(read_options(cfg), [*base, *words])

    return composed


def with_jury(options: Options, words: Sequence[str]) -> Options:
    """The options with `judges` composed, each from the job's own `words` and its overrides.

    Raises UserError for judges that are neither names nor names with overrides of `judge` and `backend`.
    """
    if not options.judges:
        if options.eval.panel != "none":
            raise UserError(
                f"eval.panel={options.eval.panel} has no judges: write judges=[NAME,NAME], or eval.panel=none"
            )
        return options
    if _is_composed(options.judges):
        return options
    found = {}
    for name, own in judge_overrides(options.judges).items():
        keys = {_key(word) for word in own}
        # A judge that chooses a backend takes none of another backend's settings.
        base = _without(words, keys, below={"backend"} & keys)
        try:
            own_options = read_options(_config([*_without(base, {"judges"}), *own]))
        except UserError as error:
            raise UserError(f"judges.{name}: {error}") from None
        found[name] = {"judge": plain(own_options.judge), "backend": plain(own_options.backend)}
    return replace(options, judges=found)


def judge_overrides(judges: Any) -> dict[str, list[str]]:
    """The overrides of each of `judges` by name; of a bare name N they are `judge=N`. Raises UserError for others."""
    if isinstance(judges, str) or not isinstance(judges, Sequence | Mapping):
        raise UserError(f"judges={shown(judges)} is no list: write judges=[NAME,NAME], names of conf/judge")
    named = judges if isinstance(judges, Mapping) else {str(name): [f"judge={name}"] for name in judges}
    if len(named) < len(judges):
        raise UserError(f"judges={shown(judges)} names a judge twice: write {{NAME: [judge=PRESET], ...}}")
    for name, own in named.items():
        if not _JUDGE.fullmatch(name):
            raise UserError(f"judges: {name!r} is no name for a judge: write letters, digits, - and _")
        if isinstance(own, str) or not isinstance(own, Sequence) or not all(isinstance(w, str) for w in own):
            raise UserError(f"judges.{name} must be a list of overrides: write {name}: [judge=PRESET]")
        for word in own:
            if not _OF_JUDGES.match(word):
                raise UserError(
                    f"judges.{name}: {word} is no setting of a judge: write judge=NAME, judge.KEY=VALUE, backend=NAME "
                    "or backend.KEY=VALUE"
                )
    return {name: list(own) for name, own in named.items()}


def _is_composed(judges: Any) -> bool:
    return isinstance(judges, Mapping) and all(isinstance(own, Mapping) for own in judges.values())


def _without(words: Sequence[str], keys: Collection[str], below: Collection[str] = ()) -> list[str]:
    """The words that set none of `keys`, and nothing below the groups in `below`."""
    return [w for w in words if _key(w) not in keys and _key(w).partition(".")[0] not in below]


def _config(words: Sequence[str]) -> DictConfig:
    """The configuration that the words make within a running job."""
    hydra = HydraConfig.get()
    places = [word for word in hydra.overrides.hydra if word.startswith("hydra.searchpath=")]
    return compose(hydra.job.config_name, overrides=[*places, *words])


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
        if (refused := refusal(error)) is not None:
            raise refused from None
        found = _VARIABLE.search(str(error))
        if found is None:
            return UNSET
        raise UserError(
            f"{place} refers to the environment variable {found[1]}, which is not set: set it"
        ) from None
