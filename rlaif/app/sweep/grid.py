"""`-m` and sweeps=NAME: every combination of the values, by any launcher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class GridSweeper(Sweeper):
    """Hydra's grid and its grammar. It is no BasicSweeper: Hydra defines that class again when it looks for plugins."""

    def __init__(self, max_batch_size: int | None, params: Mapping[str, Any] | None = None) -> None:
        self.max_batch_size = max_batch_size
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        words = [f"{key}={value}" for key, value in self.params.items()] + list(arguments)
        parsed = OverridesParser.create(self.hydra_context.config_loader).parse_overrides(words)
        number, returned = 0, []
        for batch in BasicSweeper.split_arguments(parsed, self.max_batch_size):
            self.validate_batch_is_legal(batch)
            results = self._launcher().launch(batch, initial_job_idx=number)
            number += len(batch)
            returned += [result.return_value for result in results]  # raises what a job raised
        return returned

    def _launcher(self) -> Launcher:
        return Plugins.instance().instantiate_launcher(
            hydra_context=self.hydra_context, task_function=self.task_function, config=self.config
        )

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose every job before the first one runs."""
        for words in batch:
            self.hydra_context.config_loader.load_sweep_config(self.config, list(words))
