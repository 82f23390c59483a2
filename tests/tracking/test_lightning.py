"""The Lightning logger writes a Trainer's metrics into the run."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from rlaif.io import read_jsonl
from rlaif.tracking import Run
from rlaif.tracking.lightning import RunLogger


def make(directory: Path) -> Run:
    return Run(
        directory=directory, stage="sft", config={}, overrides=[], group=None, name="n", wandb_options=None
    )


def rows(directory: Path) -> list[dict[str, float]]:
    kept = list(read_jsonl(directory / "history.jsonl"))
    for row in kept:
        assert row.pop("time") >= 0
    return kept


def test_forwards_all_but_epoch(tmp_path: Path) -> None:
    with make(tmp_path / "run") as run:
        logger = RunLogger(run)
        logger.log_metrics({"sft/loss": torch.tensor(0.5), "epoch": 0}, step=3)
        logger.log_metrics({"epoch": 1}, step=4)
        logger.log_metrics({"sft/loss": 0.25})
        logger.log_hyperparams({"lr": 1.0})
        assert (logger.name, logger.version, logger.save_dir) == ("sft", "run", str(tmp_path / "run"))
    assert rows(tmp_path / "run") == [{"step": 3, "sft/loss": 0.5}, {"step": 0, "sft/loss": 0.25}]


class Countdown(pl.LightningModule):
    """Logs the batch index, so that the expected history is known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.log("sft/loss", float(batch_idx))
        return self.weight * batch.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_trainer_logs_through_it(tmp_path: Path) -> None:
    with make(tmp_path / "run") as run:
        trainer = pl.Trainer(
            logger=RunLogger(run),
            accelerator="cpu",
            max_epochs=1,
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Countdown(), DataLoader(torch.ones(3, 1)))
    assert rows(tmp_path / "run") == [{"step": step, "sft/loss": float(step)} for step in range(3)]
