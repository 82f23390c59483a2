"""The Lightning Trainer that sft, rm and ppo share, with checkpoints that survive kill -9."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar

from rlaif.data.datamodule import PreferenceBatch, TokenBatch
from rlaif.modules.optim import OptimOptions
from rlaif.stages.context import Context
from rlaif.tracking.lightning import RunLogger

logger = logging.getLogger(__name__)

CHECKPOINT = "last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it: a killed run leaves the previous one whole."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}-{os.getpid()}")
        torch.save(checkpoint, temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, target)


class EpochCheckpoint(ModelCheckpoint):
    """One checkpoint, replaced at each epoch's end."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            dirpath=folder,
            filename="last",
            save_top_k=1,
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )


def quiet_lightning() -> None:
    """Lightning's tips and hardware lines are noise in a pipeline of several fits."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for pattern in (
        ".*does not have many workers.*",
        ".*Checkpoint directory.*exists.*",
        ".*LeafSpec.*",
        ".*isinstance.treespec.*",
        ".*smaller than the logging interval.*",
    ):
        warnings.filterwarnings("ignore", message=pattern)


def make_trainer(
    ctx: Context, work: Path, *, max_epochs: int, gradient_clip: float, log_every: int, limit_val: bool
) -> pl.Trainer:
    """A Trainer whose checkpoints lie in `work` and whose metrics go to the run record."""
    quiet_lightning()
    callbacks: list[pl.Callback] = [EpochCheckpoint(work / "checkpoints")]
    if ctx.progress.bars:
        callbacks.append(RichProgressBar(leave=False))
    return pl.Trainer(
        accelerator="gpu" if ctx.model_spec.device == "cuda" else "cpu",
        devices=1,
        max_epochs=max_epochs,
        gradient_clip_val=gradient_clip,
        logger=RunLogger(ctx.run) if ctx.run else False,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if limit_val else 0,
        enable_progress_bar=ctx.progress.bars,
        enable_model_summary=False,
        log_every_n_steps=log_every,
        default_root_dir=str(work),
    )


def fit(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    work: Path,
    datamodule: pl.LightningDataModule | None = None,
) -> None:
    """Fit, continuing from the checkpoint in `work` where there is one. Raises KeyboardInterrupt as itself."""
    module.train()
    checkpoint = work / "checkpoints" / CHECKPOINT
    resume = str(checkpoint) if checkpoint.exists() else None
    if resume:
        logger.info("continuing from the last whole epoch")
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=resume, weights_only=True)
    except SystemExit as stop:
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        # Lightning answers Ctrl-C with sys.exit(1).
        raise KeyboardInterrupt from None


def optim_options(node: Any, total_steps: int) -> OptimOptions:
    """The optimiser's options out of a stage's configuration."""
    return OptimOptions(
        node.lr, node.weight_decay, node.eps, node.schedule, node.warmup_fraction, max(1, total_steps)
    )


__all__ = ["PreferenceBatch", "TokenBatch", "fit", "make_trainer", "optim_options"]
