"""`-m` and sweeps=NAME: every combination of the values, by any launcher, with a ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class GridSweeper(Sweeper):
    """Hydra's grid and its grammar. It is no BasicSweeper: Hydra defines that class again when it looks for plugins."""

    hydra_context: HydraContext
    config: DictConfig

    def __init__(self, max_batch_size: int | None, params: Mapping[str, Any] | None = None) -> None:
        self.max_batch_size = max_batch_size
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config, self.task_function = hydra_context, config, task_function

    def sweep(self, arguments: list[str]) -> Any:
        from rlaif.app.sweep.jobs import run_sweep  # `--help` need not wait for torch

        overrides = self.parsed(arguments)
        (jobs,) = BasicSweeper.split_arguments(overrides, None)
        return run_sweep(self, overrides, jobs)

    def write_to(self, folder: Path) -> None:
        """Let the launchers and their jobs write below `folder`, whose name is the jobs' group."""
        quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
        OmegaConf.set_readonly(self.config.hydra, False)
        self.config.hydra.sweep.dir = str(folder)
        self.config.hydra.sweep.subdir = "jobs"
        self.config.hydra.overrides.hydra += [f"hydra.sweep.dir='{quoted}'", "hydra.sweep.subdir=jobs"]

    def new_launcher(self) -> Launcher:
        """A launcher that is ready to launch a batch."""
        return Plugins.instance().instantiate_launcher(
            hydra_context=self.hydra_context, task_function=self.task_function, config=self.config
        )

    def parsed(self, arguments: Sequence[str]) -> list[Override]:
        """The words of the sweep's file, and those of the command line after them."""
        words = [f"{key}={value}" for key, value in self.params.items()]
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        return parser.parse_overrides([*words, *arguments])
