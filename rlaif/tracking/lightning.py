"""Lightning's logger interface on top of a run record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from rlaif.tracking.run import Run


class RunLogger(Logger):
    """Forwards a Trainer's metrics to a `Run`, if there is one, which its owner opens and closes.

    `rows` are those of the fit so far, as (step, metrics).
    """

    def __init__(self, run: Run | None) -> None:
        super().__init__()
        self._run = run
        self.rows: list[tuple[int, dict[str, float]]] = []

    @property
    def name(self) -> str:
        """The stage."""
        return self._run.stage if self._run is not None else ""

    @property
    def version(self) -> str:
        """The name of the run's folder."""
        return self._run.directory.name if self._run is not None else ""

    @property
    def save_dir(self) -> str | None:
        """The run's folder."""
        return str(self._run.directory) if self._run is not None else None

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log all but `epoch`, which Lightning adds to every row and is not a metric of ours."""
        kept = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        if kept:
            self.replay([(0 if step is None else step, kept)])

    def replay(self, rows: Sequence[tuple[int, dict[str, float]]]) -> None:
        """Log `rows`, such as those up to a resumed fit's checkpoint, so that its curve begins where it did."""
        for step, metrics in rows:
            self.rows.append((step, metrics))
            if self._run is not None:
                self._run.log(metrics, step=step)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the run already has the resolved configuration."""
