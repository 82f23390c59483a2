"""The Lightning Trainer that sft, rm and rl share, with checkpoints that survive kill -9."""

from __future__ import annotations

import logging
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint

from rlaif.errors import UserError
from rlaif.io import release_free_memory
from rlaif.options.training import RLOptions, RMOptions, SFTOptions
from rlaif.stages.common.context import Context
from rlaif.stages.common.training.optim import OptimOptions
from rlaif.stages.common.training.ranks import follows
from rlaif.tracking.lightning import RunLogger

logger = logging.getLogger(__name__)

CHECKPOINT = "last.ckpt"
PREVIOUS = "previous.ckpt"
NOT_WRITTEN = (
    "%s could not be written (%s): is the disk full? Training continues; until there is room, a killed run "
    "resumes from the checkpoint before it"
)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file and renames it; the one before it is kept as `previous.ckpt`.

    A killed run leaves at least one of the two complete. If a checkpoint cannot be written (on a full disk, say),
    the existing ones stay and training continues: the next epoch tries again.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}-{os.getpid()}")
        try:
            torch.save(checkpoint, temporary)
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
        except (OSError, RuntimeError) as error:  # torch's writer has no type of its own
            temporary.unlink(missing_ok=True)  # half a checkpoint takes up space on a full disk
            logger.warning(NOT_WRITTEN, target, str(error).split("\n")[0])
            return
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if target.exists():
            os.replace(target, target.with_name(PREVIOUS))
        os.replace(temporary, target)


class KeepCurve(pl.Callback):
    """Stores what was logged in the checkpoint, so that a resumed run's history holds the whole curve."""

    KEY = "curve"

    def on_save_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        if isinstance(trainer.logger, RunLogger):
            checkpoint[self.KEY] = list(trainer.logger.rows)

    def on_load_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        if isinstance(trainer.logger, RunLogger):
            trainer.logger.replay(checkpoint.get(self.KEY, ()))


class ReleaseMemory(pl.Callback):
    """Returns freed memory to the system every few steps, since batches without padding all differ in size."""

    EVERY = 4

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step % self.EVERY == 0:
            release_free_memory()


class Advance(pl.Callback):
    """Moves the stage's own bar, of `total` items over all epochs, with each step, also of a resumed fit."""

    def __init__(self, advance: Callable[[int], None], total: int) -> None:
        self._advance, self._total, self._done = advance, total, 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        assert trainer.max_epochs is not None
        within = (index + 1) / float(trainer.num_training_batches)
        self._to(int(self._total * (trainer.current_epoch + within) / trainer.max_epochs))

    def on_fit_end(self, trainer: pl.Trainer, module: Any) -> None:
        self._to(self._total)

    def _to(self, done: int) -> None:
        self._advance(done - self._done)
        self._done = done


def quiet_lightning() -> None:
    """Silence Lightning's tips and hardware lines, which are noise in a pipeline of several fits."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for pattern in (
        ".*does not have many workers.*",
        ".*Checkpoint directory.*exists.*",
        ".*LeafSpec.*",
        ".*isinstance.treespec.*",
        ".*smaller than the logging interval.*",
        ".*in eval mode at the start of training.*",  # policies have no dropout
        ".*sync_dist=True.*",  # logged values are already summed over the processes
    ):
        warnings.filterwarnings("ignore", message=pattern)


def make_trainer(ctx: Context, work: Path, *, max_epochs: int, log_every: int, limit_val: bool) -> pl.Trainer:
    """A Trainer whose checkpoints are in `work` and whose metrics go to the run record.

    Of processes that train together, only one writes checkpoints, at each epoch's end. Each has its own Trainer: the
    modules themselves sum losses and gradients, since a mean over tokens is not the mean of the processes' means.
    """
    quiet_lightning()
    callbacks: list[pl.Callback] = [ReleaseMemory()]
    if not follows():
        at_epochs = ModelCheckpoint(
            work / "checkpoints", "last", save_on_train_epoch_end=True, enable_version_counter=False
        )
        callbacks = [at_epochs, KeepCurve(), *callbacks]
    return pl.Trainer(
        accelerator=ctx.model_spec.device,
        devices=1,
        max_epochs=max_epochs,
        reload_dataloaders_every_n_epochs=1,  # phases of a fit differ in their rows
        logger=RunLogger(ctx.run),
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=not follows(),
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if limit_val else 0,
        enable_progress_bar=False,  # its bars are of single epochs
        enable_model_summary=False,
        log_every_n_steps=log_every,
        default_root_dir=str(work),
    )


def fit(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    work: Path,
    datamodule: pl.LightningDataModule | None = None,
    *,
    progress: Advance | None = None,
) -> None:
    """Fit, resuming from the newest complete checkpoint in `work`. Ctrl-C raises KeyboardInterrupt."""
    module.train()
    if progress is not None:
        trainer.callbacks.append(progress)
    checkpoint = _newest_checkpoint(work / "checkpoints")
    if checkpoint:
        logger.info("continuing from the last whole epoch")
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as stop:
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        # Lightning answers Ctrl-C with sys.exit(1).
        raise KeyboardInterrupt from None


def _newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`; damaged ones are removed."""
    for path in (folder / CHECKPOINT, folder / PREVIOUS):
        if path.exists():
            if _is_whole(path):
                return path
            logger.warning(
                "%s is damaged (was the disk full?): going back to the one before it, if any", path
            )
            path.unlink()
    return None


def _is_whole(checkpoint: Path) -> bool:
    """Whether the file is intact (a checkpoint is a zip archive with checksums)."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError):
        return False


def optim_options(options: SFTOptions | RMOptions | RLOptions, total_steps: int) -> OptimOptions:
    """The optimiser's options from a stage's configuration."""
    return OptimOptions(
        lr=options.lr,
        weight_decay=options.weight_decay,
        eps=options.eps,
        schedule=options.schedule,
        warmup_fraction=options.warmup_fraction,
        total_steps=max(1, total_steps),
        gradient_clip=options.gradient_clip,
    )


def check_training(key: str, options: SFTOptions | RMOptions | RLOptions) -> None:
    """Raises UserError for impossible numbers under `key` (a stage's configuration)."""
    size, micro = options.batch_size, options.micro_batch_size
    if micro is not None and micro > size:
        raise UserError(
            f"{key}.micro_batch_size={micro} is larger than {key}.batch_size={size}: write 1 to {size}, or null"
        )
