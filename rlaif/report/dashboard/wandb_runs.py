"""Which of W&B's runs a dashboard shows, and by what it groups them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import wandb_workspaces.expr as where

from rlaif.study.sweeps import differing_keys
from rlaif.tracking.runs import RunRecord

_ARM = "arm"
"""The key of an arm's name in its W&B run's configuration; its job type too."""
_COMPARISON = "comparison"
"""The key of the comparison that an arm belongs to: the name of its run directory."""


@dataclass(frozen=True)
class RunSelection:
    """W&B's runs by job type, group and, of arms, comparison; `keys` of the configuration group them.

    An empty tuple does not select.
    """

    job_types: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    comparisons: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()

    @property
    def filters(self) -> list[Any]:
        """All of them must hold."""
        chosen = (
            (where.Metric("JobType"), self.job_types),
            (where.Metric("Group"), self.groups),
            (where.Config(_COMPARISON), self.comparisons),
        )
        return [key.isin(list(values)) for key, values in chosen if values]

    @property
    def groupby(self) -> list[Any]:
        """What makes an arm: runs that agree in it are its seeds."""
        return [where.Config(key) for key in self.keys]


def selection(runs: Sequence[RunRecord]) -> RunSelection:
    """The W&B runs of `runs`: of a comparison its arms, else those of the runs' stages and groups."""
    comparisons = tuple(run.path.name for run in runs if run.table("arms"))
    if comparisons:
        return RunSelection((_ARM,), (), comparisons, (_ARM,))
    groups = {run.group for run in runs}
    named = tuple(sorted(str(group) for group in groups)) if None not in groups else ()
    stages = tuple(dict.fromkeys(run.stage for run in runs))
    keys = tuple(dict.fromkeys(_config_key(key, runs[0].config) for key in differing_keys(runs)))
    return RunSelection(stages, named, (), keys)


def _config_key(key: str, config: Mapping[str, Any]) -> str:
    """Where the choice that an override `key` makes is in the configuration: a group's option is its `name`."""
    value: Any = config
    for part in key.replace("/", ".").split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return f"{key}.name" if isinstance(value, Mapping) and "name" in value else key
